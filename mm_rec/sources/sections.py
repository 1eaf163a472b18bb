"""How files of text are cut into documents."""

from __future__ import annotations

from typing import Literal

DocumentsRule = Literal["file", "blank-line", "line"]
