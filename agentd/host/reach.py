"""May a uid reach a path? Reads modes and owners; starts nothing and changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

READ, WRITE, EXECUTE = 4, 2, 1
_MAX_LINKS = 40


def closed_component(
    path: Path, uid: int, gid: int, groups: Collection[int] = (), want: int = READ | EXECUTE
) -> Path | None:
    """The first component of ``path`` that the ids may not pass, or the path itself if they lack ``want`` there.

    Symlinks are followed as the kernel does, and components of their targets count. None: the way is open. Root passes
    everywhere. A component with an access control list is taken as open: the kernel judges it at exec. Raises
    FileNotFoundError for what does not exist, OSError(ELOOP) for a loop.
    """
    here = ""  # the root directory; a path of plain text costs a tenth of a Path per step
    rest = [part for part in reversed(path.absolute().parts) if part != "/"]
    links = 0
    info = os.lstat("/")
    while rest:
        if not _allows(here, info, uid, gid, groups, EXECUTE):
            return Path(here or "/")
        part = rest.pop()
        if part == "..":
            here = here.rpartition("/")[0]
            info = os.lstat(here or "/")
            continue
        step = f"{here}/{part}"
        found = os.lstat(step)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(40, "too many levels of symbolic links", str(path))
            target = os.readlink(step)
            if target.startswith("/"):
                here, info = "", os.lstat("/")
            rest += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        else:
            here, info = step, found
    return None if _allows(here, info, uid, gid, groups, want) else Path(here or "/")


def _allows(path: str, info: os.stat_result, uid: int, gid: int, groups: Collection[int], want: int) -> bool:
    if uid == 0:
        return not want & EXECUTE or stat.S_ISDIR(info.st_mode) or bool(info.st_mode & 0o111)
    shift = 6 if info.st_uid == uid else 3 if info.st_gid == gid or info.st_gid in groups else 0
    return (info.st_mode >> shift) & want == want or _has_acl(path or "/")


def _has_acl(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False
