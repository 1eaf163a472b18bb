"""Models of the Hugging Face hub by name: fetched once, and what to do where they cannot be had."""

from __future__ import annotations

import re
from pathlib import Path

from mm_rec.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OWN = ("runs", "quickstart")  # where mmrec itself writes models: nobody means an owner of the hub's
_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]  # no pickles, no code


def is_hub_name(name: str) -> bool:
    """Return whether this may be a model of the hub, "owner/name": its owner is no folder here."""
    owner = name.split("/", maxsplit=1)[0]
    return _NAME.fullmatch(name) is not None and owner not in _OWN and not Path(owner).exists()


def fetch_model(name: str) -> Path:
    """The folder of a model of the hub, fetched unless it is here already.

    Raises CheckpointError that says what to do: the page where access is asked for, how to log in.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if name.lower().endswith("gguf"):
        raise CheckpointError(
            f"{name}: GGUF is a format for inference. Name the model that it was made from, in Transformers' format"
        )
    page = f"https://huggingface.co/{name}"
    login = (
        "log in: `hf auth login`, with a token of the kind Read from https://huggingface.co/settings/tokens"
    )
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name}: its owners decide who may have it (401 or 403). Agree to its terms on {page}, then {login}"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: there is no such folder here and no such model on the hub, or it is private (401). Check the "
            f"name on {page}; for a private one {login}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{name}: there is no such folder here, and the hub cannot be reached. Check the name; with a network the "
            f"model is fetched from {page}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{name}: it could not be fetched from {page} ({error})") from error
