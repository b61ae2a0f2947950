"""What the desk needs of the outside, whether that is the router's channel or a terminal."""

from __future__ import annotations

from typing import Any, Protocol

Params = dict[str, Any]
Answer = dict[str, Any]
"""Either ``{"result": …}`` or ``{"error": {…}}``."""


class Link(Protocol):
    """One way to the fleet."""

    async def call(self, method: str, params: Params, timeout: float) -> Any:
        """Ask and wait; raises CallError. Over lost connections it is repeated, always with the same effect id."""
        ...

    def answer(self, delivery: str, answer: Answer) -> bool:
        """Hand over the outcome of a delivery; False while there is no connection."""
        ...

    def tell(self, method: str, params: Params) -> bool:
        """A notification; False while there is no connection."""
        ...


class Inbox(Protocol):
    """What a link needs of the desk."""

    def holding(self) -> list[str]:
        """Delivery ids that this process still works on or has an outcome for."""
        ...

    def take(self, params: Params) -> None:
        """A delivery arrived. Raises KeyError, TypeError or ValueError if it is none."""
        ...

    def told(self, unit: str, state: str, params: Params) -> None:
        """A unit that this one requires or has spawned is ``ready`` or ``gone``; a spawned one also ``ended``."""
        ...

    def linked(self, in_flight: int) -> None:
        """A connection stands, and may deliver ``in_flight`` messages at once: outcomes that waited for it can go."""
        ...
