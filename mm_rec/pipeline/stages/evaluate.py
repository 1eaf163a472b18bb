"""The kind `evaluate`: a model → how well it predicts texts, and what it writes. What `mmrec evaluate text` does."""

from __future__ import annotations

from collections.abc import Collection

from mm_rec.config import Section, setting
from mm_rec.errors import ConfigError
from mm_rec.pipeline.kinds import Artifacts, StageContext, StageKind, StageResult
from mm_rec.runs.metrics import Outcome
from mm_rec.sources.documents import find_files


class EvaluateSection(Section):
    """Which model is measured, and on what."""

    model: str | None = setting(None, "A run or model folder, or a stage (default: the newest model).")
    text: list[str] = setting(list, "Files or folders to predict; each is a row of its own.", option="")
    text_field: str = setting("text", "Field of .jsonl rows.")
    context: list[int] = setting(list, "Tokens that the model sees at most (default: 512).", option="")
    prompts: list[str] = setting(
        list, "Texts to continue (default: two each in English and Turkish).", option=""
    )
    max_new_tokens: int = setting(100, "The most tokens to write.", ge=1)


def _connect(section: EvaluateSection, made: Artifacts) -> EvaluateSection:
    return section.replace(model=made.find(section.model, "model") or made.latest("model"))


def _require(section: EvaluateSection, made: Collection[str]) -> None:
    if section.model is None and "model" not in made:
        raise ConfigError("no model to evaluate: name one in model, a run or a model folder")
    for name in section.text:
        find_files([name])


def _run(kind: StageKind, section: EvaluateSection, context: StageContext) -> StageResult:
    from mm_rec.evaluation.text_eval import evaluate_texts, text_sources  # these bring torch
    from mm_rec.inference.manager import open_model
    from mm_rec.inference.sampler import SamplingParams
    from mm_rec.models.forward import require_packing_support

    _require(section, ())
    assert section.model is not None
    loaded = open_model(section.model, device="cpu")
    require_packing_support(loaded.model)
    report = evaluate_texts(
        loaded.engine,
        loaded.tokenizer,
        section.model,
        text_sources(section.text, section.text_field),
        SamplingParams(max_new_tokens=section.max_new_tokens, seed=context.seed),
        contexts=section.context,
        prompts=section.prompts,
        say=context.reporter.say,
    )
    written = report.write(context.run)
    context.keep(section, {})
    context.reporter.say(f"evaluated {section.model}: {', '.join(str(path) for path in written)}")
    return StageResult(Outcome.FINISHED, made={"report": written[0]})


KIND = StageKind("evaluate", EvaluateSection, makes=("report",), run=_run, connect=_connect, require=_require)
