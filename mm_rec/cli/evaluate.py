"""`mmrec evaluate`: how well a model predicts text, what it writes, and what that means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mm_rec.cli.data_options import DocumentsChoice
from mm_rec.cli.sampling_options import (
    Adapter,
    Device,
    MinP,
    ModelPath,
    RepetitionPenalty,
    Seed,
    Stop,
    TopK,
    TopP,
    read_sampling,
)
from mm_rec.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mm_rec.evaluation.report import TextResult
from mm_rec.sources.sections import DocumentsRule

_TEXT, _CHAT, _TASKS = "Text", "Conversations", "Minimal pairs and tasks"
_LIST = "List format: a sentence for each word"


def evaluate(
    model: ModelPath,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="File, folder or glob to predict; each is a row of its own.", rich_help_panel=_TEXT
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue (default: two in English, two in Turkish).")
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(help="Tokens that the model sees at most; several are compared (default 512).", min=2),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write evaluation.json and evaluation.md here.")] = None,
    text_field: Annotated[
        str, typer.Option(help="Field of a .jsonl row that holds the text.", rich_help_panel=_TEXT)
    ] = "text",
    documents: Annotated[
        DocumentsChoice | None,
        typer.Option(
            help="What a document is in .txt (default: file; blank-line for one .txt).", rich_help_panel=_TEXT
        ),
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option(min=0, help="Read only the first MB of each text.", rich_help_panel=_TEXT)
    ] = None,
    chat: Annotated[
        list[str] | None,
        typer.Option(
            help="Conversations: their last answers are compared with the model's.", rich_help_panel=_CHAT
        ),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible endpoint that marks the answers.", rich_help_panel=_CHAT),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model.", rich_help_panel=_CHAT)] = None,
    judge_key_env: Annotated[
        str, typer.Option(help="Environment variable with the judge's key.", rich_help_panel=_CHAT)
    ] = "OPENAI_API_KEY",
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Minimal pairs: files or folders of BLiMP, TurBLiMP, XCOPA.", rich_help_panel=_TASKS
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="A task of lm-eval, by name.", rich_help_panel=_TASKS)
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(help="Folder of your own lm-eval tasks (its Python runs).", rich_help_panel=_TASKS),
    ] = None,
    list_format: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="Words that sentences are asked for.", rich_help_panel=_LIST),
    ] = None,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Only the tenth that list-format data holds out (with another share: give held_out_words.csv).",
            rich_help_panel=_LIST,
        ),
    ] = False,
    level: Annotated[str, typer.Option(help="CEFR level.", rich_help_panel=_LIST)] = "A1",
    language: Annotated[str, typer.Option(help="Language of the words.", rich_help_panel=_LIST)] = "en",
    template: Annotated[
        Path | None,
        typer.Option(help="Text file with the prompt that the data was made with.", rich_help_panel=_LIST),
    ] = None,
    level_list: Annotated[
        list[str] | None,
        typer.Option(
            help="Lists of words with their CEFR levels, for the rule of the level.", rich_help_panel=_LIST
        ),
    ] = None,
    training: Annotated[
        list[str] | None,
        typer.Option(help="Training files, to find sentences learnt by heart.", rich_help_panel=_LIST),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many conversations, questions of a task, or lists of words."),
    ] = None,
    adapter: Adapter = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="The most tokens to write (default: 100; for lists of words 400)."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="0: always the likeliest token (default: 0.8; for --chat 0)."),
    ] = None,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 42,
    device: Device = "auto",
) -> None:
    """Measure loss, perplexity, bits per byte and token accuracy; write samples; say what they mean.

    With --chat, --pairs, --tasks or --list-format those are measured instead (with --text, as well).
    """
    sampling = read_sampling(
        "mmrec evaluate",
        max_new_tokens=max_new_tokens or 100,
        temperature=(0.0 if chat else 0.8) if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
    )
    if max_mb is not None and max_mb <= 0:
        raise ConfigError(f"--max-mb {max_mb}: give more than 0, or leave it out to read everything")
    from mm_rec.models.forward import require_packing_support
    from mm_rec.models.loading import load_with_adapters
    from mm_rec.runtime import choose_device

    console, place = Console(), choose_device(device)
    loaded, tokenizer = load_with_adapters(model, adapter or [], device=str(place))
    require_packing_support(loaded)
    name = " + ".join([model, *(adapter or [])])
    if chat:
        from mm_rec.cli.evaluate_chat import evaluate_chat_files

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
    if pairs or tasks:
        _evaluate_tasks(loaded, tokenizer, pairs or [], tasks or [], limit, include_path, out)
    if list_format:
        from mm_rec.cli.evaluate_list import evaluate_list

        evaluate_list(
            loaded,
            tokenizer,
            name,
            list_format,
            console,
            held_out=held_out,
            level=level,
            language=language,
            template=template,
            level_lists=level_list or [],
            training=training or [],
            adapter=adapter[0] if adapter else None,
            prompts=limit,
            max_new_tokens=max_new_tokens,
            seed=seed,
            out=out,
        )
    if (chat or pairs or tasks or list_format) and not text:
        return
    from mm_rec.evaluation.report import make_report
    from mm_rec.evaluation.report_console import render_report
    from mm_rec.evaluation.samples import DEFAULT_PROMPTS, generate_samples
    from mm_rec.inference.engine import Engine
    from mm_rec.tokenizers.loading import count_special_tokens, describe_special_tokens

    engine = Engine(loaded, place)
    contexts = sorted(set(context or [min(512, engine.context_limit or 512)]))
    sources = _sources(text or [], text_field, None if documents is None else documents.value, max_mb)
    texts = _score(loaded, tokenizer, sources, contexts, console)
    for line in describe_special_tokens(count_special_tokens(tokenizer, prompt or [])):
        console.print(f"--prompt: {line}", markup=False, highlight=False, soft_wrap=True)
    with console.status("writing samples"):
        samples = list(generate_samples(engine, tokenizer, prompt or DEFAULT_PROMPTS, sampling))
    report = make_report(loaded, name, texts, samples)
    console.print(render_report(report))
    if out is not None:
        for path in report.write(out):
            console.print(f"Written: {path}", soft_wrap=True, markup=False, highlight=False)


def _evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[str],
    tasks: list[str],
    limit: int | None,
    include_path: Path | None,
    out: Path | None,
) -> None:
    """Minimal pairs and benchmark tasks, with their figures in `out`."""
    from dataclasses import asdict

    from mm_rec.cli.evaluate_pairs import evaluate_pairs
    from mm_rec.cli.evaluate_tasks import evaluate_tasks
    from mm_rec.runs.files import write_json

    console = Console()
    results: dict[str, object] = {}
    if pairs:
        results["pairs.json"] = asdict(evaluate_pairs(model, tokenizer, pairs, console))
    if tasks:
        results["tasks.json"] = evaluate_tasks(
            model, tokenizer, tasks, console, limit=limit, include_path=include_path
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, values in results.items():
            write_json(out / name, values)
            console.print(f"Written: {out / name}", soft_wrap=True, markup=False, highlight=False)


class _Source:
    """The documents of one `--text`, read anew for each context."""

    def __init__(self, name: str, text_field: str, rule: DocumentsRule | None, limit: float | None) -> None:
        self.name, self.text_field, self.rule, self.limit = name, text_field, rule, limit

    def __iter__(self) -> Iterator[str]:
        from mm_rec.sources.documents import read_documents

        used = 0
        for document in read_documents([self.name], text_field=self.text_field, documents=self.rule):
            if self.limit is not None and used >= self.limit * 1e6:
                return
            used += len(document.text.encode())
            yield document.text


def _sources(
    names: list[str], text_field: str, rule: DocumentsRule | None, limit: float | None
) -> list[_Source]:
    """The texts to score; raises DataError now where a name leads to nothing."""
    from mm_rec.sources.documents import find_files

    for name in names:
        find_files([name])
    return [_Source(name, text_field, rule, limit) for name in names]


def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[_Source],
    contexts: list[int],
    console: Console,
) -> list[TextResult]:
    """The scores of each text at each context."""
    from mm_rec.evaluation.perplexity import evaluate_text
    from mm_rec.evaluation.report import TextResult
    from mm_rec.tokenizers.loading import count_special_tokens, describe_special_tokens

    results = []
    for source in sources:
        for line in describe_special_tokens(count_special_tokens(tokenizer, source)):
            console.print(f"{source.name}: {line}", markup=False, highlight=False, soft_wrap=True)
        for context in contexts:
            with console.status(f"reading {source.name} at a context of {context:,} tokens"):
                scores = evaluate_text(model, tokenizer, source, context)
            results.append(TextResult(source.name, context, scores))
    return results
