"""The mounted process, from the mount to its orderly end.

The main thread waits for what happens, and handles signals; libfuse's loop runs in a thread of its
own. However it is ended, by a signal, by `syncer umount` or by somebody's fusermount,

1. the kernel hands over what it holds of written files: unmounting itself does so, too;
2. it is unmounted, and detached from programs that still use it after a short while;
3. libfuse's loop returns; if it doesn't, the kernel's connection is cut;
4. the engine makes everything safe on the local disk, and ends its threads and connections;
5. the data directory's lock is free, and the process gone.

Each step has a time limit. What it did not achieve is logged, and the next step follows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from syncer import binding, desktop, mounts
from syncer.config import Config
from syncer.control import ControlServer, Handler, Progress, error_with
from syncer.engine import Engine
from syncer.errors import AccessError, MountError, SyncerError
from syncer.folder import DataFolder, create_repository

log = logging.getLogger(__name__)

_SERVES_WITHIN_SECONDS = 60.0
_SYNCS_WITHIN_SECONDS = 60.0
_BUSY_SECONDS = 2.0
_LOOP_ENDS_WITHIN_SECONDS = 5.0
_POLL_SECONDS = 0.02
_LOG_BYTES = 5_000_000
_LOG_FORMAT = "%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_INTERRUPTED = 130


@dataclass(frozen=True)
class MountPlan:
    """One mount, as it was asked for and checked. All paths are absolute."""

    data: Path
    mountpoint: Path
    config: Config
    is_new: bool
    """The data directory and the repository are to be made first."""
    fuse: int
    """The version of libfuse."""
    options: tuple[str, ...] = ()
    """Those of -o."""
    take_over: bool = False
    log_file: Path | None = None
    """None: the data directory's own."""
    verbose: bool = False


def run_in_foreground(plan: MountPlan) -> int:
    """Mount, and return when it is unmounted; returns the exit status. Raises SyncerError."""
    on_stderr = logging.StreamHandler()
    on_stderr.setFormatter(logging.Formatter("syncer: %(levelname)s %(message)s"))
    logging.getLogger().addHandler(on_stderr)
    _Daemon(plan, on_serving=lambda: None).run()
    return 0


def run_in_background(plan: MountPlan) -> int:
    """Mount in a process of its own; returns when that serves.

    The caller has no threads. Raises what the process ended with if it did not come to serve.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _live_in_background(plan, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        try:
            line = stream.read()
        except KeyboardInterrupt:
            # It has a session of its own, where no Ctrl-C arrives.
            os.kill(pid, signal.SIGINT)
            stream.read()
            raise
    if not line:
        raise SyncerError("the mount's process died before it served")
    exit_code, message = json.loads(line)
    if exit_code == _INTERRUPTED:
        raise KeyboardInterrupt
    if exit_code:
        raise error_with(exit_code, message)
    return 0


def _live_in_background(plan: MountPlan, report_to: int) -> NoReturn:
    """The child's life after the fork."""
    exit_code = 1
    try:
        with tempfile.TemporaryFile() as stderr, open(report_to, "w") as pipe:
            _detach(stderr.fileno(), pipe.fileno())

            def report(exit_code: int, message: str) -> None:
                # The parent waits for the first report only, and then is gone.
                with contextlib.suppress(OSError, ValueError):
                    json.dump([exit_code, message], pipe)
                    pipe.close()

            exit_code, message = _outcome_of(_Daemon(plan, on_serving=lambda: report(0, "")))
            if exit_code == MountError.exit_code:
                # libfuse and fusermount give their reasons on stderr only.
                stderr.seek(0)
                reasons = [line.strip() for line in stderr if line.startswith(b"fuse")]
                message = "; ".join([message, *map(os.fsdecode, reasons)])
            report(exit_code, message)
    finally:
        logging.shutdown()
        # Without the interpreter's end: what it would do is the parent's business, and threads of
        # libfuse may still be there.
        os._exit(exit_code)


def _outcome_of(daemon: _Daemon) -> tuple[int, str]:
    """Run it; returns (exit code, message)."""
    try:
        daemon.run()
    except SyncerError as error:
        log.error("%s", error)
        return error.exit_code, str(error)
    except KeyboardInterrupt:
        return _INTERRUPTED, ""
    except Exception as error:
        log.exception("the mount failed in a way that nobody foresaw")
        return 1, f"{type(error).__name__}: {error}"
    return 0, ""


def _detach(stderr: int, keep: int) -> None:
    """Leave the terminal, the caller's open files and its folder."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, target in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(descriptor, target)
    low, high = sorted((stderr, keep))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.chdir("/")


@dataclass(frozen=True)
class _Serves:
    """The mount answers."""


@dataclass(frozen=True)
class _Signalled:
    number: int


@dataclass(frozen=True)
class _LoopEnded:
    """It is unmounted, or could not be mounted."""

    error: Exception | None


_Event = _Serves | _Signalled | _LoopEnded


class _Daemon:
    """One mount. `run` is called once, in the main thread."""

    def __init__(self, plan: MountPlan, on_serving: Callable[[], None]) -> None:
        self._plan = plan
        self._on_serving = on_serving
        # Of all queues, this one may be put to by a signal handler.
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._device: int | None = None

    def run(self) -> None:
        """Mount, and return when all is at its end.

        Raises SyncerError if it doesn't come to serve, and KeyboardInterrupt if a signal ends it
        before.
        """
        plan = self._plan
        _limit_resources()
        for number in _SIGNALS:
            signal.signal(number, _interrupt)
        folder = DataFolder(plan.data)
        if plan.is_new:
            create_repository(plan.data, plan.config, socket.gethostname())
        with folder.lock():
            _log_to(plan.log_file or folder.log, plan.verbose)
            engine = Engine(
                plan.data,
                plan.config,
                mountpoint=str(plan.mountpoint),
                fuse=plan.fuse,
                update_atime="noatime" not in plan.options,
            )
            try:
                if plan.take_over:
                    engine.take_over()
                self._serve(engine, folder)
            finally:
                engine.stop()

    def _serve(self, engine: Engine, folder: DataFolder) -> None:
        control = ControlServer(folder.socket, commands_of(engine))
        control.start()
        try:
            for number in _SIGNALS:
                signal.signal(number, lambda number, _: self._events.put(_Signalled(number)))
            self._start_loop(engine)
            event = self._next_event(_SERVES_WITHIN_SECONDS)
            if isinstance(event, _Serves):
                log.info("%s is mounted at %s", self._plan.data, self._plan.mountpoint)
                desktop.notify_ready()
                self._on_serving()
                event = self._next_event(None)
            desktop.notify_stopping()
            log.info("the mount ends: %s", event or "it does not answer")
            if not isinstance(event, _LoopEnded):
                self._unmount()
            elif event.error:
                raise event.error
            if event is None:
                raise MountError(f"{self._plan.mountpoint} was mounted, but does not answer")
        finally:
            control.stop()

    def _next_event(self, timeout_seconds: float | None) -> _Event | None:
        """What happens next; None if nothing does in time."""
        try:
            return self._events.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def _start_loop(self, engine: Engine) -> None:
        plan = self._plan
        before = os.stat(plan.mountpoint).st_dev
        options = binding.MountOptions(
            source=str(plan.data),
            is_writer=engine.is_writer,
            writeback=plan.config.writeback,
            extra=plan.options,
        )

        def loop() -> None:
            error: Exception | None = None
            try:
                binding.serve(plan.fuse, engine.operations, str(plan.mountpoint), options)
            except Exception as failure:
                error = failure
            self._events.put(_LoopEnded(error))

        def probe() -> None:
            # Looking at the mount's root waits until libfuse answers for it.
            while loop_thread.is_alive():
                with contextlib.suppress(OSError):
                    device = os.stat(plan.mountpoint).st_dev
                    if device != before:
                        self._device = os.minor(device)
                        self._events.put(_Serves())
                        return
                time.sleep(_POLL_SECONDS)

        loop_thread = threading.Thread(target=loop, name="syncer-fuse", daemon=True)
        loop_thread.start()
        threading.Thread(target=probe, name="syncer-probe", daemon=True).start()

    def _unmount(self) -> None:
        self._hand_over()
        deadline = time.monotonic() + _BUSY_SECONDS
        while self._is_mounted():
            is_late = time.monotonic() > deadline
            if is_late:
                # What was written meanwhile. Nothing tells when the last program has let go.
                self._hand_over()
            try:
                mounts.unmount(self._plan.mountpoint, lazy=is_late)
            except MountError as error:
                log.info("%s", error)
                if is_late:
                    log.error("%s", error)
                    break
                time.sleep(_POLL_SECONDS * 10)
        if not self._loop_ends() and self._device is not None:
            log.warning("programs still use %s: cutting them off", self._plan.mountpoint)
            mounts.abort(self._device)
            self._loop_ends()

    def _is_mounted(self) -> bool:
        mount = mounts.mount_at(self._plan.mountpoint)
        return mount is not None and mount.is_ours and self._device in (None, mount.device)

    def _hand_over(self) -> None:
        """Have the kernel write what it holds."""

        def sync() -> None:
            try:
                mounts.sync_filesystem(self._plan.mountpoint)
            except OSError as error:
                log.error("%s: not all that was written could be taken in: %s", *error.args[::-1])

        thread = threading.Thread(target=sync, name="syncer-sync", daemon=True)
        thread.start()
        thread.join(_SYNCS_WITHIN_SECONDS)
        if thread.is_alive():
            log.error("%s: what was written could not be taken in in time", self._plan.mountpoint)

    def _loop_ends(self) -> bool:
        """Whether libfuse's loop returns, in time."""
        deadline = time.monotonic() + _LOOP_ENDS_WITHIN_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            if isinstance(self._next_event(remaining), _LoopEnded):
                return True
        return False


def commands_of(engine: Engine) -> dict[str, Handler]:
    """What may be asked of an engine, over the control socket or in the same process."""

    def status(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return engine.status()

    def flush(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return engine.flush(arguments.get("timeout_seconds"), progress)

    def evict(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        paths = arguments.get("paths")
        return engine.evict(None if paths is None else [os.fsencode(path) for path in paths])

    def fetch(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return engine.fetch([os.fsencode(path) for path in arguments["paths"]], progress)

    def config(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        engine.set_config(arguments["key"], arguments["value"])
        return {}

    return {"status": status, "flush": flush, "evict": evict, "fetch": fetch, "config": config}


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _limit_resources() -> None:
    # A core dump would hold what is in the files, and the keys of the transport.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0o077)


def _log_to(path: Path, verbose: bool) -> None:
    """Log to a file, which is kept small. Raises AccessError."""
    try:
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise AccessError(f"{path}: can't log there: {error.strerror}") from error
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    logging.getLogger().addHandler(handler)
    logging.getLogger("syncer").setLevel(logging.DEBUG if verbose else logging.INFO)
