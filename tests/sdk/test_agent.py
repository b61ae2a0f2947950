"""An SDK agent as a real process, against a stand-in router that speaks CHANNEL.md."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.conftest import Start
from tests.sdk.stand_in import DEADLINE, Notifications, Router
from tests.waiting import until


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """Exit status and what it wrote to stderr."""
    _, stderr = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode is not None
    return process.returncode, stderr.decode()


def next_of(queue: asyncio.Queue[dict[str, Any]]) -> Any:
    """The next line of a kind, within the deadline."""
    return asyncio.wait_for(queue.get(), DEADLINE)


async def writer_of(fifo: Path) -> int:
    """The writing end, once the agent has opened the reading one and blocks on it."""
    opened: list[int] = []

    def open_it() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads yet
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    await until(open_it, DEADLINE, "the agent reads the FIFO")
    return opened[0]


async def test_hello_comes_first_and_ready_after_it(router: Router, heard: Notifications, start: Start) -> None:
    """The first line is hello with our invocation; READY=1 means that messages can be received."""
    await start(ready=False)
    hello = await next_of(router.hellos)
    assert hello == {"protocol": 1, "invocation": "00000000000000a1", "holding": []}
    await heard.word("READY=1")


async def test_a_result_acknowledges(router: Router, start: Start) -> None:
    """What the handler returns is the result; the context tells whose message it is."""
    await start()
    assert await router.result("echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}
    assert await router.result("about", None, "m2", 3) == ["m2", "about", "tester", 3, "c1", "m2"]


async def test_messages_are_typed(router: Router, start: Start) -> None:
    """A pydantic model or a dataclass is built before the handler runs, and its results go out as JSON."""
    await start()
    assert await router.result("order", {"item": "tea"}) == {"item": "tea", "count": 2}
    assert await router.result("point", {"x": 1, "y": 2, "colour": "new"}, "m2") == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("order", {"count": "many"}, "order: data.item: Field required; data.count: Input should be a valid integer"),
        ("point", {"x": "1"}, 'point: data.x: expected an integer, got "1"'),
        ("point", {}, "point: data: missing x"),
        ("refuse", "text", 'refuse: data: expected an object, got "text"'),
        ("unheard", {}, "no handler for the kind 'unheard'; this agent takes: about, block, boom, echo, "),
    ],
)
async def test_a_bad_message_is_refused_for_good(
    router: Router, start: Start, kind: str, data: Any, reason: str
) -> None:
    """The handler is not called, the reason names the field, and nobody delivers it again."""
    await start()
    error = await router.error(kind, data)
    assert error["message"].startswith(reason)
    assert error["data"] == {"retry": False}


async def test_handlers_refuse_and_postpone(router: Router, start: Start) -> None:
    """Refuse ends a message; Retry asks for it again, after the delay that it names."""
    await start()
    refused, postponed = await router.error("refuse", {}), await router.error("later", {})
    assert (refused["message"], refused["data"]) == ("not my job", {"retry": False})
    assert (postponed["message"], postponed["data"]) == ("too early", {"retry": True, "delay": 7})


async def test_an_exception_is_retried_and_logged(router: Router, start: Start) -> None:
    """The router learns the exception, the log gets the traceback, and the agent goes on."""
    process = await start()
    error = await router.error("boom", {})
    assert (error["message"], error["data"]) == ("ZeroDivisionError: boom", {"retry": True})
    assert await router.result("echo", 1, "m2") == 1
    process.terminate()
    _, log = await ended(process)
    assert "Traceback" in log
    assert "ZeroDivisionError: boom" in log


async def test_an_endless_reason_is_cut(router: Router, start: Start) -> None:
    """A reason too long for a line, of characters that UTF-8 cannot hold, still arrives as a retry."""
    await start()
    error = await router.error("shout", 5000)
    assert error["message"].startswith("ValueError: \udcff")
    assert len(error["message"]) == 2000
    assert error["data"] == {"retry": True}


async def test_a_finished_message_sends_nothing(router: Router, start: Start) -> None:
    """A context that outlives its handler says so instead of sending under a message that is done."""
    await start()
    await router.result("keep")
    assert "send with app.send" in await router.result("late_send", None, "m2")
    assert not router.stored


async def test_results_that_cannot_travel_are_refused(router: Router, start: Start) -> None:
    """What JSON or a line cannot hold is a clear refusal, and no retry would help."""
    await start()
    unserialisable, huge = await router.error("unserialisable"), await router.error("huge", 1 << 20)
    assert "unserialisable returned what JSON cannot hold" in unserialisable["message"]
    assert "do not fit a line" in huge["message"]
    assert not unserialisable["data"]["retry"]
    assert not huge["data"]["retry"]


async def test_system_exit_ends_the_process(router: Router, start: Start) -> None:
    """A handler may end its process; the message is then left unanswered for the successor."""
    process = await start()
    router.deliver("leave")
    code, _ = await ended(process)
    assert code == 3


async def test_effects_keep_their_keys_on_a_second_run(router: Router, start: Start) -> None:
    """Each send names its message and a key, so that a handler that runs again after a crash adds nothing."""
    first = await start()
    before = await router.result("sends")
    assert before == ["m1/#1", "m1/#2", "m1/named"]
    first.kill()
    await first.wait()
    await start()
    assert await router.result("sends", None, "m1", 2) == before
    assert len(router.stored) == 3
    assert [params["data"]["n"] for params in router.stored.values()] == [1, 2, 3]


async def test_sending_outside_a_message(router: Router, heard: Notifications, start: Start) -> None:
    """on_start runs connected and before READY; its send carries an id of its own."""
    await start(BOOT="1")
    sent = await next_of(router.sends)
    assert sent["to"] == "registry"
    assert len(sent["id"]) == 32
    assert "delivery" not in sent


async def test_sync_handlers_run_in_a_thread(router: Router, heard: Notifications, start: Start) -> None:
    """A plain def may block for its answers: the loop goes on beating and speaking meanwhile."""
    await start(WATCHDOG_USEC="150000")
    delivery = router.deliver("thread", {"q": 1})
    assert await next_of(router.progress) == {"delivery": delivery, "note": "in a thread"}
    ask = await next_of(router.asks)
    heard.forget()
    for _ in range(3):
        await heard.word("WATCHDOG=1")
    router.reply(ask, 42)
    assert (await router.outcome())["result"] == ["m1/#2", 42, False]


async def test_the_heart_beats_in_time(heard: Notifications, start: Start) -> None:
    """At most half the watchdog period passes between two beats of an idle agent."""
    await start(WATCHDOG_USEC="2000000")
    clock = asyncio.get_running_loop().time
    await heard.word("WATCHDOG=1")
    beats = []
    for _ in range(3):
        begun = clock()
        await heard.word("WATCHDOG=1")
        beats.append(clock() - begun)
    assert max(beats) < 1.0


async def test_a_blocked_loop_stops_beating(
    router: Router, heard: Notifications, start: Start, short_dir: Path
) -> None:
    """The beat comes from the loop that does the work: blocked, it falls silent, and freed it goes on."""
    fifo = short_dir / "fifo"
    os.mkfifo(fifo)
    await start(WATCHDOG_USEC="150000")
    await heard.word("WATCHDOG=1")
    router.deliver("block", str(fifo))
    writer = await writer_of(fifo)
    heard.forget()
    with pytest.raises(TimeoutError):
        await heard.word("WATCHDOG=1", 0.6)
    os.close(writer)
    assert (await router.outcome())["result"] is None
    await heard.word("WATCHDOG=1")


async def test_sigterm_finishes_what_is_in_hand(router: Router, heard: Notifications, start: Start) -> None:
    """STOPPING=1, nothing new is begun, the message in hand gets its result, exit 0."""
    process = await start()
    router.deliver("gate", "work")
    ask = await next_of(router.asks)
    process.terminate()
    assert await heard.word("STOPPING=1") == "STOPPING=1\nSTATUS=draining: 1 in hand"
    router.deliver("echo", "too late", "m2")
    router.reply(ask, "done")
    assert (await router.outcome())["result"] == "done"
    code, _ = await ended(process)
    assert code == 0
    assert router._outcomes.empty()


async def test_sigterm_does_not_wait_for_ever(router: Router, start: Start, short_dir: Path) -> None:
    """Work that does not end within the bound, even in a thread, is left unanswered: the successor gets it."""
    process = await start(DRAIN="0.1")
    router.deliver("thread", {})
    await next_of(router.asks)
    process.terminate()
    code, log = await ended(process)
    assert code == 0
    assert "delivered again" in log
    assert router._outcomes.empty()


async def test_an_idle_agent_leaves_at_once(start: Start) -> None:
    """With nothing in hand SIGTERM and SIGINT end it with exit 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        process = await start()
        process.send_signal(number)
        assert (await ended(process))[0] == 0


async def test_sigterm_before_ready(router: Router, heard: Notifications, start: Start) -> None:
    """An agent whose start is not done stops all the same, and begins no message."""
    router.mute = True
    process = await start(ready=False, BOOT="1")
    await next_of(router.sends)
    process.terminate()
    assert (await ended(process))[0] == 0


async def test_a_router_that_comes_back(router: Router, start: Start, short_dir: Path) -> None:
    """Work goes on without the router; the new hello names it as held, and the result goes over the new connection."""
    await start()
    delivery = router.deliver("gate", "work")
    await next_of(router.asks)
    await router.stop()
    await router.start()
    hello = await next_of(router.hellos)
    assert hello["holding"] == [delivery]
    repeated = await next_of(router.asks)
    assert repeated["params"]["key"] == "#1"
    router.reply(repeated, "late but once")
    outcome = await router.outcome()
    assert (outcome["id"], outcome["result"]) == (delivery, "late but once")
    assert (short_dir / "runs").read_text() == delivery + "\n"


async def test_a_result_waits_for_a_connection(router: Router, start: Start, short_dir: Path) -> None:
    """A result made while the router is away is held, named in hello and sent then."""
    fifo = short_dir / "fifo"
    os.mkfifo(fifo)
    await start()
    delivery = router.deliver("block", str(fifo))
    writer = await writer_of(fifo)
    await router.stop()
    os.close(writer)
    await router.start()
    hello = await next_of(router.hellos)
    assert hello["holding"] == [delivery]
    assert (await router.outcome())["result"] is None


async def test_a_result_that_was_perhaps_not_read_is_repeated(router: Router, start: Start, short_dir: Path) -> None:
    """A router that dies with our result in its socket learns it from its successor's first lines, once more."""
    await start()
    assert await router.result("echo", 1, "m1") == 1
    assert await router.result("echo", 2, "m2") == 2
    await router.stop()
    await router.start()
    assert (await next_of(router.hellos))["holding"] == ["m2.1"]
    outcome = await router.outcome()
    assert (outcome["id"], outcome["result"]) == ("m2.1", 2)
    assert await router.result("echo", 3, "m3") == 3


async def test_an_unanswered_send_is_repeated_with_its_id(router: Router, start: Start) -> None:
    """The router dies between storing and answering: the repeat carries the same key, and is stored once."""
    await start()
    router.mute = True
    router.deliver("sends")
    first = await next_of(router.sends)
    await router.stop()
    router.mute = False
    await router.start()
    assert await next_of(router.sends) == first
    assert (await router.outcome())["result"] == ["m1/#1", "m1/#2", "m1/named"]


async def test_full_and_bus_unavailable_are_waited_for(router: Router, start: Start) -> None:
    """An error with retry_after is the SDK's to repeat; one without is the author's to see."""
    await start()
    router.send_errors = [
        {"code": -32003, "message": "inbox full", "data": {"code": "full", "retry_after": 0.01}},
        {"code": -32004, "message": "no bus", "data": {"code": "bus_unavailable", "retry_after": 0.01}},
    ]
    assert await router.result("try_send", {"to": "writer"}) == "sent"
    keys = [(await next_of(router.sends))["key"] for _ in range(3)]
    assert keys == ["#1", "#1", "#1"]
    router.send_errors = [{"code": -32001, "message": "no such unit", "data": {"code": "no_such_unit"}}]
    assert await router.result("try_send", {"to": "nobody"}, "m2") == "no_such_unit"
    router.send_errors = [{"code": -32003, "message": "full", "data": {"code": "full", "retry_after": 1000}}]
    assert await router.result("try_send", {"to": "writer"}, "m3") == "full"


async def test_a_message_that_comes_again_is_not_worked_on_twice(router: Router, start: Start, short_dir: Path) -> None:
    """In hand: the work answers the newest attempt. Done: the remembered result is repeated."""
    await start()
    router.deliver("gate", "work")
    ask = await next_of(router.asks)
    router.deliver("gate", "work", attempt=2)
    router.say({"id": "ping", "method": "unknown"})
    assert (await router.outcome())["error"]["code"] == -32601
    router.reply(ask, "once")
    assert await router.outcome() == {"jsonrpc": "2.0", "id": "m1.2", "result": "once"}
    assert await router.result("gate", "work", "m1", 3) == "once"
    assert (short_dir / "runs").read_text() == "m1.1\n"
    assert await router.result("echo", "again", "m2") == "again"


async def test_an_id_that_is_chosen_again_is_a_new_message(router: Router, start: Start) -> None:
    """Ids are their senders' choice: another sender, or another day, means another message."""
    await start()
    assert await router.result("echo", 1) == 1
    router.time = "2026-11-22T00:00:00.000Z"
    assert await router.result("echo", 2) == 2


async def test_nonsense_from_the_router_is_survived(router: Router, start: Start) -> None:
    """Lines that are no JSON, no delivery, or notifications of a later version do no harm."""
    await start()
    router.say_raw(b"}{\n[]\n")
    router.say({"method": "unit_changed", "params": {}})
    router.say({"id": "x", "method": "deliver", "params": {"kind": "echo"}})
    assert (await router.outcome())["error"]["code"] == -32602
    assert await router.result("echo", 1) == 1


async def test_news_of_required_units_reach_the_author(router: Router, heard: Notifications, start: Start) -> None:
    """Each in turn; a function that fails costs neither the next news nor the agent."""
    await start()
    router.say({"method": "unit_changed", "params": {"unit": "bad", "state": "gone"}})
    for state in ("gone", "ready"):
        router.say({"method": "unit_changed", "params": {"unit": "db", "state": state}})
    assert await heard.word("STATUS=") == "STATUS=db is gone"
    assert await heard.word("STATUS=") == "STATUS=db is ready"
    assert await router.result("echo", 1) == 1


async def test_an_invocation_that_is_over_ends(router: Router, start: Start) -> None:
    """A hello that is denied means that this process has no business here: it says why and exits 1."""
    router.hello_errors = [{"code": -32002, "message": "invocation is over", "data": {"code": "denied"}}]
    process = await start(ready=False)
    code, log = await ended(process)
    assert code == 1
    assert "agentd.sdk: the router refused this process: invocation is over (denied)" in log
    assert "Traceback" not in log


async def test_a_router_that_is_not_ready_yet(router: Router, heard: Notifications, start: Start) -> None:
    """A hello that is refused for now, or a socket that is not there yet, is tried again."""
    router.hello_errors = [{"code": -32004, "message": "no bus", "data": {"code": "bus_unavailable", "retry_after": 0}}]
    await router.stop()
    await start(ready=False)
    await router.start()
    await next_of(router.hellos)
    await next_of(router.hellos)
    await heard.word("READY=1")
