"""Pre-train a model on a folder of text, with the options of the training methodology.

    python mm_rec/scripts/pretrain.py --data_dir ./data/pretrain --model_name mmrec_100m \
        --max_steps 100000 --batch_size 4 --seq_len 2048 --learning_rate 3e-4

The run lies in runs/<model_name>; the same command again continues it. At the end
checkpoints/<model_name>/final_checkpoint.pt is written, which evaluate_trained_model.py reads.
`mmrec pretrain` does the same with more options.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mm_rec.pipeline.recipe import Recipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def pretrain(
    data_dir: Annotated[
        Path, typer.Option("--data_dir", "--data-dir", help="Folder of .txt and .jsonl files.")
    ],
    model_name: Annotated[
        str, typer.Option("--model_name", "--model-name", help="Preset (`mmrec models`).")
    ] = "tiny",
    max_steps: Annotated[
        int | None, typer.Option("--max_steps", "--max-steps", min=1, help="Optimizer steps.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", "--batch-size", min=1, help="Rows at a time.")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option("--seq_len", "--seq-len", min=2, help="Tokens of a row.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning_rate", "--learning-rate", min=0, help="Peak learning rate.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer folder; without it one is trained.")
    ] = None,
    text_field: Annotated[
        str, typer.Option("--text_field", "--text-field", help="Field of .jsonl rows.")
    ] = "text",
    runs_dir: Annotated[Path, typer.Option("--runs_dir", "--runs-dir", help="Folder of the runs.")] = Path(
        "runs"
    ),
    checkpoint_dir: Annotated[
        Path, typer.Option("--checkpoint_dir", "--checkpoint-dir", help="Folder of final_checkpoint.pt.")
    ] = Path("checkpoints"),
) -> None:
    """Pre-train on raw text; the same command again continues where it was stopped."""
    from mm_rec.models.loading import load_model_and_tokenizer, save_portable
    from mm_rec.models.presets import preset
    from mm_rec.pipeline.recipe import read_run, recipe_of
    from mm_rec.pipeline.run import run_stage
    from mm_rec.progress import RichReporter
    from mm_rec.runs.directory import RECIPE_FILE

    name = preset(model_name).name
    run = runs_dir / name
    asked = {"steps": max_steps, "batch_size": batch_size, "seq_len": seq_len, "learning_rate": learning_rate}
    settings = {key: value for key, value in asked.items() if value is not None}
    stage = {
        "kind": "pretrain",
        "data": {"sources": [str(data_dir)], "text_field": text_field},
        "tokenizer": {"path": tokenizer},
        "model": {"size": name},
        **settings,
    }
    with RichReporter() as reporter:
        if (run / RECIPE_FILE).is_file():
            recipe = read_run(run)
            _require_same(recipe, run, data_dir, settings)
            reporter.say(f"run: {run} (begun before)")
        else:
            recipe = recipe_of({"name": name, "stages": [stage]}, where="options")
            reporter.say(f"run: {run}")
        ended = run_stage(recipe, run, reporter)
        if ended.stopped:
            reporter.say(f"stopped at step {ended.step} and saved. The same command continues")
            return
        final = checkpoint_dir / name / "final_checkpoint.pt"
        save_portable(*load_model_and_tokenizer(run / "final"), final)
        reporter.say(f"done: {final}, {run}/README.md, {run}/training_graph.png")


def _require_same(recipe: Recipe, run: Path, data_dir: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError where a run that was begun before was begun with something else."""
    from mm_rec.errors import ConfigError

    section = recipe.stages[0].section
    begun = {"data_dir": ", ".join(source.path for source in section.data.sources), **dict(section)}
    asked = {"data_dir": str(data_dir), **settings}
    other = [
        f"--{key} was {begun[key]} and is {value}" for key, value in asked.items() if begun[key] != value
    ]
    if other:
        raise ConfigError(
            f"{run} was begun with other settings: {'; '.join(other)}. Give the same ones to go on, or remove that "
            "folder, or name another with --runs_dir"
        )


if __name__ == "__main__":
    # Run as a file, this folder stands where the repository should, and mm_rec may not be installed.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from mm_rec.terminal import run_app

    sys.exit(run_app(app, "pretrain.py"))
