"""The reference for output: a bare copy from a pipe into a file.

    python tests/bench/reference_copy.py FILE -- ARGV…

It prints `copied UNIXTIME`, the moment at which all had been written.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    """Copy."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writer, 1)
        os.close(reader)
        os.execv(sys.argv[3], sys.argv[3:])
    os.close(writer)
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    while data := os.read(reader, 1 << 16):
        os.write(file, data)
    print(f"copied {time.time():.6f}", flush=True)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
