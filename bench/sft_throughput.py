"""Fine-tuning speed: our loop with packed conversations against TRL's SFTTrainer, on the same LLaMA and conversations.

    python bench/sft_throughput.py [--quick] [--shape 128x4] [--peer trl] [--rounds 5]

Real conversations (Alpaca and FastChat of the real data), the same tokenizer, chat template, AdamW and learnt answers.
Peers: `trl`, as it is best run on a CPU (bfloat16, no gradient checkpointing, rows of like length together, no
compilation, which new lengths would trigger again and again), and `trl-default`, with its own settings. TRL's packing
needs a flash-attention kernel to keep conversations apart, so it is off. Speed is of tokens that are not padding; the
first 20 steps are left out and reported as `first_seconds`.
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
VOCABULARY, LONGEST, ROWS = 5_000, 1024, 8
WARM_UP = 20
PEERS = ("trl", "trl-default")
DATA = Path(os.environ.get("MMREC_TEST_DATA", "../shared/data"))
FILES = ("instruct/llamafactory_alpaca_en_demo.json", "instruct/fastchat_dummy_conversation.json")


def conversations() -> list[Any]:
    """The conversations of the real data."""
    from mm_rec.data.conversations.dataset_reader import read_conversations

    return read_conversations([DATA / name for name in FILES], fix=True).conversations


def write_tokenizer(folder: Path) -> None:
    """A tokenizer trained on the conversations."""
    from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

    texts = [message.content for one in conversations() for message in one.messages]
    train_tokenizer(lambda: texts, TokenizerConfig(vocab_size=VOCABULARY), folder)


def model_config(shape: str) -> Any:
    from transformers import LlamaConfig

    width, layers = SHAPES[shape]
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=width * 11 // 4, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=2,
        max_position_embeddings=LONGEST,
    )  # fmt: skip


def ours(shape: str, tokenizer_folder: Path, steps: int, scratch: Path) -> tuple[protocol.Clock, float]:
    """Our whole loop: packing, objective, clipping, optimizer, logging; returns the clock and the share of padding."""
    import torch

    from mm_rec.data.conversations.preflight import preflight
    from mm_rec.data.mixture import Mixture
    from mm_rec.data.packing import PackedConversations, conversation_batches
    from mm_rec.models.presets import build
    from mm_rec.tokenizers.loading import load_tokenizer
    from mm_rec.training.interrupt import StopRequest
    from mm_rec.training.objectives import next_token
    from mm_rec.training.optim import OptimizerSet
    from mm_rec.training.section import ResolvedTrainSection
    from mm_rec.training.trainer import Trainer

    tokenizer = load_tokenizer(tokenizer_folder)
    rendered = preflight(tokenizer, conversations(), max_length=LONGEST).rendered
    packed = PackedConversations(rendered, LONGEST, fold_rows=True)
    clock = protocol.Clock()

    rows = ROWS // 2
    batches = conversation_batches({"all": packed}, Mixture(["all"], [(0, [1.0])]), LONGEST, rows, 1, 0, 2)
    batch_at = batches.batch_at

    def counted(step: int, micro_step: int = 0) -> dict[str, Any]:
        batch = batch_at(step, micro_step)
        clock.tokens.append(int((batch["document_ids"] >= 0).sum()))
        return batch

    batches.batch_at = counted  # type: ignore[method-assign]
    config = ResolvedTrainSection(
        steps=steps, seq_len=LONGEST, batch_size=rows, learning_rate=1e-3, optimizer="adamw", compile=True,
        checkpoint_every=10**9, seed=0,
    )  # fmt: skip
    model = build(model_config(shape), seed=0)
    optimizer, objective = OptimizerSet(model, config), next_token(torch.bfloat16)
    training = Trainer(model, None, optimizer, batches, objective, config, scratch, clock)
    training._save_is_due = lambda: False  # type: ignore[method-assign]  # TRL saves nothing here either
    training.save = lambda: None  # type: ignore[method-assign]
    with StopRequest(lambda text: None) as stop:
        training.fit(stop)
    return clock, packed.padding_share


def trl(
    shape: str, tokenizer_folder: Path, steps: int, scratch: Path, default: bool
) -> tuple[protocol.Clock, float]:
    """TRL's SFTTrainer; returns the clock and the share of padding."""
    import torch
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from mm_rec.data.conversations.preflight import preflight

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    chosen = preflight(tokenizer, conversations(), max_length=LONGEST).conversations
    data = Dataset.from_list(
        [{"messages": [message.to_template() for message in one.messages]} for one in chosen]
    )
    clock = protocol.Clock()

    class StepEnds(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.ends.append(time.perf_counter())

    tuned = (
        {}
        if default
        else {"bf16": True, "gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
    )
    arguments = SFTConfig(
        output_dir=str(scratch), per_device_train_batch_size=ROWS, max_steps=steps, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=10, max_length=LONGEST,
        assistant_only_loss=True, **tuned,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = SFTTrainer(
        model=LlamaForCausalLM(model_config(shape)), args=arguments, train_dataset=data, processing_class=tokenizer,
        callbacks=[StepEnds()],
    )  # fmt: skip
    collate, positions = trainer.data_collator, [0]

    def counted(examples: Any) -> Any:
        batch = collate(examples)
        clock.tokens.append(int(batch["attention_mask"].sum()))
        positions[0] += batch["input_ids"].numel()
        return batch

    trainer.data_collator = counted
    trainer.train()
    return clock, 1 - sum(clock.tokens) / positions[0]


def child(contender: str, shape: str, tokenizer_folder: Path, steps: int) -> None:
    """Run one contender in this process and hand over its figures."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        if contender == "mm-rec":
            clock, waste = ours(shape, tokenizer_folder, steps, Path(scratch))
        else:
            clock, waste = trl(shape, tokenizer_folder, steps, Path(scratch), contender == "trl-default")
    seconds = clock.ends[-1] - clock.ends[WARM_UP - 1]
    protocol.child_result(
        {
            "tokens_per_second": round(sum(clock.tokens[WARM_UP:steps]) / seconds, 1),
            "padding": round(waste, 4),
            "first_seconds": round(clock.ends[WARM_UP - 1] - start, 1),
            "peak_mb": round(protocol.peak_mb()),
        }
    )


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--shape", choices=list(SHAPES), action="append")
    options.add_argument("--peer", choices=PEERS, action="append")
    options.add_argument("--child", nargs=4, metavar=("CONTENDER", "SHAPE", "TOKENIZER", "STEPS"))
    chosen = options.parse_args()
    if chosen.child:
        contender, shape, folder, steps = chosen.child
        child(contender, shape, Path(folder), int(steps))
        return
    try:
        import trl  # noqa: F401
    except ImportError:
        sys.exit("TRL is not installed: pip install 'mm-rec[bench]' (make bench does it)")
    if not (DATA / FILES[0]).is_file():
        sys.exit(f"{DATA / FILES[0]} is absent; set MMREC_TEST_DATA to the folder of real test data")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tokenizer"
        write_tokenizer(folder)
        for shape in chosen.shape or (["128x4"] if chosen.quick else list(SHAPES)):
            steps = WARM_UP + (5 if chosen.quick else 20)

            def contender(name: str, shape: str = shape, steps: int = steps) -> Any:
                return lambda: protocol.run_child(
                    __file__, ["--child", name, shape, str(folder), str(steps)], timeout=900
                )

            names = chosen.peer or (PEERS[:1] if chosen.quick else PEERS)
            facts = {"shape": shape, "vocabulary": VOCABULARY, "longest": LONGEST, "optimizer": "AdamW"}
            rounds = 1 if chosen.quick else chosen.rounds
            protocol.compare(
                "sft_throughput", contender("mm-rec"), {name: contender(name) for name in names}, rounds,
                "tokens_per_second", facts,
            )  # fmt: skip


if __name__ == "__main__":
    main()
