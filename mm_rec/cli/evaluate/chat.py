"""`mmrec evaluate chat`: how well a model answers, beside given answers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

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
from mm_rec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mm_rec.data.conversations.conversation import Conversation
    from mm_rec.evaluation.judge import JudgeConfig
    from mm_rec.inference.sampler import SamplingParams

_ACROSS = 5  # figures in one table: as many as 80 columns hold
_COLUMNS = ("bleu", "chrf", "rouge_l", "exact_match", "calls_right", "token_accuracy", "loss", "judge")


def chat(
    model: ModelPath,
    chat: Annotated[
        list[str], typer.Argument(metavar="FILES", help="Conversations, as `mmrec sft` reads them.")
    ],
    judge_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint that marks the answers.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model.")] = None,
    judge_key_env: Annotated[
        str, typer.Option(help="Environment variable with the judge's key.")
    ] = "OPENAI_API_KEY",
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many conversations.")] = None,
    out: Out = None,
    adapter: Adapter = None,
    max_new_tokens: MaxNewTokens = 100,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 42,
    device: Device = "auto",
) -> None:
    """Compare a model's last answers with the given ones: BLEU, chrF, ROUGE, format, tool calls; a judge on request."""
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
    loaded, tokenizer, name = open_measurable(model, adapter, device)
    evaluate_chat_files(
        loaded,
        tokenizer,
        name,
        chat,
        sampling,
        out,
        limit=limit,
        judge_url=judge_url,
        judge_model=judge_model,
        judge_key_env=judge_key_env,
    )


def evaluate_chat_files(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    files: Sequence[str],
    sampling: SamplingParams,
    out: Path | None,
    *,
    limit: int | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
    judge_key_env: str = "OPENAI_API_KEY",
) -> None:
    """Answer the conversations of files (the first `limit` of them), print the figures, write the report into `out`.

    `name` is the model's, for the report.
    """
    from mm_rec.evaluation.chat_eval import evaluate_chat
    from mm_rec.evaluation.chat_report import write_chat_report
    from mm_rec.evaluation.report import model_info
    from mm_rec.inference.engine import Engine

    console = Console(highlight=False)
    judge = _judge(judge_url, judge_model, judge_key_env)
    conversations = _read(files, tokenizer.all_special_tokens)[:limit]
    with _bar(console) as progress:
        engine = Engine(model)
        report = evaluate_chat(engine, tokenizer, conversations, sampling, judge=judge, progress=progress)
    report = {"model": dataclasses.asdict(model_info(model, name)), "files": list(files), **report}
    _print(report, console)
    if out is not None:
        for path in write_chat_report(report, out):
            print_line(console, f"Written: {path}")


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told what is done, how much of it, and how much there is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def _judge(url: str | None, model: str | None, key_env: str) -> JudgeConfig | None:
    """The judge that the options name."""
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise ConfigError("a judge needs both --judge-url, its address, and --judge-model, its name there")
    from mm_rec.evaluation.judge import JudgeConfig

    return JudgeConfig.read({"base_url": url, "model": model, "api_key_env": key_env}, f"{COMMAND} --judge")


def _read(files: Sequence[str], special_tokens: Sequence[str]) -> Sequence[Conversation]:
    """The conversations; raises DataError listing every problem of the files."""
    from mm_rec.data.conversations.dataset_reader import read_conversations
    from mm_rec.data.conversations.issues import format_issues

    found = read_conversations(files, special_tokens=special_tokens)
    if found.issues:
        raise DataError(
            "these conversations cannot be used as they are (`mmrec data convert FILES --to openai --out NEW "
            f"--fix` mends what can be mended):\n{format_issues(found.issues)}"
        )
    return found.conversations


def _print(report: dict[str, Any], console: Console) -> None:
    from mm_rec.evaluation.chat_report import REFERENCE_METRICS, REPLY_METRICS, available_metrics

    near = tuple(column for column in REFERENCE_METRICS if column[0] in _COLUMNS)
    for title, columns in (("Beside the given answers", near), ("The replies by themselves", REPLY_METRICS)):
        shown = available_metrics(report, columns)
        for first in range(0, len(shown), _ACROSS):
            console.print(_table("" if first else title, report, shown[first : first + _ACROSS]))
    for fault, count in report["faults"].items():
        console.print(f"{fault}: {count:,}", markup=False)
    if report["too_long"]:
        console.print(
            f"left out, too long for the model's context: {len(report['too_long']):,} ("
            + ", ".join(report["too_long"][:3])
            + " …)",
            markup=False,
        )
    if judge := report["judge"]:
        console.print(f"answers without a score of the judge: {judge['without']:,}", markup=False)


def _table(title: str, report: dict[str, Any], columns: tuple[tuple[str, str, str], ...]) -> Table:
    """Categories and their sum."""
    from mm_rec.evaluation.chat_report import format_value

    table = Table(title=title or None, title_justify="left")
    table.add_column("category", overflow="fold")
    for name in ("answers", *(name for _, name, _ in columns)):
        table.add_column(name, justify="right")
    for category, figures in (*report["categories"].items(), ("all", report["total"])):
        if figures is report["total"]:
            table.add_section()
        cells = (format_value(figures[key], form) for key, _, form in columns)
        table.add_row(Text(category), f"{figures['answers']:,}", *cells)
    return table
