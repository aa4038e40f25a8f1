"""Python's own state of the threads that libfuse makes.

Python keeps a state for each thread. For one that it did not make, ctypes creates the state at the
beginning of each callback and destroys it at the end, with the memory for its frames: a mapping
made and unmade for each request, which costs a request without much work half of its time. Here
each such thread keeps its state until it ends.
"""

from __future__ import annotations

import ctypes
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


def keep() -> None:
    """Keep the state of the thread that is in a callback. To be called at the start of each."""
    if hasattr(_thread, "is_kept"):
        return
    _thread.is_kept = True
    if _at_end is not None:
        ctypes.pythonapi.PyGILState_Ensure()
        _at_end(_let_go, None, _ADDRESS)


def _end(value: int | None) -> None:
    """The thread ends: its state goes at the end of this callback, the last one."""
    # A thread that Python itself made has lost its state already, and this is a new one.
    if hasattr(_thread, "is_kept"):
        ctypes.pythonapi.PyGILState_Release(_LOCKED)


_let_go = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_end)
