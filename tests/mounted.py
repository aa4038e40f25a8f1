"""A real mount for tests: `python -m syncer mount` on a fresh data directory, always cleaned up.

    with mounted(tmp_path, "3", limit="100") as mount:
        (mount.path / "file").write_bytes(b"content")
        mount.remount()

The remote is a folder beside the data directory unless another one is named. What the mounted
process logs is held to the same rule as a test's own process: no warning, unless one is expected.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from syncer.config import Config
from syncer.libfuse import available_versions

ROOT = Path(__file__).resolve().parent.parent
"""The repository, from which `python -m syncer` runs."""
COMMAND_SECONDS = 120.0
ENDS_WITHIN_SECONDS = 30.0
BINDINGS = tuple(str(version) for version in sorted(available_versions()))
"""The values of ``--fuse`` that this machine can take."""

_WARNING = re.compile(r"^\S+ \S+ (WARNING|ERROR|CRITICAL) ", re.MULTILINE)


class CommandError(Exception):
    """A command ended with an exit status other than 0; the text is what it said."""

    def __init__(self, status: int, text: str, output: str = "") -> None:
        super().__init__(text)
        self.status = status
        #: What it printed all the same.
        self.output = output


def syncer(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command, and return what it printed. Raises CommandError."""
    done = subprocess.run(
        [sys.executable, "-m", "syncer", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if done.returncode:
        said = os.fsdecode(done.stderr or done.stdout)
        raise CommandError(done.returncode, said, os.fsdecode(done.stdout))
    return os.fsdecode(done.stdout)


class Mount:
    """One data directory, and its mount while there is one. For one thread."""

    def __init__(
        self,
        folder: Path,
        fuse: str,
        *,
        remote: str,
        data: Path,
        options: Sequence[str],
        env: Mapping[str, str],
    ) -> None:
        self.fuse = fuse
        self.remote = remote
        self.data = data
        self.path = folder / f"{data.name}-mnt"
        self._options = options
        self._env = env
        self._process = -1

    @property
    def pid(self) -> int:
        """The process that has the data directory mounted."""
        return int((self.data / "lock").read_text())

    @property
    def log(self) -> str:
        """What the mounted process has logged."""
        return (self.data / "log").read_text(errors="replace")

    def run(self, *words: str | Path) -> str:
        """Run a command in this mount's environment. Raises CommandError."""
        return syncer(*words, env=self._env)

    def mount(self, *words: str) -> None:
        """Mount, with further options of the command's."""
        options = [word for option in self._options for word in ("-o", option)]
        self.run("mount", "--fuse", self.fuse, *options, *words, self.data, self.path)
        self._process = os.pidfd_open(self.pid)

    def umount(self) -> None:
        """Unmount; the process is gone afterwards."""
        self.run("umount", self.path)
        self.wait_ended()

    def wait_ended(self, timeout_seconds: float = ENDS_WITHIN_SECONDS) -> None:
        """Wait until the mounted process is gone. Raises TimeoutError."""
        if self._process < 0:
            return
        if not select.select([self._process], [], [], timeout_seconds)[0]:
            raise TimeoutError(f"the mount's process {self.pid} does not end")
        os.close(self._process)
        self._process = -1

    def signal(self, number: int) -> None:
        """Send the mounted process a signal."""
        signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """End the mounted process with SIGKILL; what it leaves mounted stays."""
        self.signal(signal.SIGKILL)
        self.wait_ended()

    def remount(self, *words: str) -> None:
        """Unmount if mounted, and mount again."""
        if self._process >= 0:
            self.umount()
        self.mount(*words)

    def status(self) -> dict[str, Any]:
        """What `syncer status --json` tells."""
        found: dict[str, Any] = json.loads(self.run("status", "--json", self.data))
        return found

    def flush(self) -> None:
        """Wait until everything is on the server."""
        self.run("flush", self.data, "--timeout", "60")

    def evict(self) -> None:
        """Free all local copies, after a flush."""
        self.flush()
        self.run("evict", "--all", self.data)

    def configure(self, **settings: str) -> None:
        """Change settings while nothing is mounted."""
        path = self.data / "config"
        config = Config.load(path)
        for key, text in settings.items():
            config = config.with_value(key, text)
        config.save(path)

    def block_bytes(self) -> int:
        """What the local block files take on the disk now."""
        found = 0
        for folder, _, names in os.walk(self.data / "blocks"):
            for name in names:
                # A file that was just evicted takes nothing.
                with contextlib.suppress(FileNotFoundError):
                    found += os.lstat(os.path.join(folder, name)).st_blocks * 512
        return found

    def clean_up(self) -> None:
        """Leave no mount and no process, whatever has happened."""
        try:
            if self._process >= 0 and not select.select([self._process], [], [], 0)[0]:
                self.umount()
        finally:
            if self._process >= 0:
                # Already gone: then there is nothing to kill.
                with contextlib.suppress(ProcessLookupError):
                    self.kill()
                self.wait_ended()
            if os.path.ismount(self.path) or not os.path.exists(self.path):
                subprocess.run(["fusermount3", "-u", "-z", self.path], check=False)


@contextlib.contextmanager
def mounted(
    folder: Path,
    fuse: str,
    *,
    name: str = "data",
    limit: str = "100",
    remote: str = "",
    clone: bool = False,
    options: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    data: Path | None = None,
    expects_warnings: bool = False,
) -> Iterator[Mount]:
    """A mount of a new data directory (or of a clone) in `folder`, with a libfuse of `BINDINGS`."""
    mount = Mount(
        folder,
        fuse,
        remote=remote or str(folder / "remote"),
        data=data or folder / name,
        options=options,
        env=env or {},
    )
    mount.path.mkdir()
    mount.run("clone" if clone else "init", mount.data, mount.remote, limit)
    mount.configure(**(settings or {}))
    try:
        mount.mount()
        yield mount
    finally:
        mount.clean_up()
    if not expects_warnings:
        assert not _WARNING.search(mount.log), f"the mounted process logged:\n{mount.log}"


def disk_bytes_written(pid: int) -> int:
    """What a process has caused to be written to disks so far: proc(5), write_bytes."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])


def resident_bytes(pid: int) -> int:
    """The memory that a process has to itself or shares."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
