"""Text on a terminal."""

from __future__ import annotations

import pytest

from agentd.ctl import figures
from agentd.ctl.paint import Cleaner, cells, clip, coloured, harmless


def test_harmless_drops_colours_and_shows_the_rest() -> None:
    """Colours vanish; what moves the cursor, sets the title or turns the text around becomes visible."""
    assert harmless("\x1b[1;31mred\x1b[0m\tok\n") == "red\tok\n"
    assert harmless("\x1b]52;c;cm0=\x07\x9b2J\r\u202e") == "\\x1b]52;c;cm0=\\x07\\x9b2J\\x0d\\u202e"


@pytest.mark.parametrize("cut", range(1, 22))
def test_a_stream_cut_anywhere_shows_the_same(cut: int) -> None:
    """Chunk borders inside an escape sequence or a UTF-8 character change nothing."""
    text = "ä\x1b[31mé\x1b[0m\r\n\x1b]0;x".encode()
    cleaner = Cleaner()
    shown = cleaner.feed(text[:cut]) + cleaner.feed(text[cut:]) + cleaner.feed(b"", final=True)
    assert shown == "äé\n\\x1b]0;x"


def test_clip_counts_columns() -> None:
    """A wide character takes two columns; what is cut ends in an ellipsis."""
    assert cells("日本") == 4
    assert clip("日本語", 5) == "日本…"
    assert clip("abcdef", 4) == "abc…"
    assert clip("abcd", 4) == "abcd"


def test_no_color_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is respected even where colour is forced."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "<1s"),
        (4.9, "4s"),
        (190, "3m10s"),
        (300, "5m"),
        (1799, "29m"),
        (8040, "2h14m"),
        (50_000, "13h"),
        (259_200, "3d"),
        (90_000, "1d01h"),
        (900_000, "10d"),
    ],
)
def test_spans_are_one_word(seconds: float, text: str) -> None:
    """Durations say as much as a person needs."""
    assert figures.span(seconds) == text
