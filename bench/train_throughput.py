"""Training speed: our loop against transformers.Trainer, on the same LLaMA, tokens and optimizer; Muon against AdamW.

    python bench/train_throughput.py [--quick] [--shape 128x4|512x8|tiny|small] [--rounds 5]

128x4 and 512x8: both read the same packed corpus of random words in rows of 512 tokens, 4,096 tokens a step, with
AdamW (fused). Peers: `transformers-default`, the Trainer as it comes (float32 on a CPU), and `transformers-tuned`,
with torch_compile, and with bf16 where the processor multiplies it. tiny and small: our presets, with Muon and as
many tokens a step as are derived for them; the peer is the same with AdamW. Compilation and the first steps are left
out of the speed and reported as `first_seconds`. `peak_share` is the share of what the processor did in a large
matrix product of the same dtype just before; `optimizer_share` what the optimizer takes of a step.
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
PRESETS = {"tiny": 1, "small": 4}  # how many times 4,096 tokens a step reads
VOCABULARY, SEQ_LEN, ROWS = 5_000, 512, 8
WARM_UP = {"128x4": 20, "512x8": 20, "tiny": 20, "small": 2}  # steps
TIMED = {"128x4": 10, "512x8": 5, "tiny": 10, "small": 3}


def write_tokens(
    folder: Path, steps: int, vocabulary: int = VOCABULARY, document: int = 20 * SEQ_LEN
) -> None:
    """A corpus of random words, documents of so many tokens, enough for the steps of 4,096 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from mm_rec.data.corpus import write_corpus

    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<eos>", eos_token="<eos>", pad_token="<pad>", add_bos_token=True
    )
    chance = random.Random(0)
    names = list(words)[2:]
    documents = (
        " ".join(chance.choices(names, k=document)) for _ in range(1 + steps * ROWS * SEQ_LEN // document)
    )
    write_corpus(documents, tokenizer, folder)


def model_config(shape: str) -> Any:
    from transformers import LlamaConfig

    from mm_rec.models.presets import preset

    if shape in PRESETS:
        return preset(shape).config(VOCABULARY)
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


def precision() -> Any:
    """The dtype that this processor multiplies fastest, as our loop chooses it."""
    import torch

    from mm_rec.runtime import choose_precision

    return choose_precision("auto", torch.device("cpu")).dtype


def fit(
    model: Any,
    batches: Any,
    section: Any,
    scratch: Path,
    clock: protocol.Clock | None = None,
    resume: bool = False,
) -> tuple[list[float], list[float]]:
    """Our whole loop: data, objective, clipping, optimizer, logging; it saves nothing unless it may be resumed.

    `resume`: go on from the newest checkpoint in `scratch`, and save some. Returns when each step ended, and how long
    the optimizer took of it, in seconds.
    """
    from mm_rec.training.interrupt import StopRequest
    from mm_rec.training.objectives import next_token
    from mm_rec.training.optim import OptimizerSet
    from mm_rec.training.trainer import Trainer

    clock = clock or protocol.Clock()
    optimizing: list[float] = []
    optimizers = OptimizerSet(model, section)
    training = Trainer(model, None, optimizers, batches, next_token(precision()), section, scratch, clock)
    if not resume:
        training._save_is_due = lambda: False  # type: ignore[method-assign]  # the Trainer saves nothing here either
        training.save = lambda: None  # type: ignore[method-assign]
    elif checkpoint := training.checkpoints.load_newest(print):
        training.warm_start(checkpoint)  # the weights
        training.resume(checkpoint)
    change = training.optimizer.step

    def timed_change() -> None:
        start = time.perf_counter()
        change()
        optimizing.append(time.perf_counter() - start)

    training.optimizer.step = timed_change  # type: ignore[method-assign]
    with StopRequest(lambda text: None) as stop:
        training.fit(stop)
    return clock.ends, optimizing


def ours(
    config: Any, corpus_folder: Path, steps: int, scratch: Path, optimizer: str,
    seq_len: int = SEQ_LEN, rows: int = ROWS, accumulation: int = 1,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Our loop on a new model of this configuration; returns what `fit` does."""
    from mm_rec.data.batches import corpus_batches
    from mm_rec.data.corpus import Corpus
    from mm_rec.models.presets import build
    from mm_rec.training.section import ResolvedTrainSection

    section = ResolvedTrainSection(
        steps=steps, seq_len=seq_len, batch_size=rows, accumulation=accumulation, learning_rate=1e-3,
        optimizer=optimizer, compile=True, checkpoint_every=10**9, seed=0,
    )  # fmt: skip
    batches = corpus_batches(Corpus.open(corpus_folder), seq_len, rows, accumulation)
    return fit(build(config, seed=0), batches, section, scratch)


def trainer(
    model: Any, corpus_folder: Path, steps: int, scratch: Path, tuned: bool,
    rate: float = 1e-3, clock: protocol.Clock | None = None,
    seq_len: int = SEQ_LEN, rows: int = ROWS, on_cpu: bool = True,
) -> list[float]:  # fmt: skip
    """transformers.Trainer; returns when each step ended, in seconds."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from mm_rec.data.corpus import Corpus
    from mm_rec.data.row_sources import PackedSequences

    sequences = PackedSequences(Corpus.open(corpus_folder), seq_len)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(sequences) - 1  # the last row is not full

        def __getitem__(self, index: int) -> dict[str, Any]:
            import numpy as np

            ids = sequences.batch(np.array([index]))["input_ids"][0]
            return {"input_ids": ids, "labels": ids}

    clock = clock or protocol.Clock()

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.progress(state.global_step, steps, {})

    settings: dict[str, Any] = {}
    if tuned:
        settings = {"bf16": not on_cpu or precision() == torch.bfloat16, "torch_compile": True}
    arguments = TrainingArguments(
        output_dir=str(scratch), per_device_train_batch_size=rows, max_steps=steps, learning_rate=rate,
        use_cpu=on_cpu, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=10, **settings,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Steps()]).train()
    return clock.ends


def new_llama(config: Any) -> Any:
    """A LLaMA of transformers with random weights, always the same."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def require_accelerate() -> None:
    """End with a hint where transformers.Trainer cannot run."""
    try:
        import accelerate  # noqa: F401
    except ImportError:
        sys.exit("transformers.Trainer needs accelerate: pip install 'mm-rec[bench]' (make bench does it)")


def child(contender: str, shape: str, corpus_folder: Path, steps: int) -> None:
    """Run one contender in this process and hand over its figures."""
    import torch

    from mm_rec.models.presets import measure
    from mm_rec.runtime import measure_peak_flops

    dtype = torch.float32 if contender == "transformers-default" else precision()
    peak = measure_peak_flops(dtype, torch.device("cpu"))
    start, optimizing = time.perf_counter(), [0.0]
    with tempfile.TemporaryDirectory() as scratch:
        if contender.startswith("mm-rec"):
            optimizer = "muon" if contender == "mm-rec" and shape in PRESETS else "adamw"
            micro = PRESETS.get(shape, 1)
            config = model_config(shape)
            ends, optimizing = ours(
                config, corpus_folder, steps, Path(scratch), optimizer, accumulation=micro
            )
        else:
            model, tuned = new_llama(model_config(shape)), contender.endswith("tuned")
            ends = trainer(model, corpus_folder, steps, Path(scratch), tuned)
    warm = WARM_UP[shape]
    lengths = [after - before for before, after in zip(ends[warm - 1 :], ends[warm:], strict=False)]
    speed = SEQ_LEN * ROWS * PRESETS.get(shape, 1) / statistics.median(lengths)
    protocol.child_result(
        {
            "tokens_per_second": round(speed, 1),
            "peak_share": round(3 * measure(model_config(shape)).flops_per_token * speed / peak, 3),
            "optimizer_share": round(statistics.median(optimizing) / statistics.median(lengths), 3),
            "first_seconds": round(ends[warm - 1] - start, 1),
            "peak_mb": round(protocol.peak_mb()),
        }
    )


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    shapes = [*SHAPES, *PRESETS]
    options.add_argument("--shape", choices=shapes, action="append")
    options.add_argument("--child", nargs=4, metavar=("CONTENDER", "SHAPE", "CORPUS", "STEPS"))
    chosen = options.parse_args()
    if chosen.child:
        contender, shape, corpus_folder, steps = chosen.child
        child(contender, shape, Path(corpus_folder), int(steps))
        return
    require_accelerate()
    with tempfile.TemporaryDirectory() as folder:
        corpus_folder = Path(folder) / "corpus"
        write_tokens(corpus_folder, 60)
        for shape in chosen.shape or (["128x4"] if chosen.quick else shapes):
            compare(shape, corpus_folder, chosen.quick, 1 if chosen.quick else chosen.rounds)


def compare(shape: str, corpus_folder: Path, quick: bool, rounds: int) -> None:
    """Our loop against its peers on one shape."""
    steps = WARM_UP[shape] + (min(5, TIMED[shape]) if quick else TIMED[shape])

    def contender(name: str) -> Any:
        arguments = ["--child", name, shape, str(corpus_folder), str(steps)]
        return lambda: protocol.run_child(__file__, arguments, timeout=900)

    names = ["mm-rec-adamw"] if shape in PRESETS else ["transformers-default", "transformers-tuned"]
    dtype = str(precision()).removeprefix("torch.")
    facts = {
        "shape": shape, "vocabulary": VOCABULARY, "seq_len": SEQ_LEN,
        "tokens_per_step": SEQ_LEN * ROWS * PRESETS.get(shape, 1),
        "dtype": dtype if shape in PRESETS else f"ours and tuned {dtype}, default float32",
        "optimizer": "ours Muon, peer AdamW fused" if shape in PRESETS else "AdamW fused",
    }  # fmt: skip
    peers = {name: contender(name) for name in names}
    results = protocol.compare(
        "train_throughput", contender("mm-rec"), peers, rounds, "tokens_per_second", facts
    )
    for name, figures in results.items():
        for share in ("peak_share", "optimizer_share"):
            print(
                f"{shape} {name}: {share} {statistics.median(one[share] for one in figures)}", file=sys.stderr
            )


if __name__ == "__main__":
    main()
