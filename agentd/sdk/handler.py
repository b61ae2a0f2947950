"""A handler: an author's function, the kind that it takes, and what its annotation asks of the data.

Knows functions and types. Knows no message beyond its kind and data.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import typing
from collections.abc import Callable
from typing import Any

from agentd.sdk.context import Context, SyncContext
from agentd.sdk.errors import Refuse
from agentd.sdk.typed import Convert, Mismatch, converter, to_json


class Handler:
    """Made at registration: a function that cannot be called or checked is an error there."""

    def __init__(self, kind: str, function: Callable[..., Any]) -> None:
        self.kind, self.function = kind, function
        self._waits = inspect.iscoroutinefunction(function)
        self._convert: Convert = converter(_data_hint(function))

    async def __call__(self, context: Context, data: Any) -> Any:
        """Check the data, call the function, and return its result as JSON. Raises Refuse for data of a wrong type."""
        try:
            value = self._convert(data, "data")
        except Mismatch as error:
            raise Refuse(f"{context.message.kind}: {error}") from error
        if self._waits:
            result = await self.function(context, value)
        else:
            result = await in_thread(self.function, SyncContext(context, asyncio.get_running_loop()), value)
        try:
            return to_json(result)
        except TypeError as error:
            raise Refuse(f"{name_of(self.function)} returned what JSON cannot hold: {error}") from error


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking function in a thread of its own, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = context.run(function, *args), None
        except BaseException as error:  # noqa: BLE001 - the root of a thread; raised again where it is awaited
            outcome = None, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, name=name_of(function), daemon=True).start()
    return await done


def name_of(function: Callable[..., Any]) -> str:
    """Its name, or what there is instead: partials and callable objects have none."""
    return str(getattr(function, "__name__", function))


def _data_hint(function: Callable[..., Any]) -> Any:
    """The annotation of the second parameter; Any if there is none."""
    names = list(inspect.signature(function).parameters)
    if len(names) != 2:
        raise TypeError(f"{name_of(function)}{inspect.signature(function)}: a handler takes (ctx, data)")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise TypeError(
            f"{name_of(function)}: its annotations cannot be read ({error}); define the types at module level, "
            f"above the handler"
        ) from error
    return hints.get(names[1], Any)
