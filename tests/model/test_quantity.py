"""Amounts are read as people write them, refused in words, and shown so that people can read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentd.model import quantity
from agentd.model.quantity import Allowance


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (quantity.duration, "90s", 90.0),
        (quantity.duration, "1m30s", 90.0),
        (quantity.duration, "1h 30m", 5400.0),
        (quantity.duration, "500ms", 0.5),
        (quantity.duration, 2, 2.0),
        (quantity.size, "512M", 512 << 20),
        (quantity.size, "64KiB", 64 << 10),
        (quantity.size, "1.5g", 3 << 29),
        (quantity.size, 7, 7),
        (quantity.cpu, "50%", 0.5),
        (quantity.cpu, 1.5, 1.5),
        (quantity.cpu, "2", 2.0),
        (quantity.tokens, "50k", 50_000),
        (quantity.tokens, "1_000", 1_000),
        (quantity.token_allowance, "200k/day", Allowance(200_000, "day")),
        (quantity.token_allowance, 5, Allowance(5, "lifetime")),
        (quantity.usd, "$5.000000001", 5_000_000_001),
        (quantity.usd, 0.1, 100_000_000),
        (quantity.usd_allowance, "5.00/month", Allowance(5_000_000_000, "month")),
    ],
)
def test_amounts_are_read(read: Callable[[Any], object], text: object, value: object) -> None:
    """Each way to write an amount."""
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (
            quantity.duration,
            ["", "5", "5 fortnights", "-1s", "1s2", True, -1, float("nan"), float("inf"), ["1s"], None],
        ),
        (quantity.size, ["", "M", "5 cats", True, -1, 1.5, [1], None]),
        (quantity.cpu, ["", "0%", 0, -1, "much", True, float("nan"), 5000, ["1"], None]),
        (quantity.tokens, ["", "k", "5 cats", True, -1, 1.5, None]),
        (quantity.token_allowance, ["5k/fortnight", "x/day", True, -1, 1.5, None]),
        (quantity.usd, ["", "x", "-1", "nan", "inf"]),
        (quantity.usd_allowance, ["5/fortnight", "x/day"]),
    ],
)
def test_nonsense_is_refused(read: Callable[[Any], object], words: list[object]) -> None:
    """Whatever stands in the file, the answer is a ValueError with a sentence, never another error."""
    for word in words:
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            read(word)


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (quantity.show_duration, 0.35, "350ms"),
        (quantity.show_duration, 0.9999, "1s"),
        (quantity.show_duration, 59.9999, "1m00s"),
        (quantity.show_duration, 3725, "1h02m"),
        (quantity.show_duration, 90_000, "1d01h"),
        (quantity.show_size, 536_870_912, "512M"),
        (quantity.show_size, 1_610_612_736, "1.5G"),
        (quantity.show_size, 1_048_575, "1.0M"),
        (quantity.show_size, 3 << 40, "3.0T"),
        (quantity.show_count, 999, "999"),
        (quantity.show_count, 1234, "1.2k"),
        (quantity.show_count, 999_999, "1.0M"),
        (quantity.show_count, 2_000_000, "2M"),
        (quantity.show_count, 3e9, "3.0B"),
    ],
)
def test_amounts_are_shown(show: Callable[[float], str], value: float, text: str) -> None:
    """Short, and never with a number that should have been carried."""
    assert show(value) == text
