"""What an installation brings: a light base, and optional parts that are asked for by name where they are missing."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mm_rec.errors import MissingExtraError, needs_extra

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
MOST_PACKAGES = 66
# Modules whose classes are those of an optional library: they can only be imported with it, and say so.
OF_AN_EXTRA = {"mm_rec.cleaning.cluster": "cluster", "mm_rec.evaluation.lm_eval_adapter": "eval"}
# What the CUDA build of PyTorch brings with it; README says how to get the CPU build.
OF_A_GPU = re.compile(r"(nvidia|cuda)-|triton$")


def names(
    requirements: list[str], extras: frozenset[str] = frozenset()
) -> Iterator[tuple[str, frozenset[str]]]:
    """The packages that hold here, with the extras that are asked of them."""
    for requirement in map(Requirement, requirements):
        environments = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


@cache
def base_packages() -> frozenset[str]:
    """All packages that `pip install mm-rec` brings, by what the installed ones say that they need."""
    found, waiting = set[tuple[str, frozenset[str]]](), list(names(PROJECT["dependencies"]))
    while waiting:
        package, extras = waiting.pop()
        if (package, extras) not in found and not OF_A_GPU.match(package):
            found.add((package, extras))
            waiting += names(importlib.metadata.requires(package) or [], extras)
    return frozenset(package for package, _ in found)


@cache
def imports_of(packages: frozenset[str]) -> frozenset[str]:
    """The modules that packages bring."""
    brought = importlib.metadata.packages_distributions()
    return frozenset(
        module for module, owners in brought.items() if packages & set(map(canonicalize_name, owners))
    )


def test_the_base_is_small() -> None:
    packages = base_packages() | {"mm-rec"}
    assert {"torch", "fastapi", "sympy"} <= packages, "what is counted is what is installed"
    assert len(packages) <= MOST_PACKAGES, sorted(packages)


Nodes = tuple[ast.AST, ...]


def optional_imports(tree: ast.AST, inside: Nodes = ()) -> Iterator[tuple[str, ast.stmt, Nodes]]:
    """Imports of packages that are neither Python's nor the base's: (package, statement, what it is inside of)."""
    for node in ast.iter_child_nodes(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        for module in {module.split(".")[0] for module in modules}:
            if module not in {"mm_rec", *sys.stdlib_module_names, *imports_of(base_packages())}:
                assert isinstance(node, ast.stmt)
                yield module, node, inside
        yield from optional_imports(node, (*inside, node))


def named_extras(inside: Nodes) -> list[str]:
    """The extras that `with needs_extra("…", …)` names around a statement."""
    calls = [item.context_expr for node in inside if isinstance(node, ast.With) for item in node.items]
    return [
        call.args[0].value
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "needs_extra"
        if isinstance(call.args[0], ast.Constant)
    ]


def test_what_is_optional_is_imported_where_it_is_used_and_asked_for_by_name() -> None:
    wrong, seen = [], set[str]()
    for path in (ROOT / "mm_rec").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for module, node, inside in optional_imports(ast.parse(path.read_text("utf-8"))):
            if any(isinstance(one, ast.If) and "TYPE_CHECKING" in ast.dump(one.test) for one in inside):
                continue
            seen.add(module)
            named = named_extras(inside)
            brings = frozenset(
                package for extra in named for package, _ in names(EXTRAS[extra]) if package != "mm-rec"
            )
            in_function = any(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in inside)
            its_own = name in OF_AN_EXTRA
            if its_own and in_function and not named:
                continue  # cannot be reached without the extra
            if not (in_function or its_own) or module not in imports_of(brings):
                wrong.append(f"{path}:{node.lineno}: {module} (named: {named or 'nothing'})")
    assert wrong == []
    assert {"pyarrow", "openai", "tiktoken", "datatrove"} <= seen, "the walk finds them"


def test_every_extra_that_a_text_names_is_there_and_the_readmes_name_all() -> None:
    texts = [ROOT / "README.md", ROOT / "README.tr.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]
    for folder in ("mm_rec", "docs", "bench", "recipes"):
        texts += [path for suffix in ("py", "md", "yaml") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    unknown = {
        f"{path}: {extra}"
        for path in texts
        for extras in re.findall(r"mm-rec\[([\w,-]+)\]|needs_extra\(\"([\w-]+)\"", path.read_text("utf-8"))
        for extra in "".join(extras).split(",")
        if extra not in EXTRAS
    }
    assert unknown == set()
    for readme in texts[:2]:
        named = re.findall(r"^\| `([\w-]+)` \|", readme.read_text("utf-8"), re.MULTILINE)
        assert sorted(named) == sorted(EXTRAS), readme


@pytest.mark.parametrize(
    ("found", "command"),
    [
        (Path(sys.executable).with_name("pip"), "them: pip"),
        (None, f"them: {sys.executable} -m pip"),
        (Path("/another/bin/pip"), f"them: {sys.executable} -m pip"),
    ],
)
def test_the_pip_that_is_named_is_that_of_this_python(
    found: Path | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: found)
    message = f"reading needs optional packages. Install {command} install 'mm-rec[data]'"
    with pytest.raises(MissingExtraError, match=re.escape(message)), needs_extra("data", "reading"):
        raise ModuleNotFoundError


def base_folder(folder: Path) -> Path:
    """A folder that holds what the base brings and nothing else, as links."""
    folder.mkdir()
    for package in base_packages():
        for file in importlib.metadata.files(package) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder


def run_with_the_base(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the tests in an empty folder, where nothing but the base can be imported."""
    work = folder / "work"
    work.mkdir()
    environment["PYTHONPATH"] = os.pathsep.join([str(base_folder(folder / "base")), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-S", ROOT / "tests" / script], cwd=work, env=os.environ | environment,
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip


def test_every_module_imports_with_the_base_alone(tmp_path: Path) -> None:
    done = run_with_the_base("import_all.py", tmp_path)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said.keys() == OF_AN_EXTRA.keys()
    for module, extra in OF_AN_EXTRA.items():
        assert f"install 'mm-rec[{extra}]'" in said[module]


@pytest.mark.skipif(sys.platform != "linux", reason="Windows is played on Linux, with /proc and fcntl")
def test_every_module_imports_and_text_becomes_answers_as_on_windows(tmp_path: Path) -> None:
    """No compiler, an encoding for files and another for the screen, neither of them UTF-8."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "cp1254"}
    other = {**plain, "PATH": "/nowhere", "OMP_NUM_THREADS": "1"}
    done = run_with_the_base("as_on_windows.py", tmp_path, **other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "the kernels are not built on Windows" in done.stderr
        and "runs/sft: finished, step 4 of 4" in done.stdout
    )
    assert b"\r" not in (tmp_path / "work" / "runs" / "sft" / "recipe.yaml").read_bytes()
