"""Our cleaning inside datatrove's pipelines: the same documents stay, locally and on a real Ray; Slurm's job file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from turkish_prose import prose

from mm_rec.cleaning.corpus import CorpusConfig, clean_corpus
from mm_rec.cli.main import run as mmrec
from mm_rec.sources.documents import read_documents


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two files with an exact and a near duplicate, an English page and a short one."""
    texts = [prose(seed) for seed in range(20)]
    texts[3], texts[5] = texts[2], texts[4].replace("yine", "tekrar", 1)
    texts[6] = "The cat sat on the mat and looked at all the people who were walking by. " * 8
    texts[7] = "Kısa."
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(2):
        rows = [
            json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(texts) if i % 2 == number
        ]
        (folder / f"{number}.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(folder.rglob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            found += map(json.loads, lines)
    return found


def texts(folder: Path) -> list[str]:
    return sorted(row["text"] for row in rows(folder))


def expected(raw: Path, out: Path) -> list[str]:
    """What `mmrec data clean` keeps."""
    config = CorpusConfig.read({"dedup": {"paragraphs": False}})
    clean_corpus([raw], out, config, processes=1)
    return sorted(document.text for document in read_documents([out]))


def test_the_local_executor_keeps_what_data_clean_keeps(raw: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert mmrec(["data", "cluster", str(raw), "--out", str(out), "--tasks", "2", "--workers", "1"]) == 0
    kept = texts(out / "final")
    assert len(kept) == 16
    assert [text.replace("tekrar", "yine") for text in kept] == [
        text.replace("tekrar", "yine") for text in expected(raw, tmp_path / "c.jsonl")
    ]  # of the two near copies either may stay: datatrove keeps the first it meets
    assert sorted(row["metadata"]["reason"] for row in rows(out / "dropped")) == ["gopher_words", "language"]


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    """A Ray of two workers on this machine, ended afterwards."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("ray_cluster")
def test_a_real_ray_keeps_the_same(raw: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = ["data", "cluster", str(raw), "--out", str(out), "--executor", "ray", "--tasks", "2"]
    assert mmrec([*command, "--set", "dedup.near=false", "--set", "executor.mem_per_cpu_gb=1"]) == 0
    local = tmp_path / "local"
    assert (
        mmrec(
            ["data", "cluster", str(raw), "--out", str(local), "--workers", "1", "--set", "dedup.near=false"]
        )
        == 0
    )
    assert texts(out / "clean") == texts(local / "clean")
    assert len(texts(out / "clean")) == 18


def test_slurms_job_files_are_printed_and_nothing_is_submitted(raw: Path, tmp_path: Path, capsys):
    command = [
        "data",
        "cluster",
        str(raw),
        "--out",
        str(tmp_path / "out"),
        "--executor",
        "slurm",
        "--tasks",
        "50",
        "--show",
    ]
    options = [
        "executor.time=02:00:00",
        "executor.partition=cpu",
        "executor.venv_path=/opt/mm-rec/bin/activate",
    ]
    assert mmrec([*command, *(part for option in options for part in ("--set", option))]) == 0
    script = capsys.readouterr().out
    assert script.count("#!/bin/bash") == 5
    for line in (
        "#SBATCH --partition=cpu", "#SBATCH --time=02:00:00", "#SBATCH --job-name=mmrec-clean", "#SBATCH --array=0-49",
        "#SBATCH --job-name=mmrec-buckets", "#SBATCH --array=0-15", "source /opt/mm-rec/bin/activate",
    ):  # fmt: skip
        assert line in script
    assert "srun -l -n 1 launch_pickled_pipeline" in script
    assert not (tmp_path / "out" / "clean").exists()
    assert mmrec(command) == 2  # Slurm wants a time and a partition
    assert "partition" in capsys.readouterr().err
