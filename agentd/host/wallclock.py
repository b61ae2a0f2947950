"""One moment of the wall clock, and the news that somebody set the clock: a timerfd.

A timer of the event loop counts monotonic seconds: it is wrong as soon as the clock is set, and by a minute a day while
it is being slewed. The kernel's own timer on CLOCK_REALTIME is neither, and it is woken when the clock is set
(TFD_TIMER_CANCEL_ON_SET). Python has it from 3.13 on; here it is four calls through ctypes. Knows no schedule.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Callable

CLOCK_REALTIME = 0
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
NEVER = float(1 << 40)

_libc = ctypes.CDLL(None, use_errno=True)


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("value", _Moment))


class WallClock:
    """``on_moment(jumped)`` is called in the event loop when the moment has come, or (jumped) the clock was set.

    After either nothing is armed any more. Raises OSError where the kernel has no descriptor left.
    """

    def __init__(self, on_moment: Callable[[bool], None]) -> None:
        self._on_moment = on_moment
        self._fd = _checked(_libc.timerfd_create(CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
        asyncio.get_running_loop().add_reader(self._fd, self._woken)

    def arm(self, moment: float | None) -> None:
        """Wait for this moment (unix seconds; None: only for the clock to be set) instead of the last."""
        seconds, part = divmod(NEVER if moment is None else max(moment, 0.001), 1)
        setting = _Setting(value=_Moment(int(seconds), int(part * 1e9)))
        flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
        if _libc.timerfd_settime(self._fd, flags, ctypes.byref(setting), None) < 0:
            failed = ctypes.get_errno()
            if failed != errno.ECANCELED:
                raise OSError(failed, os.strerror(failed))
            asyncio.get_running_loop().call_soon(self._on_moment, True)  # armed, and the clock was set before that

    def close(self) -> None:
        """Wait no more."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _woken(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
            self._on_moment(True)
        else:
            self._on_moment(False)


def _checked(result: int) -> int:
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return result
