"""`make bench [BENCH=supervision[.restart]]`: one JSON line per measure. Exit 0 if every gate held."""

from __future__ import annotations

import argparse
import compileall
import signal
import sys
import traceback
from collections.abc import Callable

import httpx

from chaos.fleet import Broken
from tests.bench import beats, crashloop, hang, output, peers, restart, storm, thousand, tree
from tests.bench.lines import print_line
from tests.fleet import shared_stage

BENCHES: dict[str, dict[str, Callable[[int], bool]]] = {
    "supervision": {
        "restart": restart.run,
        "thousand": thousand.run,
        "beats": beats.run,
        "hang": hang.run,
        "tree": tree.run,
        "output": output.run,
        "storm": storm.run,
        "crashloop": crashloop.run,
        "peers": peers.run,
    },
}


def measured(name: str, run: Callable[[int], bool], count: int) -> bool:
    """One part; whether its gates held. One that breaks is a gate that did not hold, and the others are measured."""
    try:
        return run(count)
    except (Broken, OSError, AssertionError, httpx.HTTPError) as error:
        traceback.print_exc()
        return print_line(name, 0, f"not measured: {error!r}"[:500], None, "is measured", False)


def main() -> int:
    """The program."""
    parts = {f"{bench}.{part}": run for bench, parts in BENCHES.items() for part, run in parts.items()}
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("bench", nargs="*", help=f"default: all of {', '.join(parts)}; or all of {', '.join(BENCHES)}")
    parser.add_argument("--count", type=int, default=200, help="samples of each latency")
    options = parser.parse_args()
    chosen = [name for name in parts if not options.bench or {name, name.partition(".")[0]} & set(options.bench)]
    if not chosen:
        parser.error(f"nothing is called {' or '.join(options.bench)}; there are {', '.join((*BENCHES, *parts))}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" leaves it ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything is cleaned up then too
    compileall.compile_dir("agentd", quiet=2)  # as every installed package is
    with shared_stage():
        held = [measured(name, parts[name], options.count) for name in chosen]  # all, also after one that did not hold
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
