"""Every kind of stage that a recipe may name."""

from __future__ import annotations

import difflib

from mm_rec.errors import ConfigError
from mm_rec.pipeline.kinds import StageKind
from mm_rec.pipeline.stages import clean, evaluate, lora, pretrain, sft, tokenizer

_KINDS = {
    kind.name: kind
    for kind in (pretrain.KIND, sft.KIND, lora.KIND, clean.KIND, tokenizer.KIND, evaluate.KIND)
}


def register(kind: StageKind) -> StageKind:
    """Add a kind of another package to those that recipes may name; raises ConfigError where the name is taken."""
    known = _KINDS.setdefault(kind.name, kind)
    if known.section is not kind.section:
        raise ConfigError(f"there is a kind of stage {kind.name!r} already. Give this one another name")
    return known


def all_kinds() -> dict[str, StageKind]:
    """Every kind by name."""
    return dict(_KINDS)


def find_kind(name: str) -> StageKind:
    """The kind of a name; raises ConfigError that names the nearest one."""
    if name in _KINDS:
        return _KINDS[name]
    close = difflib.get_close_matches(name, _KINDS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_KINDS)}"
    raise ConfigError(f"there is no kind of stage {name!r}; {hint}")
