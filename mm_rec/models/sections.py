"""Settings of a model and of an adapter on it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from mm_rec.config import Section, setting

MODEL_PANEL, ADAPTER_PANEL = "Model", "The adapter"


class ModelSection(Section):
    """A preset, with changes to its configuration; or a model to continue."""

    size: str = setting("tiny", "Preset (`mmrec models` lists them).", panel=MODEL_PANEL)
    start_from: str | None = setting(
        None, "Continue this model on other text.", panel=MODEL_PANEL, option="--from"
    )
    changes: dict[str, Any] = setting(dict, "Changes to the preset's configuration.", option="")


class LoraConfig(Section):
    """What is trained beside the model.

    The product of two matrices of `rank` rows, times alpha / rank (alpha / √rank with `rslora`, Kalajdzievski 2023), is
    added to each of the `targets`: projections by name, "q+v" … "all-linear". `dora` trains their lengths apart from
    their directions (Liu et al. 2024); `init` "pissa" begins with the largest singular vectors of the weights (Meng et
    al. 2024); `train_head` trains embedding and head as well.
    """

    rank: int = setting(16, "Rank.", panel=ADAPTER_PANEL, ge=1)
    alpha: float | None = setting(
        None, "Scale times the rank (default: twice the rank).", panel=ADAPTER_PANEL, gt=0
    )
    dropout: float = setting(0.05, "Dropout.", panel=ADAPTER_PANEL, ge=0, lt=1)
    targets: str = setting("q+v", "Projections: q+v, q+k+v+o … all-linear.", panel=ADAPTER_PANEL)
    rslora: bool = setting(False, "Scale by the rank's square root.", panel=ADAPTER_PANEL)
    dora: bool = setting(False, "Train lengths apart from directions.", panel=ADAPTER_PANEL)
    init: Literal["zero", "pissa"] = setting(
        "zero", "Begin with zero, or with pissa: the largest singular vectors.", panel=ADAPTER_PANEL
    )
    train_head: bool = setting(False, "Train embedding and head too.", panel=ADAPTER_PANEL)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init: pissa each change how the weights are taken apart; choose one")
        return self

    @property
    def effective_alpha(self) -> float:
        """The alpha that is used."""
        return 2.0 * self.rank if self.alpha is None else self.alpha
