"""`mmrec evaluate text`: how well a model predicts text, what it writes, and what that means."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mm_rec.cli.data_options import DocumentsChoice
from mm_rec.cli.evaluate.common import COMMAND, Out, open_measurable, print_line
from mm_rec.cli.sampling_options import (
    Adapter,
    Device,
    MaxNewTokens,
    MinP,
    ModelPath,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    read_sampling,
)
from mm_rec.errors import ConfigError


def text(
    model: ModelPath,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES",
            help="Files, folders or globs to predict; each is a row of its own (default: none).",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue (default: two in English, two in Turkish).")
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(help="Tokens that the model sees at most; several are compared (default 512).", min=2),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of a .jsonl row that holds the text.")] = "text",
    documents: Annotated[
        DocumentsChoice | None,
        typer.Option(help="What a document is in .txt (default: file; blank-line for one .txt)."),
    ] = None,
    max_mb: Annotated[float | None, typer.Option(min=0, help="Read only the first MB of each text.")] = None,
    out: Out = None,
    adapter: Adapter = None,
    max_new_tokens: MaxNewTokens = 100,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 42,
    device: Device = "auto",
) -> None:
    """Measure loss, perplexity, bits per byte and token accuracy; write samples; say what they mean."""
    sampling = read_sampling(
        COMMAND,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
    )
    if max_mb is not None and max_mb <= 0:
        raise ConfigError(f"--max-mb {max_mb}: give more than 0, or leave it out to read everything")
    from mm_rec.evaluation.report_console import render_report
    from mm_rec.evaluation.text_eval import evaluate_texts, text_sources
    from mm_rec.inference.engine import Engine
    from mm_rec.tokenizers.loading import count_special_tokens, describe_special_tokens

    console = Console()
    loaded, tokenizer, name = open_measurable(model, adapter, device)
    sources = text_sources(text or [], text_field, None if documents is None else documents.value, max_mb)
    for line in describe_special_tokens(count_special_tokens(tokenizer, prompt or [])):
        print_line(console, f"--prompt: {line}")
    with console.status("") as status:
        report = evaluate_texts(
            Engine(loaded, loaded.device),
            tokenizer,
            name,
            sources,
            sampling,
            contexts=context or (),
            prompts=prompt or (),
            say=lambda line: print_line(console, line),
            progress=status.update,
        )
    console.print(render_report(report))
    if out is not None:
        for path in report.write(out):
            print_line(console, f"Written: {path}")
