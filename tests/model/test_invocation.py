"""Invocation ids only grow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.model.invocation import mint


def test_sixteen_hex_digits_of_the_wall_clock() -> None:
    """An id is fixed-width, so that comparing texts compares ages."""
    assert f"{1_763_690_000_000 << 20:016x}" == mint(1_763_690_000_000, None)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=1 << 43), min_size=2, max_size=30))
def test_ids_grow_whatever_the_clock_does(walls: list[int]) -> None:
    """Also when the clock stands still or steps back, each id is greater than the one before."""
    floor: str | None = None
    for wall in walls:
        fresh = mint(wall, floor)
        assert len(fresh) == 16
        assert floor is None or fresh > floor
        floor = fresh


def test_more_ids_in_a_millisecond_than_the_counter_holds() -> None:
    """A full counter carries into the milliseconds instead of repeating."""
    assert mint(5, f"{(6 << 20) - 1:016x}") == f"{6 << 20:016x}"


def test_no_id_is_left() -> None:
    """The end of the numbers is an error, not a repetition."""
    with pytest.raises(OverflowError, match="no invocation id is left"):
        mint(0, "f" * 16)
