"""A GPU: is it right, and how fast? Eight minutes at most; rows are written as they are found.

    python bench/gpu.py [--device cuda:1] [--part forms|resume|train|decode] [--seconds 480]
    python bench/gpu.py --report

    forms    losses and gradients of the three families in float32 and in the GPU's own dtype against the processor's
             in float32, and greedy text against the processor's
    resume   a run killed at random moments against one that never was (mmrec verify-resume)
    train    tokens a second, memory and MFU (3 × FLOPs of a forward pass × tokens/s over the peak of a matrix product
             measured before) of `mmrec_100m`, `base`, `turkish_134m` and `llama_base` in rows of 512 to 32,768 tokens;
             of the LLaMAs at 512 and 2,048 also transformers' Trainer by its defaults and tuned (bf16, torch_compile,
             fused AdamW)
    decode   tokens a second of one stream and of 64, prompts of 128 tokens, 64 written; transformers' generate beside
             it, and vLLM for the LLaMA where it is installed

A row is a file in bench/gpu/NAME/, NAME that of the GPU; one that is there is not made again, so what was stopped goes
on. A part that fails leaves its error in its row, and the others run.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import protocol
from train_throughput import VOCABULARY, new_llama, trainer, write_tokens

FOLDER = Path(__file__).resolve().parent / "gpu"
FAMILIES = ("tiny", "hybrid_tiny", "llama_tiny")
SHAPES = ("mmrec_100m", "base", "turkish_134m", "llama_base")
LENGTHS = (512, 2048, 8192, 32_768)
TOKENS = 32_768  # of a step
PEER_LENGTHS = (512, 2048)
STREAMS, PROMPT, NEW = (1, 64), 128, 64
WARM_UP, TIMED = 5, 8  # steps
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large the parts are; a test makes them small."""

    shapes: tuple[str, ...] = SHAPES
    lengths: tuple[int, ...] = LENGTHS
    tokens: int = TOKENS
    steps: int = WARM_UP + TIMED
    streams: tuple[int, ...] = STREAMS
    new: int = NEW


def rows(device: Any, sizes: Sizes) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every row by its name, the most important first."""
    for family in FAMILIES:
        yield f"forms-{family}", lambda family=family: forms(family, device)
    yield "resume", lambda: resume(device)
    for length in sizes.lengths:
        for shape in sizes.shapes:
            yield f"train-{shape}-{length}", lambda a=(shape, length): train(*a, device, sizes)
            if is_llama(shape) and length in PEER_LENGTHS:
                for tuned in (False, True):
                    name = "tuned" if tuned else "default"
                    yield (
                        f"train-{shape}-{length}-transformers-{name}",
                        lambda a=(shape, length, tuned): train_peer(*a, device, sizes),
                    )
    for shape in sizes.shapes:
        for streams in sizes.streams:
            yield f"decode-{shape}-{streams}", lambda a=(shape, streams): decode(*a, device, sizes)
            yield (
                f"decode-{shape}-{streams}-transformers",
                lambda a=(shape, streams): decode_peer(*a, device, sizes),
            )
            if is_llama(shape) and importlib.util.find_spec("vllm"):
                yield f"decode-{shape}-{streams}-vllm", lambda a=(shape, streams): decode_vllm(*a, sizes)


def is_llama(shape: str) -> bool:
    return "llama" in shape or "turkish" in shape


def build(shape: str, **changes: Any) -> Any:
    """A model of a preset with random weights and a small vocabulary."""
    from mm_rec.models.presets import build, preset

    return build(preset(shape).config(VOCABULARY, **changes), seed=0)


def forms(family: str, device: Any) -> Row:
    """How far the device's results are from the processor's, relative; `text`: of 48 tokens, how many are the same."""
    import torch

    from mm_rec.inference.engine import Engine
    from mm_rec.runtime import choose_precision
    from mm_rec.training.micro_step import differentiate
    from mm_rec.training.objectives import next_token

    clear = {"initializer_range": 0.1}  # so that predictions differ from each other by more than rounding
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (4, 256), generator=generator)
    batch = {"input_ids": ids, "labels": ids, "document_ids": (torch.arange(256) // 100).expand(4, -1)}

    def results(place: Any, dtype: Any) -> tuple[float, Any]:
        model = build(family, **clear).to(place).train()
        moved = {name: tensor.to(place) for name, tensor in batch.items()}
        total, count = differentiate(model, next_token(dtype), moved, None)["loss"].tolist()
        return total / count, torch.cat([one.grad.flatten().cpu().float() for one in model.parameters()])

    loss, gradient = results("cpu", torch.float32)
    row: Row = {"loss": round(loss, 6)}
    own = choose_precision("auto", device).dtype
    for dtype in dict.fromkeys((torch.float32, own)):
        found, other = results(device, dtype)
        name = str(dtype).removeprefix("torch.")
        row[f"{name}_loss"] = float(f"{abs(found - loss) / loss:.2e}")
        row[f"{name}_gradient"] = float(f"{(other - gradient).norm() / gradient.norm():.2e}")
    prompts = [one[:length].tolist() for one, length in zip(ids, (40, 3, 17, 100), strict=True)]
    texts = [
        Engine(build(family).to(place).eval()).generate_greedy(prompts, 12, ()) for place in ("cpu", device)
    ]
    pairs = [(a, b) for one, other in zip(*texts, strict=True) for a, b in zip(one, other, strict=True)]
    return {**row, "text": f"{sum(a == b for a, b in pairs)} of {len(pairs)}"}


def resume(device: Any) -> Row:
    """The proof of mmrec verify-resume on this device."""
    from mm_rec.pipeline.recipe import recipe_of
    from mm_rec.pipeline.verify_resume import verify_resume

    said: list[str] = []

    class Listener(protocol.Clock):
        def say(self, text: str) -> None:
            said.append(text)

    with tempfile.TemporaryDirectory() as folder:
        text, recipe = Path(folder) / "text.txt", Path(folder) / "recipe.yaml"
        text.write_text(
            "\n".join(f"Sentence {i} of a text with {7 * i} words." for i in range(4000)), "utf-8"
        )
        settings = {
            "kind": "pretrain",
            "data": {"files": [str(text)]},
            "model": {"size": "tiny"},
            "device": str(device),
        }
        recipe.write_text(json.dumps(recipe_of({"stages": [settings]}).values()), "utf-8")
        verify_resume(recipe, Listener(), steps=12, kills=2)
    return {"proof": said[-1]}


def train(shape: str, length: int, device: Any, sizes: Sizes) -> Row:
    """Our loop on a model: rows of so many tokens, as many as a step has tokens for."""

    from mm_rec.data.batches import corpus_batches
    from mm_rec.data.corpus import Corpus
    from mm_rec.runtime import choose_precision
    from mm_rec.training.loss_scaler import LossScaler
    from mm_rec.training.objectives import next_token
    from mm_rec.training.optim import OptimizerSet
    from mm_rec.training.section import ResolvedTrainSection
    from mm_rec.training.trainer import Trainer

    dtype = choose_precision("auto", device).dtype
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        write_tokens(tokens, max(2, sizes.steps * sizes.tokens // 4096))
        section = ResolvedTrainSection(
            steps=sizes.steps, seq_len=length, batch_size=max(1, sizes.tokens // length), learning_rate=1e-3,
            compile=device.type == "cuda", checkpoint_every=10**9, checkpoint_minutes=10**6, seed=0,
        )  # fmt: skip
        model, clock = build(shape).to(device), protocol.Clock()
        batches = corpus_batches(Corpus.open(tokens), length, section.batch_size)
        scaler = LossScaler.for_dtype(dtype)
        optimizer, objective = OptimizerSet(model, section), next_token(dtype)
        training = Trainer(
            model, None, optimizer, batches, objective, section, Path(folder) / "run", clock, scaler=scaler
        )
        training.save = lambda: None  # type: ignore[method-assign]
        return measured(shape, lambda: train_on(training, clock), length * section.batch_size, dtype, device)


def train_on(training: Any, clock: protocol.Clock) -> list[float]:
    from mm_rec.training.interrupt import StopRequest

    with StopRequest(lambda text: None) as stop:
        training.fit(stop)
    return clock.ends


def train_peer(shape: str, length: int, tuned: bool, device: Any, sizes: Sizes) -> Row:
    """transformers' Trainer on the same model and rows."""
    import torch

    from mm_rec.models.presets import preset

    dtype = torch.bfloat16 if tuned else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        write_tokens(tokens, max(2, sizes.steps * sizes.tokens // 4096))
        model, batch = new_llama(preset(shape).config(VOCABULARY)), max(1, sizes.tokens // length)
        own = {"seq_len": length, "rows": batch, "on_cpu": device.type != "cuda"}
        return measured(
            shape,
            lambda: trainer(model, tokens, sizes.steps, Path(folder) / "run", tuned, **own),
            length * batch,
            dtype,
            device,
        )


def measured(shape: str, run: Callable[[], list[float]], tokens: int, dtype: Any, device: Any) -> Row:
    """Speed, share of the peak and memory of a training whose steps end when `run` says."""
    import torch

    from mm_rec.models.presets import measure, preset
    from mm_rec.runtime import measure_peak_flops, peak_memory_bytes

    peak = measure_peak_flops(dtype, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ends = run()
    first = min(WARM_UP, len(ends) - 2)
    speed = tokens / statistics.median(b - a for a, b in zip(ends[first:], ends[first + 1 :], strict=False))
    flops = 3 * measure(preset(shape).config(VOCABULARY)).flops_per_token
    return {
        "tokens_per_second": round(speed),
        "mfu": round(flops * speed / peak, 3),
        "peak_tflops": round(peak / 1e12, 1),
        "memory_gb": round((peak_memory_bytes(device) or 0) / 1e9, 2),
        "dtype": str(dtype).removeprefix("torch."),
    }


def decode(shape: str, streams: int, device: Any, sizes: Sizes) -> Row:
    """Our engine; prompts are read before the clock runs."""
    from mm_rec.inference.engine import Engine
    from mm_rec.runtime import choose_precision

    engine = Engine(build(shape).to(device, choose_precision("auto", device).dtype).eval())
    rates = []
    for _ in range(2):  # the first records
        sessions = [engine.session() for _ in range(streams)]
        for session in sessions:
            session.prefill(list(range(2, 2 + PROMPT)))
        start = time.perf_counter()
        for _ in range(sizes.new):
            for session in sessions:
                session.append([int(session.next_logits().argmax())])
            engine.forward(sessions)
        rates.append(streams * sizes.new / (time.perf_counter() - start))
    return {"tokens_per_second": round(rates[-1], 1), "notice": engine.fallback_reason}


def decode_peer(shape: str, streams: int, device: Any, sizes: Sizes) -> Row:
    """transformers' generate, less the time that one token takes with its prompt."""
    import torch

    from mm_rec.runtime import choose_precision, synchronize

    model = build(shape).to(device, choose_precision("auto", device).dtype).eval()
    ids = torch.arange(2, 2 + PROMPT, device=device).expand(streams, -1)

    def seconds(new: int) -> float:
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
        )
        synchronize(device)
        return time.perf_counter() - start

    seconds(2)
    return {"tokens_per_second": round(streams * (sizes.new - 1) / (seconds(sizes.new) - seconds(1)), 1)}


def decode_vllm(shape: str, streams: int, sizes: Sizes) -> Row:
    """vLLM on the same weights, prompts included."""
    from train_throughput import new_llama

    from mm_rec.models.presets import preset

    vllm: Any = importlib.import_module("vllm")
    with tempfile.TemporaryDirectory() as folder:
        new_llama(preset(shape).config(VOCABULARY)).save_pretrained(folder)
        engine = vllm.LLM(folder, skip_tokenizer_init=True, gpu_memory_utilization=0.5)
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=sizes.new, min_tokens=sizes.new, detokenize=False
        )
        prompts = [{"prompt_token_ids": list(range(2, 2 + PROMPT))}] * streams
        engine.generate(prompts, sampling)
        start = time.perf_counter()
        engine.generate(prompts, sampling)
        return {"tokens_per_second": round(streams * sizes.new / (time.perf_counter() - start), 1)}


def guarded(name: str, make: Callable[[], Row], device: Any) -> Row:
    """A row with what it is of, or with its error."""
    from mm_rec.runtime import device_name, empty_cache

    start = time.time()
    try:
        found = make()
    except Exception as error:  # noqa: BLE001  # the other rows are worth having
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = {
            "error": f"{type(error).__name__}: {error}",
            "at": f"{Path(place.filename).name}:{place.lineno}",
        }
    finally:
        gc.collect()
        empty_cache(device)
    facts = {"device": device_name(device), "date": time.strftime("%Y-%m-%d"), "commit": protocol.commit()}
    return {"row": name, **found, "seconds": round(time.time() - start, 1), **facts}


def report() -> None:
    """The rows of every GPU as tables in Markdown."""
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        print(f"\n{folder.name}\n\n| row | figures |\n|---|---|")
        for path in sorted(folder.glob("*.json")):
            row = json.loads(path.read_text("utf-8"))
            known = ("row", "device", "date", "commit", "seconds")
            print(f"| {row['row']} | {', '.join(f'{k} {v}' for k, v in row.items() if k not in known)} |")


def main() -> None:
    """Make the rows that are missing, as long as there is time."""
    options = protocol.parser(__doc__)
    options.add_argument("--device", default="auto")
    options.add_argument("--part", choices=("forms", "resume", "train", "decode"), action="append")
    options.add_argument("--seconds", type=float, default=480)
    options.add_argument("--report", action="store_true")
    chosen = options.parse_args()
    if chosen.report:
        report()
        return
    from mm_rec.runtime import choose_device, device_name

    device, end = choose_device(chosen.device), time.time() + chosen.seconds
    if device.type == "cpu":
        sys.exit("no GPU here: this measures one")
    folder = FOLDER / device_name(device).replace(" ", "_").replace("/", "_")
    for name, make in rows(device, Sizes()):
        if chosen.part and name.partition("-")[0] not in chosen.part:
            continue
        if time.time() > end:
            sys.exit("the time is over; the same command goes on with the rows that are missing")
        protocol.kept(folder / f"{name}.json", lambda name=name, make=make: guarded(name, make, device))


if __name__ == "__main__":
    main()
