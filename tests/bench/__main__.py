"""`make bench [BENCH=supervision]`: one JSON line per measure. Exit 0 if every target was met."""

from __future__ import annotations

import argparse
import sys

from tests.bench import supervision

BENCHES = {"supervision": supervision.run}


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("bench", nargs="?", choices=sorted(BENCHES), help="default: all")
    parser.add_argument("--count", type=int, default=200, help="samples of each latency")
    options = parser.parse_args()
    names = [options.bench] if options.bench else sorted(BENCHES)
    held = [BENCHES[name](options) for name in names]  # all of them, also after one that did not hold
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
