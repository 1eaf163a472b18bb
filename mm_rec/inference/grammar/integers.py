"""Integers of a range as a pattern."""

from __future__ import annotations


def integer_pattern(least: int | None, most: int | None) -> str | None:
    """The pattern of the integers from one to another, both taken, as JSON writes them; None for no bound, or no
    integer at all.
    """
    if least is not None and most is not None and least > most:
        return None
    parts = []
    if most is None or most >= 0:
        parts.append(_natural_pattern(max(least or 0, 0), most))
    if least is None or least < 0:
        parts.append(
            "-"
            + _natural_pattern(max(-most if most is not None else 1, 1), None if least is None else -least)
        )
    return "|".join(f"(?:{part})" for part in parts)


def _natural_pattern(least: int, most: int | None) -> str:
    """The same for integers that are not negative."""
    if most is None:
        digits = len(str(least))
        larger = f"[1-9][0-9]{{{digits},}}"
        return f"(?:{larger}|{_natural_pattern(least, 10**digits - 1)})"
    low, high = str(least), str(most)
    parts = []
    for length in range(len(low), len(high) + 1):
        begin = low if length == len(low) else "1" + "0" * (length - 1)
        end = high if length == len(high) else "9" * length
        parts.append(_same_length(begin, end))
    return "(?:" + "|".join(parts) + ")"


def _same_length(low: str, high: str) -> str:
    """The digits between two numbers of the same length."""
    if not low:
        return ""
    if low == "0" * len(low) and high == "9" * len(high):
        return f"[0-9]{{{len(low)}}}"
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    nines, zeros = "9" * (len(low) - 1), "0" * (len(low) - 1)
    parts = [low[0] + _same_length(low[1:], nines)]
    if int(low[0]) + 1 <= int(high[0]) - 1:
        between = f"[{int(low[0]) + 1}-{int(high[0]) - 1}]"
        parts.append(between + (f"[0-9]{{{len(zeros)}}}" if zeros else ""))
    parts.append(high[0] + _same_length(zeros, high[1:]))
    return "(?:" + "|".join(parts) + ")"
