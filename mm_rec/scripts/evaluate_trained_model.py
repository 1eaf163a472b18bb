"""Evaluate a trained model: perplexity, token accuracy, samples, a judgement of its quality.

    python mm_rec/scripts/evaluate_trained_model.py --checkpoint checkpoints/tiny/final_checkpoint.pt \
        --test-text "The quick brown fox jumps over the lazy dog." --prompt "Machine learning" --max-length 100

`mmrec evaluate text` does the same for whole files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def evaluate_trained_model(
    checkpoint: Annotated[Path, typer.Option(help="A .pt file, a model folder or a run folder.")],
    test_text: Annotated[
        str, typer.Option("--test-text", "--test_text", help="Text whose prediction is measured.")
    ] = "The quick brown fox jumps over the lazy dog.",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to continue; may be given several times (default: four of ours)."),
    ] = None,
    max_length: Annotated[
        int,
        typer.Option("--max-length", "--max_length", min=1, help="The most tokens to write for a prompt."),
    ] = 100,
    temperature: Annotated[float, typer.Option(min=0, max=100, help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 42,
) -> None:
    """Perplexity and token accuracy of a text, continuations of prompts, and what they say of the model."""
    from rich.console import Console

    from mm_rec.evaluation.report_console import render_report
    from mm_rec.evaluation.text_eval import TextSource, evaluate_texts
    from mm_rec.inference.manager import open_model
    from mm_rec.inference.sampler import SamplingParams

    values = {"max_new_tokens": max_length, "temperature": temperature, "seed": seed}
    sampling = SamplingParams.read(values, where="options")
    loaded = open_model(checkpoint, device="cpu")
    report = evaluate_texts(
        loaded.engine,
        loaded.tokenizer,
        checkpoint,
        [TextSource("test text", [test_text])],
        sampling,
        prompts=prompt or (),
    )
    Console().print(render_report(report))


if __name__ == "__main__":
    # Run as a file, this folder stands where the repository should, and mm_rec may not be installed.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from mm_rec.terminal import run_app

    sys.exit(run_app(app, "evaluate_trained_model.py"))
