"""The mounted process, from the mount to its orderly end.

The main thread waits for what happens, and handles signals; libfuse's loop runs in a thread of its
own. However it is ended, by a signal, by `syncer umount` or by somebody's fusermount,

1. the kernel hands over what it holds of written files: unmounting itself does so, too;
2. it is unmounted; if programs still use it after a short while, it is detached, the kernel hands
   over once more, and they are cut off;
3. libfuse's loop returns;
4. the engine makes everything safe on the local disk, and ends its threads and connections;
5. the data directory's lock is free, and the process gone.

Whatever waits for programs, the kernel or the server has a time limit; what was not achieved by
then is logged, and the next step follows. What needs this computer's disk alone has none, since it
is what the end is for: the committer's last rounds, the end of the check of local blocks, and the
step that the exchange is at when its connections are closed. (A remote that is a folder counts as
the disk.) A step that fails keeps none of the others from its turn, and the process ends with its
error.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from syncer import binding, libfuse
from syncer.config import Config
from syncer.errors import AccessError, MountError
from syncer.maintain.policy import Policy
from syncer.mount import Operations
from syncer.process import mounts, notify
from syncer.process.control import ControlServer, Handler, Progress
from syncer.process.engine import Engine
from syncer.process.events import SIGNALS, Event, Events, LoopEnded, Serves, Signalled
from syncer.process.folder import DataFolder
from syncer.process.keeping import Keeping
from syncer.process.memory import Gaps, keep_freed_memory
from syncer.process.repository import create_repository
from syncer.process.timemachine import TimeMachine
from syncer.vfs.caller import Caller

log = logging.getLogger(__name__)

#: The time that an engine takes to start does not count.
_SERVES_WITHIN_SECONDS = 60.0
#: Who waits for the mount looks that often whether the engine is still starting.
_LOOK_SECONDS = 5.0
_SYNCS_WITHIN_SECONDS = 60.0
_BUSY_SECONDS = 2.0
_LOOP_ENDS_WITHIN_SECONDS = 3.0
_LAST_LOOK_SECONDS = 0.1
_ENDS_WITHIN_SECONDS = 15.0
_POLL_SECONDS = 0.02
#: How often the main thread looks after the process's memory, while it waits for the end.
_MEMORY_SECONDS = 0.5
_LOG_BYTES = 5_000_000
_LOG_FORMAT = "%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"


@dataclass(frozen=True)
class PastMoment:
    """What `mount --at` is to show."""

    epoch: int
    name: str
    """The epoch's time, as `Moments.written` has it."""


class _Served(Protocol):
    """What a mount shows: the present (`Engine`) or a past state (`View`)."""

    @property
    def is_writer(self) -> bool: ...

    @property
    def is_starting(self) -> bool: ...

    def operations(self, caller: Callable[[], Caller]) -> Operations: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class MountPlan:
    """One mount, as it was asked for and checked. All paths are absolute."""

    data: Path
    mountpoint: Path
    config: Config
    """What the data directory's settings are from now on."""
    is_new: bool
    """The data directory and the repository are to be made first."""
    fuse: int
    """The version of libfuse."""
    options: tuple[str, ...] = ()
    """Those of -o."""
    at: PastMoment | None = None
    """None: the present."""
    take_over: bool = False
    log_file: Path | None = None
    """None: the data directory's own."""
    verbose: bool = False


def show_log() -> None:
    """Have the log on stderr as well."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("syncer: %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)


class Daemon:
    """One mount. `run` is called once, in the main thread."""

    def __init__(self, plan: MountPlan) -> None:
        self._plan = plan
        self._events = Events()
        self._device: int | None = None
        self._on_waiting: Callable[[str], None] = lambda why: None

    def run(
        self, on_serving: Callable[[], None], on_waiting: Callable[[str], None] = lambda why: None
    ) -> None:
        """Mount, call `on_serving` when the mount answers, and return when all is at its end.

        `on_waiting` is called before, with the reason, if that takes long. Raises SyncerError if
        it doesn't come to serve or not everything is safe at the end, and KeyboardInterrupt if a
        signal ends it before it serves.
        """
        plan = self._plan
        self._on_waiting = on_waiting
        _restrict_process()
        keep_freed_memory()
        for number in SIGNALS:
            signal.signal(number, _interrupt)
        folder = DataFolder(plan.data)
        if plan.at is not None:
            self._run_view(folder, plan.at, on_serving)
            return
        if plan.is_new:
            create_repository(plan.data, plan.config, socket.gethostname())
        is_served = any(not mount.at and mount.data == plan.data for mount in mounts.our_mounts())
        # Of one that is unmounted already, the process may still be at its end.
        with folder.lock(0.0 if is_served else _ENDS_WITHIN_SECONDS):
            _log_to(plan.log_file or folder.log, plan.verbose)
            if plan.config != Config.load(folder.config):
                plan.config.save(folder.config)
            engine = Engine(
                plan.data,
                plan.config,
                mountpoint=str(plan.mountpoint),
                fuse=plan.fuse,
                update_atime={"noatime", "ro"}.isdisjoint(plan.options),
            )
            control = ControlServer(folder.socket, commands_of(engine))
            with _ended_in_order(engine, control):
                if plan.take_over:
                    engine.take_over()
                self._serve(engine, control, on_serving)

    def _run_view(self, folder: DataFolder, at: PastMoment, on_serving: Callable[[], None]) -> None:
        # Of the two kinds of mounts, each process is one.
        from syncer.process.view import View

        plan = self._plan
        _log_to(plan.log_file or folder.view_log, plan.verbose)
        view = View(
            plan.data,
            plan.config,
            at.epoch,
            at.name,
            mountpoint=str(plan.mountpoint),
            fuse=plan.fuse,
        )
        commands: dict[str, Handler] = {"status": lambda given, progress: view.status()}
        control = ControlServer(folder.view_socket(plan.mountpoint), commands)
        with _ended_in_order(view, control):
            self._serve(view, control, on_serving)

    def _serve(
        self, served: _Served, control: ControlServer, on_serving: Callable[[], None]
    ) -> None:
        control.start()
        try:
            self._events.take_signals()
            self._start_loop(served)
            event = self._first_event(served)
            if isinstance(event, Signalled):
                # libfuse can't be stopped in the middle of mounting, which takes but moments.
                self._events.next(_LOOP_ENDS_WITHIN_SECONDS)
                self._unmount()
                raise KeyboardInterrupt
            if isinstance(event, Serves):
                log.info("%s is mounted at %s", self._plan.data, self._plan.mountpoint)
                notify.ready()
                on_serving()
                gaps = Gaps()
                while (event := self._events.next(_MEMORY_SECONDS)) is None:
                    gaps.look()
            notify.stopping()
            log.info("the mount ends: %s", event or "it does not answer")
            if not isinstance(event, LoopEnded):
                self._unmount()
            elif event.error:
                raise event.error
            if event is None:
                raise MountError(f"{self._plan.mountpoint} was mounted, but does not answer")
        finally:
            control.stop()

    def _first_event(self, served: _Served) -> Event | None:
        """What comes first of all; None if the mount doesn't come to answer.

        An engine that starts may have much to repair. To cut that off would help nobody: the next
        one would have to begin anew.
        """
        is_told = False
        waited_seconds = 0.0
        while waited_seconds < _SERVES_WITHIN_SECONDS:
            if event := self._events.next(_LOOK_SECONDS):
                return event
            waited_seconds = 0.0 if served.is_starting else waited_seconds + _LOOK_SECONDS
            if served.is_starting and not is_told:
                is_told = True
                why = f"what an unclean end of {self._plan.data} left is being repaired; wait"
                log.info("%s", why)
                self._on_waiting(why)
        return None

    def _start_loop(self, served: _Served) -> None:
        plan = self._plan
        before = os.stat(plan.mountpoint).st_dev
        options = libfuse.MountOptions(
            # As all text on the way through a binding, see `mount`.
            source=mounts.source_of(
                plan.data, plan.config.subtype, plan.at.name if plan.at else ""
            ),
            subtype=plan.config.subtype,
            is_writer=served.is_writer,
            writeback=plan.config.writeback and plan.at is None,
            extra=plan.options,
        )

        def loop() -> None:
            error: BaseException | None = None
            try:
                binding.serve(plan.fuse, served.operations, str(plan.mountpoint), options)
            except BaseException as failure:
                error = failure
            self._events.put(LoopEnded(error))

        def probe() -> None:
            # Looking at the mount's root waits until libfuse answers for it.
            while loop_thread.is_alive():
                with contextlib.suppress(OSError):
                    device = os.stat(plan.mountpoint).st_dev
                    if device != before:
                        mounts.tune(device)
                        self._device = os.minor(device)
                        self._events.put(Serves())
                        return
                time.sleep(_POLL_SECONDS)

        loop_thread = threading.Thread(target=loop, name="syncer-fuse", daemon=True)
        loop_thread.start()
        threading.Thread(target=probe, name="syncer-probe", daemon=True).start()

    def _unmount(self) -> None:
        self._hand_over()
        deadline = time.monotonic() + _BUSY_SECONDS
        while self._is_mounted() and time.monotonic() < deadline:
            try:
                mounts.unmount(self._plan.mountpoint)
            except MountError:
                time.sleep(_POLL_SECONDS * 5)
        is_busy = self._is_mounted()
        if is_busy:
            self._detach()
        if self._loop_ends(_LAST_LOOK_SECONDS if is_busy else _LOOP_ENDS_WITHIN_SECONDS):
            return
        log.warning("programs still use %s: cutting them off", self._plan.mountpoint)
        # Where the kernel offers no way to do it, this process's end does.
        if self._device is not None and mounts.abort(self._device):
            self._loop_ends(_LOOP_ENDS_WITHIN_SECONDS)

    def _detach(self) -> None:
        """Unmount under the hands of programs; what they wrote while they found it is taken in."""
        self._hand_over(detach=True)
        if self._is_mounted():
            # That failed, or takes too long.
            try:
                mounts.unmount(self._plan.mountpoint, lazy=True)
            except MountError as error:
                log.error("%s", error)

    def _is_mounted(self) -> bool:
        mount = mounts.mount_at(self._plan.mountpoint)
        return mount is not None and mount.is_ours and self._device in (None, mount.device)

    def _hand_over(self, *, detach: bool = False) -> None:
        """Have the kernel write what it holds; with `detach`, after nobody else finds the mount."""

        def sync() -> None:
            try:
                mounts.sync_filesystem(self._plan.mountpoint, detach=detach)
            except (OSError, MountError) as error:
                log.error("not all that was written could be taken in: %s", error)

        thread = threading.Thread(target=sync, name="syncer-sync", daemon=True)
        thread.start()
        thread.join(_SYNCS_WITHIN_SECONDS)
        if thread.is_alive():
            log.error("not all that was written could be taken in within the time limit")

    def _loop_ends(self, timeout_seconds: float) -> bool:
        """Whether libfuse's loop returns, in time."""
        deadline = time.monotonic() + timeout_seconds
        while (remaining := deadline - time.monotonic()) > 0:
            if isinstance(self._events.next(remaining), LoopEnded):
                return True
        return False


@contextlib.contextmanager
def _ended_in_order(served: _Served, control: ControlServer) -> Iterator[None]:
    """End what is served, and tell those who wait for the end how it was."""
    failure: Exception | None = None
    try:
        try:
            yield
        finally:
            served.stop()
    except Exception as error:
        failure = error
        raise
    finally:
        control.tell_end(failure)


def commands_of(engine: Engine) -> dict[str, Handler]:
    """What may be asked of an engine, over the control socket or in the same process."""

    def status(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return engine.status()

    def flush(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return engine.flush(arguments.get("timeout_seconds"), progress)

    def config(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        engine.set_config(arguments["key"], arguments["value"])
        return {}

    def fsck(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        from syncer.maintain.findings import Report
        from syncer.maintain.fsck import Options

        report = Report()
        engine.fsck(Options(**arguments), report, progress)
        return report.result()

    return {
        "fsck": fsck,
        "status": status,
        "flush": flush,
        "config": config,
        "export": lambda given, progress: engine.stranded.export(Path(given["to"]), progress),
        **_commands_about_copies(engine.keeping),
        **_commands_about_the_past(engine.past),
        "prune": lambda given, progress: engine.pruner.prune(
            Policy(**given["policy"]), is_dry=given["dry_run"], progress=progress
        ),
    }


def _commands_about_copies(keeping: Keeping) -> dict[str, Handler]:
    def paths(given: dict[str, Any]) -> list[bytes]:
        return [os.fsencode(path) for path in given["paths"]]

    return {
        "evict": lambda given, progress: keeping.evict(
            None if given.get("paths") is None else paths(given)
        ),
        "fetch": lambda given, progress: keeping.fetch(paths(given), progress),
        "pin": lambda given, progress: keeping.pin(paths(given), progress),
        "unpin": lambda given, progress: keeping.unpin(paths(given)),
        "pins": lambda given, progress: keeping.pins(progress),
        "ls": lambda given, progress: keeping.ls(os.fsencode(given["path"]), progress),
    }


def _commands_about_the_past(past: TimeMachine) -> dict[str, Handler]:
    encode = os.fsencode
    return {
        "snapshot": lambda given, progress: past.snapshot(given["name"]),
        "unsnapshot": lambda given, progress: past.remove_snapshot(given["name"]),
        "moment": lambda given, progress: past.moment(given["when"]),
        "snapshots": lambda given, progress: past.snapshots(progress),
        "versions": lambda given, progress: past.versions(encode(given["path"])),
        "deleted": lambda given, progress: past.deleted(encode(given["path"]), progress),
        "diff": lambda given, progress: past.diff(
            encode(given["path"]), given["first"], given["second"], progress
        ),
        "restore": lambda given, progress: past.restore(
            encode(given["path"]), given["when"], encode(given["to"]), progress
        ),
    }


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _restrict_process() -> None:
    # For its children, too; see `cli`.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What is made in the data directory is for its owner only.
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
