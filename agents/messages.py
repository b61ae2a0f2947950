"""What the pipeline's agents say to each other: researcher → writer → reviewer.

A handler that is annotated with one of these never sees a message of another shape: the SDK refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Text:
    """To the researcher (kind ``text``): something to read. ``reply_to`` names a unit that wants the result too."""

    text: str
    title: str = "Untitled"
    reply_to: str | None = None


@dataclass
class Note:
    """What one section says."""

    heading: str
    summary: str


@dataclass
class Notes:
    """To the writer (kind ``notes``)."""

    title: str
    notes: list[Note]
    reply_to: str | None = None


@dataclass
class Draft:
    """To the reviewer (kind ``draft``)."""

    title: str
    paragraphs: list[str]
    reply_to: str | None = None
