"""Python's own state of the threads that libfuse makes, and the kernel's.

Python keeps a state for each thread. For one that it did not make, ctypes creates the state at the
beginning of each callback and destroys it at the end, with the memory for its frames: a mapping
made and unmade for each request, which costs a request without much work half of its time. Here
each such thread keeps its state until it ends.

The kernel gives a thread the processor for some milliseconds at once, and lets one that wakes wait
for the end of another's turn. One that asks for short turns gets them sooner, and no more of them:
while transfers and their `ssh` kept the processors busy, the 99th percentile of waits was halved.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from typing import Any

_libc = ctypes.CDLL(None)
#: Has a function called when the thread ends, while Python still finds the thread's state: the
#: destructors of C++. Where the C library lacks it, nothing is kept.
_at_end: Any = getattr(_libc, "__cxa_thread_atexit_impl", None)
#: Any address in a library that stays.
_ADDRESS = ctypes.cast(_libc.free, ctypes.c_void_p)
#: What PyGILState_Ensure returns in a thread that has the interpreter already, as in a callback.
_LOCKED = 0
_thread = threading.local()
#: sched_setattr(2) by the type of machine, where it is known.
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}.get(os.uname().machine)
#: Size, policy, flags, nice, priority, and the length of a turn, which is a deadline's runtime.
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")
#: The shortest that Linux takes.
_TURN_NANOSECONDS = 100_000


def keep() -> None:
    """Keep the state of the thread that is in a callback. To be called at the start of each."""
    if hasattr(_thread, "is_kept"):
        return
    _thread.is_kept = True
    ask_for_short_turns()
    if _at_end is not None:
        ctypes.pythonapi.PyGILState_Ensure()
        _at_end(_let_go, None, _ADDRESS)


def ask_for_short_turns() -> None:
    """Have the kernel let the calling thread run soon, for a short time, whenever it wakes.

    From Linux 6.12 on; others change nothing, and neither is an error.
    """
    policy = os.sched_getscheduler(0)
    if _SET_ATTRIBUTES is None or policy != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(
        _ATTRIBUTES.size, policy, 0, nice, 0, _TURN_NANOSECONDS, 0, 0, 0, 0
    )
    _libc.syscall(_SET_ATTRIBUTES, 0, attributes, 0)


def _end(value: int | None) -> None:
    """The thread ends: its state goes at the end of this callback, the last one."""
    # A thread that Python itself made has lost its state already, and this is a new one.
    if hasattr(_thread, "is_kept"):
        ctypes.pythonapi.PyGILState_Release(_LOCKED)


_let_go = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_end)
