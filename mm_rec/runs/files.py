"""Files that are whole or absent: atomic writing, content hashes, free space."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_rec.errors import DataError
from mm_rec.strict_parsing import DuplicateKey, parse_json


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success flush it to disk and rename it, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    remove(temporary)
    try:
        yield temporary
        flush(temporary)
        old = temporary.with_suffix(".old.tmp")
        if path.is_dir():  # moved away and not deleted in place: what is half deleted must never look whole
            path.replace(old)
        temporary.replace(path)
        remove(old)
        _sync(path.parent)
    except OSError as error:
        remove(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                "the disk is full; nothing was written. Free some space and run it again", path
            ) from error
        raise
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers of `atomic_path` left in a folder."""
    for path in folder.glob(".*.tmp"):
        remove(path)


def flush(path: Path) -> None:
    """Force a file, or a folder and all files in it, onto the disk."""
    for item in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _sync(item)


def _sync(path: Path) -> None:
    """Force one file's bytes, or one folder's list of names, onto the disk."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return  # it opens no folder, and keeps the names itself
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # it flushes only what may be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, its lines ended by "\\n" on every system."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, with letters as they are."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises DataError where it is missing or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("there is no such file", path) from error
    except DuplicateKey as error:
        raise DataError(str(error), path) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not a JSON file ({error})", path) from error


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path) -> str:
    """Return the SHA-256 over the names and contents of all files of a folder, in sorted order."""
    digest = hashlib.sha256()
    for item in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{item.relative_to(path).as_posix()}\0{hash_file(item)}\0".encode())
    return digest.hexdigest()


def require_free_space(path: Path, size: int, purpose: str) -> None:
    """Raise DataError unless the disk that holds `path` has `size` bytes free."""
    parent = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise DataError(
            f"{purpose} needs about {size / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free. "
            "Free some space or choose a folder on another disk",
            path,
        )
