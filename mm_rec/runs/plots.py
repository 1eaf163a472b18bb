"""Plots of a run's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_rec.runs.files import atomic_path, write_json
from mm_rec.runs.metrics import LOSS, MetricSpec, logged_metrics
from mm_rec.runs.metrics_log import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Graph = dict[str, dict[str, list[Any]]]

_TRAIN, _VALIDATION, _RATE = "#1f77b4", "#d62728", "#7f7f7f"


def plot_training(run: Path, title: str) -> Path:
    """Write `training_graph.json` and `training_graph.png` of a run's metrics; returns the picture's path.

    Above: training and validation loss, with the best measurement marked; below: the gap between the two, which
    grows when a model over-fits, and the learning rate; then a panel for every other metric of the run's log.
    """
    records = read_metrics(run / METRICS_FILE)
    metrics = logged_metrics(records)
    others = [spec.name for spec in metrics if spec.name != LOSS.name]
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    graph = {
        "train": _columns(train, "step", "tokens", "loss", "lr", *_present(others, train)),
        "validation": _columns(validation, "step", "loss", "train_loss", *_present(others, validation)),
    }
    write_json(run / "training_graph.json", graph)
    path = run / "training_graph.png"
    with atomic_path(path) as temporary:
        _draw(graph, metrics, title, temporary)
    return path


def _present(names: list[str], records: list[dict[str, Any]]) -> list[str]:
    return [name for name in names if any(name in record for record in records)]


def _columns(records: list[dict[str, Any]], *names: str) -> dict[str, list[Any]]:
    return {name: [record.get(name) for record in records] for name in names}


def _draw(graph: Graph, metrics: list[MetricSpec], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: it takes most of a second
    from matplotlib.figure import Figure

    others = [
        spec
        for spec in metrics
        if spec.name != LOSS.name and any(spec.name in columns for columns in graph.values())
    ]
    figure = Figure(figsize=(9, 6.5 + 1.6 * len(others)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 + len(others), 1, sharex=True, height_ratios=[3, 1, *[1] * len(others)])
    _draw_losses(panels[0], graph, title)
    _draw_rates(panels[1], graph)
    for panel, spec in zip(panels[2:], others, strict=True):
        _draw_metric(panel, graph, spec)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=110, format="png")


def _draw_losses(panel: Axes, graph: Graph, title: str) -> None:
    train, validation = graph["train"], graph["validation"]
    panel.plot(train["step"], train["loss"], color=_TRAIN, linewidth=1, alpha=0.8, label="training loss")
    if validation["step"]:
        panel.plot(validation["step"], validation["loss"], "o-", color=_VALIDATION, label="validation loss")
        best = min(range(len(validation["loss"])), key=lambda i: validation["loss"][i])
        panel.annotate(
            f"best {validation['loss'][best]:.3f}",
            (validation["step"][best], validation["loss"][best]),
            textcoords="offset points",
            xytext=(0, 12),
            ha="center",
            color=_VALIDATION,
        )
    panel.set_yscale("log")  # the first steps would flatten all that follows
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.set_ylabel(f"loss ({LOSS.unit})")
    panel.set_title(title)
    panel.grid(alpha=0.3)
    panel.legend()


def _draw_rates(panel: Axes, graph: Graph) -> None:
    train, validation = graph["train"], graph["validation"]
    if validation["step"]:
        gap = [v - t for v, t in zip(validation["loss"], validation["train_loss"], strict=True)]
        panel.plot(validation["step"], gap, "o-", color=_VALIDATION, label="validation − training")
        panel.axhline(0, color="black", linewidth=0.5)
        panel.set_ylabel("gap (nats)")
        panel.legend(loc="lower center")
    axis = panel.twinx()
    axis.plot(train["step"], train["lr"], color=_RATE, linestyle="--", label="learning rate")
    axis.set_ylabel("learning rate", color=_RATE)
    axis.ticklabel_format(style="sci", scilimits=(-3, 3), axis="y")
    axis.legend(loc="lower right")


def _draw_metric(panel: Axes, graph: Graph, spec: MetricSpec) -> None:
    for part, colour, mark in (("train", _TRAIN, "-"), ("validation", _VALIDATION, "o-")):
        columns = graph[part]
        if spec.name in columns:
            panel.plot(columns["step"], columns[spec.name], mark, color=colour, linewidth=1, label=part)
    panel.set_ylabel(f"{spec.title} ({spec.unit})" if spec.unit else spec.title)
    panel.grid(alpha=0.3)
    panel.legend(loc="best")
