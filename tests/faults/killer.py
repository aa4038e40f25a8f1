"""Runs syncer's commands in processes that die, by SIGKILL, at a step that was chosen before.

    with Killer(tmp_path) as killer:
        killer.run("init", data, remote)
        steps = killer.steps
        killer.run("init", other_data, other_remote, kill_at=steps // 2)

A step is what changes something outside of the process's memory: a file that is made, written,
renamed, linked or removed, a program that is started, a transaction. The interpreter tells of each
before it happens (`sys.addaudithook`), so the program itself knows nothing of this. All processes
that come of a command count together, such as a mount in the background and whoever unmounts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mounted import COMMAND_SECONDS, ROOT

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TRANSACTION = "syncer.transaction"
_CHANGES = (
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "subprocess.Popen",
    _TRANSACTION,
)
#: Steps so far, and the one before which to die; 0 is never.
_COUNTERS = struct.Struct("=qq")
KILLED = -signal.SIGKILL


class Killer:
    """Starts commands from a process that has all modules loaded. For one thread."""

    def __init__(self, folder: Path) -> None:
        path = folder / "steps"
        path.write_bytes(bytes(_COUNTERS.size))
        self._counters = _Counters(path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.killer", path],
            cwd=ROOT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        """What the last command wrote to stderr."""

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=COMMAND_SECONDS)
        self._counters.close()

    def arm(self, kill_at: int) -> None:
        """Count from 0, and kill who comes to this step; 0: nobody."""
        with self._counters.locked():
            self._counters.set(0, kill_at)

    def disarm(self) -> None:
        """Nobody dies any more from now on; who is to die already is about to be gone."""
        with self._counters.locked():
            self._counters.set(self.steps, 0)

    @property
    def steps(self) -> int:
        """How many there were since the last `arm`."""
        return self._counters.get()[0]

    def start(self, *words: str | Path) -> int:
        """Run a command without a change to the counters; returns its exit status, or `KILLED`."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([str(word) for word in words]), file=self._process.stdin, flush=True)
        status, self.said = json.loads(self._process.stdout.readline())
        return int(status)

    def run(self, *words: str | Path, kill_at: int = 0) -> int:
        """Run a command that dies at a step, counted from 1, if it comes to it."""
        self.arm(kill_at)
        try:
            return self.start(*words)
        finally:
            self.disarm()


class _Counters:
    """The steps so far and the one to die at, shared by processes and their threads."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNTERS.size)
        self._threads = threading.Lock()

    def get(self) -> tuple[int, int]:
        steps, kill_at = _COUNTERS.unpack_from(self._map, 0)
        return steps, kill_at

    def set(self, steps: int, kill_at: int) -> None:
        _COUNTERS.pack_into(self._map, 0, steps, kill_at)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        # A descriptor that is kept would not outlive the way to the background. The file's lock is
        # the process's, and ends with it.
        with self._threads, open(self._path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        self._map.close()


def _is_step(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(args[2] & _WRITING) and not str(args[0]).startswith(("/dev/", "/proc/"))
    if event == "os.mkdir":
        # There are 256 of these, one like the other.
        return not re.search(r"/blocks/(?!80)[0-9a-f]{2}$", os.fsdecode(args[0]))
    return event in _CHANGES


def _count_steps(path: str) -> None:
    counters = _Counters(path)

    def count(event: str, args: tuple[Any, ...]) -> None:
        if not _is_step(event, args) or args[0] == path:
            return
        with counters.locked():
            steps, kill_at = counters.get()
            counters.set(steps + 1, kill_at)
            if steps + 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _tell_of_transactions() -> None:
    from syncer.metadata.db import Database

    begin = Database._begin

    def tell(db: Database) -> None:
        if not db._depth:
            sys.audit(_TRANSACTION, str(db.path))
        begin(db)

    Database._begin = tell  # type: ignore[method-assign]


def _run(words: list[str], counters: str, stderr: int) -> None:
    """The life of one command; does not return."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(stderr, 2)
        _count_steps(counters)
        from syncer.commands import cli

        status = cli.main(words)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(counters: str) -> None:
    import tempfile

    from syncer.commands import actions, mounting
    from syncer.process import alone

    assert actions and alone and mounting
    _tell_of_transactions()
    for line in sys.stdin:
        with tempfile.TemporaryFile() as stderr:
            pid = os.fork()
            if pid == 0:
                _run(json.loads(line), counters, stderr.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")
        print(json.dumps([status, said]), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
