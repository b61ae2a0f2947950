"""The unit of the moment P: it is starting until its home has ``gate``, and may be deaf to SIGTERM (``--deaf``).

Runs as a program under agentd, not in the test. ``starts`` names each invocation, ``asked`` has a line for each SIGTERM
that a deaf one took; ``leave`` lets it exit with the status that stands in it.
"""

import os
import signal
import socket
import sys
import time

HOME = os.environ["HOME"]


def remember(name: str, text: str) -> None:
    with open(f"{HOME}/{name}", "a") as file:
        file.write(f"{text}\n")


if "--deaf" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: remember("asked", "SIGTERM"))
remember("starts", os.environ["AGENTD_INVOCATION"])
if "--print" in sys.argv:
    os.write(1, b"started\n")
while not os.path.exists(f"{HOME}/gate"):
    time.sleep(0.01)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    while True:
        try:
            notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
            break
        except ConnectionRefusedError:  # no keeper just now
            time.sleep(0.01)
while not os.path.exists(f"{HOME}/leave"):
    time.sleep(0.01)
with open(f"{HOME}/leave") as file:
    status = int(file.read())
os.unlink(f"{HOME}/leave")  # its successor stays
sys.exit(status)
