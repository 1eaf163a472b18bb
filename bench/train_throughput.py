"""Training speed: our loop against transformers.Trainer, on the same LLaMA, tokens and optimizer.

    python bench/train_throughput.py [--quick] [--shape 128x4] [--rounds 5]

Both read the same packed corpus of random words in rows of 512 tokens, 4,096 tokens a step, with AdamW (fused).
Peers: `transformers-default`, the Trainer as it comes (float32 on a CPU), and `transformers-tuned`, with bf16 and
torch_compile. Compilation and the first 20 steps are left out of the speed and reported as `first_seconds`.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import protocol

SHAPES = {"128x4": (128, 4), "512x8": (512, 8)}
VOCABULARY, SEQ_LEN, ROWS = 5_000, 512, 8
WARM_UP = 20


def write_tokens(folder: Path, steps: int) -> None:
    """A corpus of random words in documents of several rows, enough for the steps."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from mm_rec.data.corpus import write_corpus

    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<eos>", eos_token="<eos>", pad_token="<pad>"
    )
    chance = random.Random(0)
    names = list(words)[2:]
    documents = (" ".join(chance.choices(names, k=20 * SEQ_LEN)) for _ in range(1 + steps * ROWS // 20))
    write_corpus(documents, tokenizer, folder)


def model_config(shape: str) -> Any:
    from transformers import LlamaConfig

    width, layers = SHAPES[shape]
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=width * 11 // 4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def ours(shape: str, corpus_folder: Path, steps: int, scratch: Path) -> list[float]:
    """Our whole loop: data, objective, clipping, optimizer, logging; returns when each step ended, in seconds."""
    import torch

    from mm_rec.data.batches import PackedBatches
    from mm_rec.data.corpus import Corpus
    from mm_rec.models.presets import build
    from mm_rec.training.config import TrainingConfig
    from mm_rec.training.interrupt import StopRequest
    from mm_rec.training.loop import Training
    from mm_rec.training.objectives import next_token

    ends: list[float] = []

    class Clock:
        def say(self, text: str) -> None:
            pass

        def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
            ends.append(time.perf_counter())

    config = TrainingConfig(
        steps=steps, seq_len=SEQ_LEN, micro_batch=ROWS, learning_rate=1e-3, optimizer="adamw", compile=True,
        checkpoint_every=10**9, seed=0,
    )  # fmt: skip
    batches = PackedBatches(Corpus.open(corpus_folder), SEQ_LEN, ROWS)
    model = build(model_config(shape), seed=0)
    training = Training(model, None, batches, next_token(torch.bfloat16), config, scratch, Clock())
    training._save_is_due = lambda: False  # type: ignore[method-assign]  # the Trainer saves nothing here either
    training.save = lambda: None  # type: ignore[method-assign]
    with StopRequest(lambda text: None) as stop:
        training.fit(stop)
    return ends


def trainer(shape: str, corpus_folder: Path, steps: int, scratch: Path, tuned: bool) -> list[float]:
    """transformers.Trainer; returns when each step ended, in seconds."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from mm_rec.data.batches import PackedSequences
    from mm_rec.data.corpus import Corpus

    rows = PackedSequences(Corpus.open(corpus_folder), SEQ_LEN)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows) - 1  # the last row is not full

        def __getitem__(self, index: int) -> dict[str, Any]:
            import numpy as np

            ids = rows.batch(np.array([index]))["input_ids"][0]
            return {"input_ids": ids, "labels": ids}

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    settings = {"bf16": True, "torch_compile": True} if tuned else {}
    arguments = TrainingArguments(
        output_dir=str(scratch), per_device_train_batch_size=ROWS, max_steps=steps, learning_rate=1e-3,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=10, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config(shape))
    Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    return ends


def child(contender: str, shape: str, corpus_folder: Path, steps: int) -> None:
    """Run one contender in this process and hand over its figures."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        if contender == "mm-rec":
            ends = ours(shape, corpus_folder, steps, Path(scratch))
        else:
            ends = trainer(shape, corpus_folder, steps, Path(scratch), tuned=contender.endswith("tuned"))
    lengths = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    protocol.child_result(
        {
            "tokens_per_second": round(SEQ_LEN * ROWS / statistics.median(lengths), 1),
            "first_seconds": round(ends[WARM_UP - 1] - start, 1),
            "peak_mb": round(protocol.peak_mb()),
        }
    )


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--shape", choices=list(SHAPES), action="append")
    options.add_argument("--child", nargs=4, metavar=("CONTENDER", "SHAPE", "CORPUS", "STEPS"))
    chosen = options.parse_args()
    if chosen.child:
        contender, shape, corpus_folder, steps = chosen.child
        child(contender, shape, Path(corpus_folder), int(steps))
        return
    try:
        import accelerate  # noqa: F401
    except ImportError:
        sys.exit("transformers.Trainer needs accelerate: pip install 'mm-rec[bench]' (make bench does it)")
    shapes = chosen.shape or (["128x4"] if chosen.quick else list(SHAPES))
    with tempfile.TemporaryDirectory() as folder:
        corpus_folder = Path(folder) / "corpus"
        write_tokens(corpus_folder, 60)
        for shape in shapes:
            steps = WARM_UP + (5 if chosen.quick or shape == "512x8" else 10)

            def contender(name: str, shape: str = shape, steps: int = steps) -> Any:
                arguments = ["--child", name, shape, str(corpus_folder), str(steps)]
                return lambda: protocol.run_child(__file__, arguments, timeout=900)

            peers = {name: contender(name) for name in ("transformers-default", "transformers-tuned")}
            facts = {
                "shape": shape,
                "vocabulary": VOCABULARY,
                "seq_len": SEQ_LEN,
                "tokens_per_step": SEQ_LEN * ROWS,
            }
            facts |= {
                "dtype": "ours and tuned bfloat16 autocast, default float32",
                "optimizer": "AdamW fused",
            }
            rounds = 1 if chosen.quick else chosen.rounds
            protocol.compare(
                "train_throughput", contender("mm-rec"), peers, rounds, "tokens_per_second", facts
            )


if __name__ == "__main__":
    main()
