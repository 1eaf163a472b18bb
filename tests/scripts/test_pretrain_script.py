"""The documented pre-training command, run as written until its first checkpoint, interrupted, resumed."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from waiting import LONGEST, until

from mm_rec.runs.metrics_log import read_metrics
from mm_rec.stories.generator import stories

ROOT = Path(__file__).resolve().parents[2]


def write_text(folder: Path, documents: int) -> None:
    folder.mkdir(parents=True)
    for number, story in enumerate(stories(seed=5, count=documents)):
        (folder / f"{number:04}.txt").write_text(story.text, encoding="utf-8")


def run_until(arguments: list[str], folder: Path, ready: Callable[[], bool]) -> str:
    """Run the script in a folder that stands for the user's copy, interrupt it when ready; returns what it printed."""
    if not (folder / "mm_rec").exists():
        (folder / "mm_rec").symlink_to(ROOT / "mm_rec")
    command = [sys.executable, "mm_rec/scripts/pretrain.py", *arguments]
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            until(ready, lambda: process.poll() is None)
            process.send_signal(signal.SIGINT)
            status = process.wait(LONGEST)
        finally:
            process.kill()
            process.wait()
    text = (folder / "output.txt").read_text()
    assert status == 0, text
    return text


@pytest.mark.seldom(covers=["mm_rec/*"])
@pytest.mark.timeout(5 * LONGEST)
def test_the_documented_command_until_its_first_checkpoint_and_on(tmp_path: Path) -> None:
    """As written in the methodology, but for the weeks that 100,000 steps would take here."""
    write_text(tmp_path / "data" / "pretrain", 200)
    arguments = shlex.split(
        "--data_dir ./data/pretrain --model_name mmrec_100m --max_steps 100000 --batch_size 4 --seq_len 2048 "
        "--learning_rate 3e-4"
    )
    run = tmp_path / "runs" / "mmrec_100m"
    latest = run / "checkpoints" / "latest"
    text = run_until(arguments, tmp_path, latest.exists)
    assert "stopped at step" in text and "The same command continues" in text
    first = int(latest.read_text().strip().removeprefix("step-"))

    def started_again() -> bool:
        events = [
            record for record in read_metrics(run / "metrics.jsonl") if record.get("event") == "started"
        ]
        return len(events) == 2

    text = run_until(arguments, tmp_path, started_again)
    assert f"continuing runs/mmrec_100m at step {first} of 100000" in text
    assert int(latest.read_text().strip().removeprefix("step-")) > first


def test_a_folder_with_one_file_of_a_line_an_article(tmp_path: Path) -> None:
    """What a download saved as text often leaves: one file without a blank line."""
    (tmp_path / "text").mkdir()
    articles = (story.text.replace("\n", " ") for story in stories(seed=6, count=12))
    (tmp_path / "text" / "all.txt").write_text("\n".join(articles), encoding="utf-8")
    options = ["--max_steps", "2", "--batch_size", "4", "--seq_len", "128"]
    command = [sys.executable, str(ROOT / "mm_rec/scripts/pretrain.py"), "--data_dir", "text", *options]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--documents line, because there is one block" in done.stdout.replace("\n", " ")
    assert (tmp_path / "checkpoints" / "tiny" / "final_checkpoint.pt").is_file()


@pytest.mark.seldom(covers=["mm_rec/*"])
def test_to_the_end_and_into_the_evaluation_script(tmp_path: Path) -> None:
    """A short run writes final_checkpoint.pt, which the other documented command reads."""
    write_text(tmp_path / "text", 60)
    arguments = ["--data_dir", "text", "--model_name", "tiny", "--max_steps", "3", "--seq_len", "64"]
    (tmp_path / "mm_rec").symlink_to(ROOT / "mm_rec")
    for script, options in (
        ("pretrain.py", [*arguments, "--batch_size", "2", "--learning_rate", "1e-3"]),
        (
            "evaluate_trained_model.py",
            ["--checkpoint", "checkpoints/tiny/final_checkpoint.pt", "--max-length", "5"],
        ),
    ):
        done = subprocess.run(
            [sys.executable, f"mm_rec/scripts/{script}", *options],
            cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "perplexity" in done.stdout.lower()
    content = torch.load(tmp_path / "checkpoints" / "tiny" / "final_checkpoint.pt", weights_only=True)
    assert content["config"]["model_type"] == "mmrec"
    other = [*arguments[:-1], "32", "--data_dir", "mm_rec"]  # other settings are not passed over in silence
    done = subprocess.run(
        [sys.executable, "mm_rec/scripts/pretrain.py", *other],
        cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--data_dir was text and is mm_rec; --seq_len was 64 and is 32" in done.stderr
