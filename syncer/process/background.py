"""Going to the background: a process of its own, whose caller learns whether it came to serve."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import NoReturn

from syncer.errors import MountError, SyncerError
from syncer.process.control import error_with

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""The exit status of a command that a signal ended before it was done, as shells have it."""

Service = Callable[[Callable[[], None], Callable[[str], None]], None]
"""Runs to its end, and calls the first of what it is given as soon as it serves, and the second
before, with the reason, if that takes long. Raises SyncerError."""


def run_in_background(service: Service, on_waiting: Callable[[str], None]) -> None:
    """Run it in a process of its own, and return when it serves, or at its end.

    `on_waiting` is called meanwhile, with the reason, if that takes long. The caller has no
    threads. Raises what the service ended with, if it did not come to serve, and KeyboardInterrupt
    if a signal ended it.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _live(service, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        try:
            outcome = _outcome_in(stream, on_waiting)
        except KeyboardInterrupt:
            # It has a session of its own, where no Ctrl-C arrives.
            os.kill(pid, signal.SIGINT)
            stream.read()
            raise
    if outcome is None:
        raise SyncerError("the process in the background died before it served")
    exit_code, message = outcome
    if exit_code == INTERRUPTED:
        raise KeyboardInterrupt
    if exit_code:
        raise error_with(exit_code, message)


def _outcome_in(
    stream: Iterable[bytes], on_waiting: Callable[[str], None]
) -> tuple[int, str] | None:
    """What the child's `report` says at last; None if it died before."""
    for line in stream:
        exit_code, message = json.loads(line)
        if exit_code is not None:
            return exit_code, message
        on_waiting(message)
    return None


def _live(service: Service, report_to: int) -> NoReturn:
    """The child's life after the fork."""
    exit_code = 1
    try:
        with tempfile.TemporaryFile() as stderr, open(report_to, "w") as pipe:
            _detach(stderr.fileno(), pipe.fileno())
            threading.excepthook = _log_end

            def tell(exit_code: int | None, message: str) -> None:
                # The caller may be gone.
                with contextlib.suppress(OSError):
                    print(json.dumps([exit_code, message]), file=pipe, flush=True)

            def report(exit_code: int, message: str) -> None:
                # The caller waits for the first report only.
                if not pipe.closed:
                    with contextlib.suppress(OSError), pipe:
                        tell(exit_code, message)

            exit_code, message = _outcome_of(
                service, lambda: report(0, ""), lambda why: tell(None, why)
            )
            if exit_code == MountError.exit_code:
                # libfuse and fusermount give their reasons on stderr only.
                stderr.seek(0)
                reasons = [line.strip() for line in stderr if line.startswith(b"fuse")]
                message = "; ".join([message, *map(os.fsdecode, reasons)])
            report(exit_code, message)
    finally:
        logging.shutdown()
        # Without the interpreter's end: what it would do is the caller's business, and threads of
        # libfuse may still be there.
        os._exit(exit_code)


def _log_end(ended: threading.ExceptHookArgs) -> None:
    """Log what has ended a thread that does not do so itself: nobody reads stderr."""
    name = ended.thread.name if ended.thread else "a thread"
    log.error("%s ended in a way that nobody foresaw", name, exc_info=ended.exc_value)


def _outcome_of(
    service: Service, on_serving: Callable[[], None], on_waiting: Callable[[str], None]
) -> tuple[int, str]:
    """Run it; returns (exit status, message)."""
    try:
        service(on_serving, on_waiting)
    except SyncerError as error:
        log.error("%s", error)
        return error.exit_code, str(error)
    except KeyboardInterrupt:
        return INTERRUPTED, ""
    except Exception as error:
        log.exception("the mount failed in a way that nobody foresaw")
        return SyncerError.exit_code, f"unforeseen: {type(error).__name__}: {error}"
    return 0, ""


def _detach(stderr: int, keep: int) -> None:
    """Leave the terminal, the caller's open files and its folder."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, target in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(descriptor, target)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in (0, 1, 2, stderr, keep):
            # Among them is the one that the listing itself had open.
            with contextlib.suppress(OSError):
                os.close(descriptor)
    os.chdir("/")
