"""Rows of a set on the Hugging Face hub, or of a local copy of it, as a stream that can be resumed."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_rec.errors import ConfigError, DataError, UserError, needs_extra, truncated
from mm_rec.sources.catalogue import CatalogueEntry

if TYPE_CHECKING:
    from datasets import IterableDataset

_TIMEOUT = 30.0  # seconds for the first answer of the hub
_ELSEWHERE = "--local PATH reads a copy in the same layout; HF_ENDPOINT=URL names a mirror of the hub"


@dataclass(slots=True)
class StreamPosition:
    """The position in a stream of rows: their number, the library's own state, and a document begun."""

    rows: int = 0
    pending: str = ""
    state: dict[str, Any] | None = None


def resolve_commit(source: CatalogueEntry, revision: str | None) -> str | None:
    """The commit that a revision of the set is now, so that a later call reads the same files; None off the hub."""
    if source.base is not None:
        return None
    _import_datasets()
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(source.hub, revision=revision, timeout=_TIMEOUT)
        if info.gated:  # its description is public, its files are not
            HfApi().auth_check(source.hub, repo_type="dataset")
        return info.sha
    except _hub_errors() as error:
        raise _user_error(error, source) from error


def open_rows(
    source: CatalogueEntry,
    *,
    language: str | None,
    split: str,
    local: Path | None,
    commit: str | None,
    position: StreamPosition,
) -> IterableDataset:
    """Open the stream of rows at a position; raises DataError or ConfigError with the remedy where it cannot be had."""
    datasets = _import_datasets()
    if local is not None and not local.is_dir():
        raise DataError(
            "--local: there is no such folder; it holds the files as the hub's repository does", local
        )
    if source.layout == "datasets":
        arguments = _repository_arguments(source, language, local, commit)
    else:
        arguments = _data_files_arguments(source, language, split, local, commit)
    try:
        rows: IterableDataset = datasets.load_dataset(**arguments, split=split, streaming=True)
    except _hub_errors() as error:
        raise _user_error(error, source, local) from error
    if position.state is not None:
        rows.load_state_dict(position.state)
    return rows


def iterate_rows(
    rows: IterableDataset, source: CatalogueEntry, position: StreamPosition
) -> Generator[dict[str, Any], None, None]:
    """Yield the rows and keep the position up to date; what fails on the way is raised as a DataError."""
    try:
        with closing(iter(rows)) as stream:
            for row in stream:
                position.rows += 1
                position.state = rows.state_dict()
                yield row
    except UserError:
        raise
    except _hub_errors() as error:
        raise _user_error(error, source, rows=position.rows) from error
    position.state = rows.state_dict()


def _repository_arguments(
    source: CatalogueEntry, language: str | None, local: Path | None, commit: str | None
) -> dict[str, Any]:
    """The arguments for a repository that says itself what its configurations and splits are."""
    config = source.fill(source.config, language)
    if local is None:
        return {"path": source.hub, "name": config, "revision": commit}
    card = local / "README.md"  # names the configurations; without it a folder is one set
    return {"path": str(local), "name": config if card.exists() else None}


def _data_files_arguments(
    source: CatalogueEntry, language: str | None, split: str, local: Path | None, commit: str | None
) -> dict[str, Any]:
    """The arguments for files that are read without the help of their repository."""
    if split != source.split:
        raise ConfigError(f"{source.name} has one split, {source.split!r}; leave --split out")
    files = str(source.fill(source.files, language))
    if local is not None:
        if not list(local.glob(files)):
            raise DataError(f"no file here is called {files}", local)
        base = str(local)
    else:
        base = source.base or f"hf://datasets/{source.hub}@{commit}"
    arguments = {
        "path": "json" if source.layout == "json" else "text",
        "data_files": {split: f"{base}/{files}"},
    }
    if source.layout == "paragraphs":
        arguments["sample_by"] = "paragraph"
    return arguments


def _import_datasets() -> Any:
    """Hugging Face `datasets`, without its progress bars, its chatter and its counting of downloads."""
    with needs_extra("data", "downloading a corpus"):
        import datasets
        import zstandard  # noqa: F401  (datasets reads .zst with it)
    import huggingface_hub.constants

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    return datasets


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors that `datasets` and the hub's client raise when a set cannot be reached, found or read."""
    with needs_extra("data", "downloading a corpus"):
        import zstandard
        from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    damaged = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
    # ValueError: a configuration or a split that is not there, Parquet or text that is none; RuntimeError: a script.
    return (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError, *damaged)


def _user_error(
    error: Exception, source: CatalogueEntry, local: Path | None = None, rows: int | None = None
) -> DataError | ConfigError:
    """Return the error for a person: what failed, why, and what to do."""
    text = str(error)
    where = str(local or source.hub)
    if match := re.match(r"BuilderConfig '(.*?)' not found\. Available: (.*)", text):
        return ConfigError(
            f"{where} has no part called {match[1]!r}; it has {truncated(match[2])}. Check --language"
        )
    if match := re.match(r"Bad split: (.*?)\. Available splits: (.*)", text):
        return ConfigError(
            f"{where} has no split {match[1]!r}; it has {truncated(match[2])}. Choose with --split"
        )
    if "scripts are no longer supported" in text:
        return DataError(
            f"{where} has a loading script, which `datasets` no longer runs. The hub may have made Parquet of it: "
            f"--revision refs/convert/parquet. Otherwise {_ELSEWHERE}"
        )
    if local is not None or rows is not None:
        done = (
            "" if rows is None else f" after row {rows:,}; the finished shards stay, the same command goes on"
        )
        return DataError(f"reading {where} failed ({type(error).__name__}: {truncated(text)}){done}")
    return DataError(f"{_hub_trouble(error, source)} {_ELSEWHERE}")


def _hub_trouble(error: Exception, source: CatalogueEntry) -> str:
    """Explain why the hub did not give the set."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    text = str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        return f"{source.hub} has no such revision; leave --revision out, or choose one of {source.page}/tree/main."
    if isinstance(error, GatedRepoError) or "is a gated dataset" in text:
        return (
            f"{source.hub} is gated. Open {source.page}, log in and accept its terms; then run `hf auth login` "
            "(or set HF_TOKEN) and repeat the command."
        )
    if isinstance(error, RepositoryNotFoundError) or "doesn't exist on the Hub" in text:
        return (
            f"the hub has no set {source.hub}, or only for those who are let in: see {source.page}, and "
            "`hf auth login` if it is yours."
        )
    if isinstance(error, (ConnectionError, TimeoutError, httpx.TransportError)):
        return f"the hub cannot be reached ({truncated(text)}). Check the connection, and HF_HUB_OFFLINE."
    if isinstance(error, FileNotFoundError):
        return (
            f"{source.hub} holds no such files ({truncated(text)}); they may have moved: see {source.page}."
        )
    answer = f"HTTP status {status}" if status else type(error).__name__
    return f"the hub did not give {source.hub} ({answer}: {truncated(text)}); try again later."
