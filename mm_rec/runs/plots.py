"""Plots of a run's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm_rec.runs.files import atomic_path, write_json
from mm_rec.runs.metrics_log import read_metrics

_TRAIN, _VALIDATION, _RATE = "#1f77b4", "#d62728", "#7f7f7f"


def plot_training(run: Path, title: str) -> Path:
    """Write `training_graph.json` and `training_graph.png` of a run's metrics; returns the picture's path.

    Above: training and validation loss, with the best measurement marked; below: the gap between the two, which
    grows when a model over-fits, and the learning rate.
    """
    records = read_metrics(run / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    graph = {
        "train": _columns(train, "step", "tokens", "loss", "lr"),
        "validation": _columns(validation, "step", "loss", "train_loss", "bits_per_byte"),
    }
    write_json(run / "training_graph.json", graph)
    path = run / "training_graph.png"
    with atomic_path(path) as temporary:
        _draw(graph, title, temporary)
    return path


def _columns(records: list[dict[str, Any]], *names: str) -> dict[str, list[Any]]:
    return {name: [record.get(name) for record in records] for name in names}


def _draw(graph: dict[str, dict[str, list[Any]]], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: it takes most of a second
    from matplotlib.figure import Figure

    train, validation = graph["train"], graph["validation"]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    losses.plot(train["step"], train["loss"], color=_TRAIN, linewidth=1, alpha=0.8, label="training loss")
    if validation["step"]:
        losses.plot(validation["step"], validation["loss"], "o-", color=_VALIDATION, label="validation loss")
        best = min(range(len(validation["loss"])), key=lambda i: validation["loss"][i])
        losses.annotate(
            f"best {validation['loss'][best]:.3f}",
            (validation["step"][best], validation["loss"][best]),
            textcoords="offset points",
            xytext=(0, 12),
            ha="center",
            color=_VALIDATION,
        )
        gap = [v - t for v, t in zip(validation["loss"], validation["train_loss"], strict=True)]
        rates.plot(validation["step"], gap, "o-", color=_VALIDATION, label="validation − training")
        rates.axhline(0, color="black", linewidth=0.5)
        rates.set_ylabel("gap (nats)")
        rates.legend(loc="lower center")
    losses.set_yscale("log")  # the first steps would flatten all that follows
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_formatter("{x:g}")
    losses.set_ylabel("loss (nats a token)")
    losses.set_title(title)
    losses.grid(alpha=0.3)
    losses.legend()
    axis = rates.twinx()
    axis.plot(train["step"], train["lr"], color=_RATE, linestyle="--", label="learning rate")
    axis.set_ylabel("learning rate", color=_RATE)
    axis.ticklabel_format(style="sci", scilimits=(-3, 3), axis="y")
    axis.legend(loc="lower right")
    rates.set_xlabel("step")
    figure.savefig(path, dpi=110, format="png")
