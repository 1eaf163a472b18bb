"""The metrics of a run: one JSON object a line, in order of steps, also across resumes.

Only a change by the control file (`runs/control.py`) or of the number of steps (`training/time_limit.py`) may stand
before lines of earlier steps: a run that was killed and goes on from a checkpoint before it has yet to make it again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mm_rec.errors import needs_extra
from mm_rec.runs.files import write_text

METRICS_FILE = "metrics.jsonl"
CONTROL_EVENT = "control"  # the event of a change by the control file
PLAN_EVENT = "planned"  # the event of a change of the number of steps, by the time that is left


class MetricsLog:
    """Appends records to `metrics.jsonl`, and to TensorBoard where asked."""

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._board = None if tensorboard is None else _summary_writer(tensorboard)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one record: `kind` is train, validation or event."""
        record = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, which a resumed run logs again; the changes that it must repeat stay."""
        kept = [
            record
            for record in read_metrics(self.path)
            if record["step"] <= step or record.get("event") in (CONTROL_EVENT, PLAN_EVENT)
        ]
        write_text(self.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return every whole record of a metrics file; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _summary_writer(folder: Path) -> Any:
    with needs_extra("tensorboard", "TensorBoard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder))
