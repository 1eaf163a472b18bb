"""The commands as a person runs them: pretrain, models, verify-resume, quickstart, and how they fail."""

from pathlib import Path
from typing import Any

import pytest
from stage_recipes import pretraining, recipe_text

from mm_rec.cli.main import run
from mm_rec.pipeline import quickstart as pipeline_quickstart
from mm_rec.pipeline.recipe import read_recipe, read_run

SMALL = [
    *("--set", "pretrain.model.changes={num_hidden_layers: 2, hidden_size: 64}"),
    *("--steps", "4", "--seq-len", "32", "--batch-size", "4", "--vocab-size", "600"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_pretrain_resume_and_a_second_run(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", str(text_file), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "run: runs/tiny" in out and "step 4/4" in out and "done: runs/tiny/README.md" in out
    assert read_run(Path("runs/tiny")).stages[0].section.steps == 4
    assert run(["pretrain", "--resume", "runs/tiny"]) == 0
    assert "continuing runs/tiny at step 4 of 4" in capsys.readouterr().out
    assert run(["pretrain", str(text_file), *SMALL]) == 0
    assert Path("runs/tiny-2/final/config.json").is_file()
    assert run(["pretrain", "--recipe", "runs/tiny/recipe.yaml", "--name", "again", "--steps", "2"]) == 0
    assert read_run(Path("runs/again")).stages[0].section.steps == 2


def test_prepared_data_tokenizer_and_evaluation_by_separate_commands(
    text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokenizer", "train", str(text_file), "--vocab-size", "600", "--out", "tok"]) == 0
    assert run(["data", "tokenize", str(text_file), "--tokenizer", "tok", "--out", "prepared"]) == 0
    arguments = [
        *SMALL[:-2],
        "--prepared",
        "prepared",
        "--tokenizer",
        "tok",
        "--tensorboard",
        "--name",
        "run",
    ]
    assert run(["pretrain", *arguments]) == 0
    assert list(Path("runs/run/tensorboard").iterdir())
    assert (
        run(["evaluate", "text", "runs/run", str(text_file), "--context", "64", "--max-new-tokens", "3"]) == 0
    )
    assert "bits" in capsys.readouterr().out
    assert run(["generate", "runs/run", "--prompt", "One day", "--max-new-tokens", "3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["pretrain"], 2, "name files or folders"),
        (["pretrain", "nothing.txt"], 2, "nothing.txt"),
        (["pretrain", "--resume", "runs/none"], 2, "there is no run here"),
        (["pretrain", "x", "--size", "huge"], 2, "nothing|no such|choose one of"),
        (["pretrain", "x", "--set", "pretrain.stepz=3"], 2, "did you mean 'steps'"),
        (["pretrain", "x", "--set", "steps"], 2, "NAME.key=value"),
        (["pretrain", "x", "--optimizer", "sgd"], 2, "optimizer"),
        (["verify-resume", "none.yaml"], 2, "no such file"),
        (["evaluate", "none"], 2, "no model here"),
    ],
)
def test_mistakes_are_one_paragraph_and_status_2(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert run(arguments) == status
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


def test_a_taken_name_is_refused(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    assert run(["pretrain", str(text_file), "--name", "mine"]) == 2
    assert "--resume runs/mine" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", "", "a\\b", "x" * 300, "a\0b"])
def test_a_run_lies_in_the_folder_of_all_runs(
    text_file: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(pretraining({"data": {"sources": [str(text_file)]}}, name=name)))
    before = set(Path.cwd().rglob("*"))
    for arguments in (
        ["pretrain", str(text_file), "--name", name], ["pretrain", "--recipe", str(recipe)],
        ["sft", "a.jsonl", "--from", "m", "--name", name], ["lora", "a.txt", "--from", "m", "--name", name],
        ["run", str(recipe)], ["run", str(recipe), "--name", name],
    ):  # fmt: skip
        assert run(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert "cannot be the name of a run" in error and "--runs" in error, arguments
    assert set(Path.cwd().rglob("*")) == before


def test_models_lists_every_preset_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    out = capsys.readouterr().out
    for part in (
        "1,956,888",
        "0.22 MB",
        "0.19 MB +1.0 kB/token",
        "turkish_134m_tied",
        "134,105,856",
        "1,072 M tokens",
    ):
        assert part in out


def test_quickstart_from_text_to_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole journey in seconds: less text, fewer questions, a moment of training."""
    monkeypatch.setattr(pipeline_quickstart, "DOCUMENTS", 3000)
    monkeypatch.setattr(pipeline_quickstart, "CONVERSATIONS", 400)
    monkeypatch.setattr(pipeline_quickstart, "QUESTIONS", 8)
    assert run(["quickstart", "--out", "qs", "--minutes", "0.05"]) == 0
    out = capsys.readouterr().out
    assert (
        "answers right" in out
        and "of 8" in out
        and "chat qs/sft" in out
        and "chat tuning" in out
        and "Türkçe" in out
    )
    for name in ("questions.json", "pretrain/README.md", "sft/training_graph.png", "sft/best/config.json"):
        assert Path("qs", name).is_file()


def test_quickstart_plans_for_its_goal_and_says_how_long_it_takes(tmp_path: Path) -> None:
    """Enough tokens however slow the machine is; with --minutes, what fits into them."""
    from mm_rec.training.section import ResolvedTrainSection

    said: list[str] = []

    class Listener:
        def say(self, text: str) -> None:
            said.append(text)

        def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
            pass

    recipe = pipeline_quickstart._recipe(tmp_path, Path("t.jsonl"), Path("c.jsonl"), None)
    pretrain, sft = (stage.section for stage in recipe.stages)
    assert 0 < pretrain.least_tokens < pretrain.tokens and sft.tokens
    settings = ResolvedTrainSection(steps=1000, seq_len=256, batch_size=8, learning_rate=0.01)
    pipeline_quickstart._announcement(recipe, Listener())(settings, 5000.0)
    minutes = -(-((1000 * 2048 + sft.tokens) / 5000 + pipeline_quickstart.SUMMING_UP) // 60)
    assert f"about {minutes:.0f} minutes from here" in said[0] and "5,000 a second" in said[0]
    rough = pipeline_quickstart._recipe(tmp_path, Path("t.jsonl"), Path("c.jsonl"), 2.0)
    pretrain, sft = (stage.section for stage in rough.stages)
    assert sft.tokens is None and pretrain.least_tokens is None
    assert pretrain.minutes and sft.minutes and pretrain.minutes + sft.minutes == pytest.approx(2.0)


def test_the_recipes_of_the_package_are_valid() -> None:
    from mm_rec.models.presets import measure, preset

    folder = Path(pipeline_quickstart.__file__).parent / "recipes"
    recipes: dict[str, Any] = {path.stem: read_recipe(path) for path in folder.glob("*.yaml")}
    assert set(recipes) == {"quickstart", "tiny_reference"}
    reference = recipes["tiny_reference"].stages[0].section
    config = preset(reference.model.size).config(reference.tokenizer.vocab_size)
    assert measure(config).parameters == pytest.approx(1_960_000, rel=0.002)
    assert reference.steps == 4 * reference.checkpoint_every
