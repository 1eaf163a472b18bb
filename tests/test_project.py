"""The project itself: every module imports, the layers hold, and the command answers at once."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import mm_rec

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(mm_rec.__path__, "mm_rec."))
HEAVY = ("torch", "transformers", "numpy", "matplotlib")
HELP = "from mm_rec.cli.main import run; status = run({arguments!r})"


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_every_folder_of_the_package_is_a_package() -> None:
    """A folder without __init__.py would be missing from the modules above, and from what is installed."""
    folders = {path.parent for path in (ROOT / "mm_rec").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_init_files_of_sub_packages_are_empty() -> None:
    """Import cycles come in through re-exports; a module is imported by its own name."""
    inits = (ROOT / "mm_rec").glob("*/**/__init__.py")
    assert [str(path) for path in inits if path.read_text("utf-8").strip()] == []


def _public_classes(path: Path) -> list[str]:
    body = ast.parse(path.read_text("utf-8")).body
    return [node.name for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def test_no_two_public_classes_have_one_name() -> None:
    """One word for one thing: who looks for a class finds one."""
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "mm_rec").rglob("*.py")):
        for name in _public_classes(path):
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_part_of_the_package_holds_more_than_its_share() -> None:
    """15 % of the lines at most: a larger room is two rooms."""
    lines = {
        path: len(path.read_text("utf-8").splitlines()) for path in sorted((ROOT / "mm_rec").rglob("*.py"))
    }
    rooms: dict[str, int] = {}
    for path, count in lines.items():
        room = path.relative_to(ROOT / "mm_rec").parts[0]
        rooms[room] = rooms.get(room, 0) + count
    whole = sum(lines.values())
    assert {room: count / whole for room, count in rooms.items() if count > 0.15 * whole} == {}


def test_layers_import_only_layers_below() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_model_imports_only_what_travels_with_the_weights() -> None:
    """A model folder is opened where mm_rec is not installed; the rule of the layers cannot see `import mm_rec`."""
    allowed = {"torch", "transformers", "huggingface_hub", "safetensors", *sys.stdlib_module_names}
    foreign = []
    for path in (ROOT / "mm_rec" / "models" / "mmrec").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level != 1:
                names = ["." * node.level + (node.module or "")]
            foreign += [f"{path.name}: {name}" for name in names if name.split(".")[0] not in allowed]
    assert foreign == []


def _groups() -> list[list[str]]:
    """The arguments that show the help of `mmrec` and of each of its groups and commands."""
    from typer.main import get_command

    from mm_rec.cli.main import app

    names = sorted(get_command(app).list_commands(None))  # type: ignore[attr-defined]
    return [["--help"], *([name, "--help"] for name in names)]


@pytest.mark.parametrize("arguments", _groups(), ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        HELP.format(arguments=arguments)
        + f"; import sys; print([n for n in {HEAVY} if n in sys.modules], status)"
    )
    result = _python(code)
    assert result.stdout.splitlines()[-1] == "[] 0", result.stdout + result.stderr


def _seconds(code: str) -> float:
    """The processor's time that Python takes for some code, at best: a busy machine does not count."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = _python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert result.returncode == 0, result.stderr
    return min(taken)


def test_help_answers_at_once() -> None:
    """Half a second where Python takes a tenth for the libraries that a command line needs; torch would take two."""
    assert _seconds(HELP.format(arguments=["--help"])) < 5 * _seconds("import rich.table, typer")
