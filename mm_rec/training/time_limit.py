"""A run that was given minutes: how many steps it takes follows the speed that it turns out to have.

A run begins with the steps that a measurement before it promised. Whenever an eighth of what is left has been done, the
time that this took says how many steps still fit, with the last validation and saving; the schedule of the learning
rate then ends with them. So a run on a machine that is shared, or was measured in a bad moment, ends in time, and with
a rate that has fallen as planned.

Each change is in the run's log with its step, and a resumed run makes the changes that its checkpoint does not know
again, at the same steps: what is done again is what was done before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PART = 8  # of what is left between two looks
_SLACK = 0.01  # of all steps: less is no reason to change a plan


class TimeLimit:
    """A limit on training time, in seconds from the first step; `least` and `most` steps whatever the time is."""

    def __init__(self, seconds: float, least: int = 1, most: int | None = None) -> None:
        self.seconds, self.least, self.most = seconds, least, most
        self._step, self._at = 0, 0.0  # of the last look
        # Changes of before an interruption, by the step after which they were made.
        self.made: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The limits; how fast the run goes is seen again."""
        return {"seconds": self.seconds, "least": self.least, "most": self.most}

    def resume(self, step: int, seconds: float, made: Mapping[int, int]) -> None:
        """Go on after `step` steps and `seconds`; `made` are the changes that the run's log has after them."""
        self._step, self._at, self.made = step, seconds, dict(made)

    def steps(self, step: int, planned: int, seconds: float, closing: float) -> int:
        """The steps to take in all, seen after `step` of `planned` steps and `seconds` seconds.

        `closing`: seconds that the last validation and saving take.
        """
        if self.made:
            if step >= max(self.made):
                self._step, self._at = step, seconds
            return self.made.pop(step, planned)
        done = step - self._step
        if step < planned and done < max(1, (planned - self._step) // _PART):
            return planned
        a_step = (seconds - self._at) / done
        self._step, self._at = step, seconds
        left = max(0.0, self.seconds - seconds - closing)
        fitting = step + int(left / a_step) if a_step > 0 else planned
        fitting = max(fitting, self.least)
        fitting = fitting if self.most is None else min(fitting, max(step, self.most))
        return fitting if abs(fitting - planned) > _SLACK * planned else planned
