"""Formats counts and lists as English text."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: float, one: str, many: str = "") -> str:
    """Formats a number with its noun: 1 head, 2 heads; `many` is an irregular plural."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Joins words as "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
