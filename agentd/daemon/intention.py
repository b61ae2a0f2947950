"""That everything is to stop, on disk before anything is: when the daemon dies on the way, the next one goes on.

One file in the runtime directory. It counts for the keeper that was told, and no other: a fleet that is started again
later has a new keeper, and nobody wants that one to stop.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from agentd.daemon.ports import Actor


class Intention:
    """The file ``going-down.json`` of one runtime directory."""

    def __init__(self, runtime: Path) -> None:
        self._path = runtime / "going-down.json"

    def write(self, epoch: str, actor: Actor) -> None:
        """Who wants it, and of which keeper. Raises OSError."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(
            json.dumps({"epoch": epoch, "actor": actor.name, "reason": actor.reason, "id": actor.correlation})
        )
        os.replace(fresh, self._path)

    def read(self, epoch: str) -> Actor | None:
        """Who wanted it of this keeper, if anybody did; a word to another keeper is removed."""
        try:
            said = json.loads(self._path.read_text())
            if said["epoch"] == epoch:
                return Actor(str(said["actor"]), None, str(said["reason"]), said["id"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass  # cut short by the end of the host: no keeper of it lives
        self.remove()
        return None

    def remove(self) -> None:
        """It is done, or void."""
        with suppress(FileNotFoundError):
            self._path.unlink()
