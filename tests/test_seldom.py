"""Which of the marked tests run, and when the commit that was green is written down: on a project of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_fast():
    assert not open("broken").read()

@pytest.mark.seldom(covers=["package/slow/*"])
def test_slow():
    pass
"""


class Project:
    """A checkout with one fast and one marked test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, value in {
            "tests/seldom.py": (Path(__file__).parent / "seldom.py").read_text("utf-8"),
            "tests/conftest.py": 'pytest_plugins = ["seldom"]\n',
            "tests/test_some.py": TESTS,
            "pyproject.toml": '[tool.pytest]\nstrict = true\ntestpaths = ["tests"]\npythonpath = ["tests"]\n',
            "package/slow/deep/a.py": "a = 1\n",
            "package/other.py": "b = 1\n",
            "broken": "",
            ".gitignore": "__pycache__\n",
        }.items():
            self.write(name, value)
        self.git("init", "--quiet")
        self.commit()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        return subprocess.run(
            ["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")

    def ran(self, *arguments: str, everything: bool = False) -> list[str]:
        """The names of the tests that ran."""
        told = {name: value for name, value in os.environ.items() if name != "MMREC_ALL_TESTS"}
        told |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | ({"MMREC_ALL_TESTS": "1"} if everything else {})
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, env=told)
        return re.findall(r"::(test_\w+) [A-Z]+ .*%", done.stdout)

    @property
    def record(self) -> str | None:
        path = self.folder / "tests" / "marked.json"
        return json.loads(path.read_text("utf-8"))["commit"] if path.exists() else None


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_marked_tests_run_when_what_they_cover_has_changed(project: Project) -> None:
    assert project.ran() == ["test_fast"]
    assert project.ran("--changed") == ["test_fast", "test_slow"]  # no commit is known
    project.write("tests/marked.json", json.dumps({"commit": project.git("rev-parse", "HEAD")}))
    project.commit()
    assert project.ran("--changed") == ["test_fast"]
    project.write("package/other.py", "b = 2\n")
    project.commit()
    assert project.ran("--changed") == ["test_fast"]
    project.write("package/slow/deep/a.py", "a = 2\n")  # not committed
    assert project.ran("--changed") == ["test_fast", "test_slow"]
    assert project.ran() == ["test_fast"]
    project.git("checkout", "--quiet", ".")
    project.write("package/slow/new.py", "")  # not known to git
    assert project.ran("--changed") == ["test_fast", "test_slow"]
    (project.folder / "package/slow/new.py").unlink()
    project.write("constraints.txt", "torch==3\n")
    project.commit()
    assert project.ran("--changed") == ["test_fast", "test_slow"]
    project.write("tests/marked.json", json.dumps({"commit": "0" * 40}))
    assert project.ran("--changed") == ["test_fast", "test_slow"]


def test_only_a_green_run_of_all_tests_in_a_clean_checkout_writes_the_commit(project: Project) -> None:
    project.ran()
    project.ran("--changed")
    project.ran("-k", "slow", everything=True)
    project.ran("tests/test_some.py", everything=True)
    assert project.record is None
    project.write("package/other.py", "b = 2\n")
    assert project.ran(everything=True) == ["test_fast", "test_slow"]
    assert project.record is None
    project.write("broken", "yes")
    project.commit()
    assert project.ran(everything=True) == ["test_fast", "test_slow"]
    assert project.record is None
    project.write("broken", "")
    project.write("tests/test_some.py", TESTS.replace("    pass", "    pytest.skip('no browser')"))
    project.commit()
    project.ran(everything=True)
    assert project.record is None
    project.write("tests/test_some.py", TESTS)
    project.commit()
    for _ in range(2):  # the file itself does not make the checkout unclean
        assert project.ran(everything=True) == ["test_fast", "test_slow"]
        assert project.record == project.git("rev-parse", "HEAD")
    project.commit()
    assert project.ran("--changed") == ["test_fast"]
