"""Import every module of mm_rec; print those that need an extra, with what they say. Any other fault fails."""

import importlib
import pkgutil

import mm_rec
from mm_rec.errors import MissingExtraError

for module in pkgutil.walk_packages(mm_rec.__path__, "mm_rec."):
    try:
        importlib.import_module(module.name)
    except MissingExtraError as error:
        print(module.name, error)  # noqa: T201
