"""Bodies and streams: what the meter reads of them, and the few bytes that it changes."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.gateway import dryrun
from agentd.gateway.body import PER_ATTACHMENT, PER_MESSAGE, parse
from agentd.gateway.stream import SseMeter, Usage, usage_in
from tests.gateway.rig import ask, chunk, usage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
METERED = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"}
EXTRA = st.dictionaries(st.text().filter(lambda key: key.casefold() not in METERED), JSON, max_size=4)
CAPS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.none() | st.integers(1, 9999),
        "max_completion_tokens": st.integers(1, 9999),
        "stream": st.booleans(),
        "stream_options": st.none() | st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    },
)


@settings(max_examples=200, deadline=None)
@given(EXTRA, CAPS, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_only_the_clamp_and_the_usage_option_change(
    extra: dict[str, Any], caps: dict[str, Any], indent: int | str | None, ascii_only: bool
) -> None:
    """Whatever the body looks like: upstream reads the same request, with the clamp under a key that it obeys."""
    asked = {**extra, **ask("hé"), **caps}
    text = json.dumps(asked, indent=indent, ensure_ascii=ascii_only)
    chat = parse(text.encode("utf-8", "surrogatepass") if ascii_only else text.encode("utf-8", "replace"))
    if not ascii_only:
        asked = json.loads(text.encode("utf-8", "replace"))
    sent = json.loads(chat.upstream(77, name="max_tokens"))
    named = [key for key in ("max_tokens", "max_completion_tokens") if asked.get(key) is not None]
    changed = dict.fromkeys(named or ["max_tokens"], 77)
    expected: dict[str, Any] = {**asked, **changed}
    if asked.get("stream") and not (asked.get("stream_options") or {}).get("include_usage"):
        expected["stream_options"] = {**(asked.get("stream_options") or {}), "include_usage": True}
    assert sent == expected


def test_bytes_that_are_not_metered_pass_untouched() -> None:
    """Spaces, number formats and escapes are the client's own."""
    body = b'{"x" : 1.0e2,"model":"m", "u":"\\u00e9\xc3\xa9" ,"max_tokens":  50 ,"messages":[]}\n'
    assert parse(body).upstream(50, name="max_tokens") == body


def test_the_input_bound_counts_bytes_messages_and_attachments() -> None:
    """A token is at least a byte; messages and attachments cost more than their bytes."""
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "https://example.org/i.png"}}]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}, {"role": "user"}]}).encode()
    assert parse(body).tokens_in == len(body) + 2 * PER_MESSAGE + PER_ATTACHMENT


EVENTS = [chunk("a"), chunk('", "usage": null'), b": comment\r\n\r\n", chunk("b"), chunk(None, usage(7, 3))]
STREAM = b"".join([*EVENTS, b"data: [DONE]\n\n"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int], strip: bool) -> None:
    """Pieces of any size give the same bytes and the same usage."""
    edges = [0, *sorted(cuts), len(STREAM)]
    meter = SseMeter(strip=strip)
    out = b"".join(meter.feed(STREAM[a:b]) for a, b in itertools.pairwise(edges)) + meter.end()
    assert meter.usage == Usage(7, 3)
    assert meter.final
    if not strip:
        assert out == STREAM
    else:
        texts = [json.loads(line[6:]) for line in out.splitlines() if line.startswith(b"data: {")]
        assert [c["choices"][0]["delta"]["content"] for c in texts] == ["a", '", "usage": null', "b"]
        assert all("usage" not in c for c in texts)
        assert out.endswith(b"data: [DONE]\n\n")


@given(JSON)
def test_a_usage_that_makes_no_sense_is_none(value: Any) -> None:
    """Only two whole numbers that are not negative are a usage; anything else charges the hold."""
    for answer in (value, {"usage": value}, {"usage": {"prompt_tokens": value, "completion_tokens": -1}}):
        assert usage_in(json.dumps(answer).encode()) is None
    assert usage_in(b"not json") is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=4), st.integers(1, 60), st.integers(1, 3), st.booleans())
def test_the_dry_run_model_never_passes_its_hold(texts: list[str], each: int, choices: int, long: bool) -> None:
    """It is an honest upstream: input within the bound, output within the clamp."""
    messages = [{"role": "user", "content": text} for text in texts]
    model = "dry-run-long" if long else "dry-run"
    chat = parse(json.dumps({"model": model, "messages": messages, "n": choices}).encode())
    counted = usage_in(dryrun.whole(chat, each))
    assert counted is not None
    assert counted.tokens_in <= chat.tokens_in
    assert counted.tokens_out <= each * choices
