"""Threads that Python did not make, such as libfuse's."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable

import pytest

from syncer.threadstate import keep

_libc = ctypes.CDLL(None)
_START = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_END = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Thing:
    """Something in a thread's own memory."""


def _run_twice(call: Callable[[], None]) -> None:
    """Have a thread of C's make the same callback two times, and end."""

    @_END
    def second(_: int) -> None:
        call()

    @_START
    def first(_: int) -> None:
        call()
        # Called at the thread's end, when the first callback has returned.
        _libc.__cxa_thread_atexit_impl(second, None, ctypes.cast(_libc.free, ctypes.c_void_p))

    thread = ctypes.c_ulong()
    assert _libc.pthread_create(ctypes.byref(thread), None, first, None) == 0
    assert _libc.pthread_join(thread, None) == 0


@pytest.mark.skipif(
    not hasattr(_libc, "__cxa_thread_atexit_impl"), reason="the C library can't call twice"
)
@pytest.mark.parametrize("kept", [True, False])
def test_a_thread_keeps_its_state_until_it_ends(kept: bool) -> None:
    own = threading.local()
    found: list[bool] = []
    things: list[weakref.ref[_Thing]] = []

    def call() -> None:
        if kept:
            keep()
        found.append(hasattr(own, "thing"))
        own.thing = _Thing()
        things.append(weakref.ref(own.thing))

    for _ in range(3):
        _run_twice(call)
    assert found == [False, kept] * 3
    assert [thing() for thing in things] == [None] * 6


def test_a_thread_of_pythons_ends_as_ever() -> None:
    for _ in range(3):
        thread = threading.Thread(target=keep)
        thread.start()
        thread.join()
    assert threading.active_count() == len(threading.enumerate())
