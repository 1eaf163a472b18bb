"""LoRA speed: our loop against PEFT under transformers.Trainer, on the same LLaMA, blocks and settings.

    python bench/lora_throughput.py [--quick] [--shape 128x4] [--rounds 5]

Both train the adapter of the user's document (rank 128, alpha 256, q and v, dropout 0.05, AdamW, batches of 16 blocks
of at most 256 tokens) on list-format text made of the real A1 sentences, all of it learnt, with matrix products in
bfloat16 and without gradient checkpointing. Ours is compiled, as `mmrec lora` does for runs that are long enough; the
Trainer is not, since batches of other lengths would be compiled again and again. Speed is of tokens that are not
padding; the first 20 steps are left out and reported as `first_seconds`. Peak memory is that of the whole process.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import protocol

SHAPES = {"128x4": (128, 4), "512x8": (512, 8)}
VOCABULARY, CHUNK, ROWS = 4_000, 256, 16
RANK, ALPHA, DROPOUT, RATE = 128, 256, 0.05, 2e-4
WARM_UP = 20
DATA = Path(os.environ.get("MMREC_TEST_DATA", "../shared/data"))
WORDS = "cefr/a1_examples_en_tr.tsv"


def text() -> str:
    """List-format examples of the real words and sentences."""
    from mm_rec.stories.wordlists.entries import fit_entries, read_entries
    from mm_rec.stories.wordlists.examples import make_examples
    from mm_rec.stories.wordlists.prompts import instruction_text, prompt, response

    examples = make_examples(fit_entries(read_entries(DATA / WORDS, level="A1")))
    return "\n\n\n".join(instruction_text(prompt(one.words), response(one.sentences)) for one in examples)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer trained on the text."""
    from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

    train_tokenizer(lambda: [text()], TokenizerConfig(vocab_size=VOCABULARY), folder)


def blocks(tokenizer: Any) -> list[Any]:
    """The text in blocks, as `mmrec lora` cuts it."""
    from mm_rec.data.chunking import chunk_text
    from mm_rec.data.sections import Chunking

    return chunk_text(text(), tokenizer, Chunking(chunk_length=CHUNK)).blocks


def model_config(shape: str) -> Any:
    from transformers import LlamaConfig

    width, layers = SHAPES[shape]
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=width * 11 // 4, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=2,
        max_position_embeddings=1024,
    )  # fmt: skip


def ours(shape: str, tokenizer_folder: Path, steps: int, scratch: Path) -> protocol.Clock:
    """Our whole loop: adapter, packing, objective, clipping, optimizer, logging."""
    import torch

    from mm_rec.data.mixture import Mixture
    from mm_rec.data.packing import PackedConversations, conversation_batches, padded_length
    from mm_rec.models.adapters import Adapters
    from mm_rec.models.presets import build
    from mm_rec.models.sections import LoraConfig
    from mm_rec.tokenizers.loading import load_tokenizer
    from mm_rec.training.interrupt import StopRequest
    from mm_rec.training.objectives import next_token
    from mm_rec.training.optim import OptimizerSet
    from mm_rec.training.section import ResolvedTrainSection
    from mm_rec.training.trainer import Trainer

    rendered = blocks(load_tokenizer(tokenizer_folder))
    length = padded_length(len(one.ids) for one in rendered)  # as in `mmrec lora`
    packed = PackedConversations(rendered, length)
    clock = protocol.Clock()

    batches = conversation_batches({"all": packed}, Mixture(["all"], [(0, [1.0])]), length, ROWS, 1, 0, 2)
    batch_at = batches.batch_at

    def counted(step: int, micro_step: int = 0) -> dict[str, Any]:
        batch = batch_at(step, micro_step)
        clock.tokens.append(int((batch["document_ids"] >= 0).sum()))
        return batch

    batches.batch_at = counted  # type: ignore[method-assign]
    config = ResolvedTrainSection(
        steps=steps, seq_len=length, batch_size=ROWS, learning_rate=RATE, optimizer="adamw", weight_decay=0.0,
        compile=True, checkpoint_every=10**9, seed=0,
    )  # fmt: skip
    model = build(model_config(shape), seed=0)
    Adapters(model, "bench").train(LoraConfig(rank=RANK, alpha=ALPHA, dropout=DROPOUT), seed=0)
    optimizer = OptimizerSet(model, config)
    training = Trainer(model, None, optimizer, batches, next_token(torch.bfloat16), config, scratch, clock)
    training._save_is_due = lambda: False  # type: ignore[method-assign]  # the Trainer saves nothing here either
    training.save = lambda: None  # type: ignore[method-assign]
    with StopRequest(lambda text: None) as stop:
        training.fit(stop)
    return clock


def peft_trainer(shape: str, tokenizer_folder: Path, steps: int, scratch: Path) -> protocol.Clock:
    """PEFT under transformers.Trainer, each batch padded to its longest block."""
    import peft
    import torch
    from datasets import Dataset
    from transformers import (
        DataCollatorForSeq2Seq,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    rows = [{"input_ids": one.ids.tolist(), "labels": one.ids.tolist()} for one in blocks(tokenizer)]
    clock = protocol.Clock()

    class StepEnds(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.ends.append(time.perf_counter())

    collate = DataCollatorForSeq2Seq(tokenizer)

    def counted(examples: Any) -> Any:
        batch = collate(examples)
        clock.tokens.append(int(batch["attention_mask"].sum()))
        return batch

    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        LlamaForCausalLM(model_config(shape)),
        peft.LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=DROPOUT,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        ),
    )
    arguments = TrainingArguments(
        output_dir=str(scratch), per_device_train_batch_size=ROWS, max_steps=steps, learning_rate=RATE, use_cpu=True,
        bf16=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=10, weight_decay=0.0,
        lr_scheduler_type="cosine", adam_beta2=0.95,
    )  # fmt: skip
    trainer = Trainer(
        model=adapted, args=arguments, train_dataset=Dataset.from_list(rows), data_collator=counted,
        callbacks=[StepEnds()],
    )  # fmt: skip
    trainer.train()
    return clock


def child(contender: str, shape: str, tokenizer_folder: Path, steps: int) -> None:
    """Run one contender in this process and hand over its figures."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        run = ours if contender == "mm-rec" else peft_trainer
        clock = run(shape, tokenizer_folder, steps, Path(scratch))
    seconds = clock.ends[-1] - clock.ends[WARM_UP - 1]
    protocol.child_result(
        {
            "tokens_per_second": round(sum(clock.tokens[WARM_UP:steps]) / seconds, 1),
            "first_seconds": round(clock.ends[WARM_UP - 1] - start, 1),
            "peak_mb": round(protocol.peak_mb()),
        }
    )


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--shape", choices=list(SHAPES), action="append")
    options.add_argument("--child", nargs=4, metavar=("CONTENDER", "SHAPE", "TOKENIZER", "STEPS"))
    chosen = options.parse_args()
    if chosen.child:
        contender, shape, folder, steps = chosen.child
        child(contender, shape, Path(folder), int(steps))
        return
    if not (DATA / WORDS).is_file():
        sys.exit(f"{DATA / WORDS} is absent; set MMREC_TEST_DATA to the folder of real test data")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tokenizer"
        write_tokenizer(folder)
        for shape in chosen.shape or (["128x4"] if chosen.quick else list(SHAPES)):
            steps = WARM_UP + (5 if chosen.quick else 20)

            def contender(name: str, shape: str = shape, steps: int = steps) -> Any:
                return lambda: protocol.run_child(
                    __file__, ["--child", name, shape, str(folder), str(steps)], timeout=900
                )

            facts = {"shape": shape, "vocabulary": VOCABULARY, "chunk": CHUNK, "batch": ROWS, "rank": RANK}
            protocol.compare(
                "lora_throughput", contender("mm-rec"), {"peft-trainer": contender("peft-trainer")},
                1 if chosen.quick else chosen.rounds, "tokens_per_second", facts,
            )  # fmt: skip


if __name__ == "__main__":
    main()
