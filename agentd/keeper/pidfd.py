"""Processes that are not our children, by descriptor: found again, watched, and asked how they ended.

Knows pids, start times and what Linux tells of a process through a pidfd; nothing of units.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct

from agentd.keeper.tree import read_stat

_PIDFD_GETFD = 438
"""The same number on every architecture; Python has no name for it."""
_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
"""PIDFD_GET_INFO of Linux 6.13, whose PIDFD_INFO_EXIT came with 6.15."""
_INFO_EXIT = 8
_CAP_SYS_PTRACE = 19
_syscall = ctypes.CDLL(None, use_errno=True).syscall


def opened(pid: int, start_time: int) -> int:
    """A pidfd of exactly this process, a zombie too; -1 if it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return -1
    row = read_stat(pid)  # after the open: what is there now is what the descriptor names, or has died since
    if row is not None and row.start_time == start_time:
        return fd
    os.close(fd)
    return -1


def status(fd: int, pid: int, start_time: int) -> int | None:
    """Exit code or minus the signal of a dead process, None where the kernel does not tell.

    The pidfd tells once somebody has reaped it (Linux 6.15), the zombie until then.
    """
    code = _reaped(fd)
    if code is None:
        code = _zombie(pid, start_time)
    if code is None:
        code = _reaped(fd)  # reaped between the two questions
    return None if code is None else os.waitstatus_to_exitcode(code)


def fetched(fd: int, number: int) -> int:
    """A copy of what the process holds under this number; -1 if it may not be had (it needs the right to trace it)."""
    copy = int(_syscall(_PIDFD_GETFD, fd, number, 0))
    if copy >= 0:
        os.set_inheritable(copy, False)
    return copy


def listener(fd: int, number: int, address: str) -> socket.socket | None:
    """A copy of the listening socket that the process holds as ``number``; None if it may not be had.

    Needs root (the right to trace it). What is there under that number is believed only if it listens at ``address``.
    """
    copy = fetched(fd, number)
    if copy < 0:
        return None
    try:
        sock = socket.socket(fileno=copy)
    except OSError:  # no socket
        os.close(copy)
        return None
    with contextlib.suppress(OSError):
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and _address(sock) == address:
            return sock
    sock.close()
    return None


def _reaped(fd: int) -> int | None:
    answer = bytearray(64)
    struct.pack_into("=Q", answer, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(fd, _GET_INFO, answer)
    except OSError:
        return None
    mask, code = struct.unpack_from("=Q", answer, 0)[0], struct.unpack_from("=i", answer, 60)[0]
    return code if mask & _INFO_EXIT else None


def _zombie(pid: int, start_time: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] != b"Z" or int(fields[19]) != start_time:
        return None
    code = int(fields[49])
    return code if code or owner == os.geteuid() or _may_trace() else None  # 0 also means: not for you


def _may_trace() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1)


def _address(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
