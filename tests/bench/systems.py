"""What is measured: each system as a folder to work in, mounted by the commands of its manual.

All use the same server, and a cache on the same disk with room for the whole run. Settings are
the defaults, but for what the comparison needs: a full file cache (rclone), write-back (JuiceFS).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from .place import HOST, Place, free_port

REPOSITORY = Path(__file__).parent.parent.parent
STARTS_WITHIN_SECONDS = 60.0
ENDS_WITHIN_SECONDS = 120.0
UPLOADS_WITHIN_SECONDS = 600.0
POLL_SECONDS = 0.01


class WorkError(Exception):
    """A system did not do what it should have."""


class System:
    """The local disk without anything, and what the others have in common.

    `folder` is the system's own, `mountpoint` is where files go.
    """

    name = "native"
    has_server = False
    has_cache = True
    """Whether what was read or written is read again from the local disk."""
    uploads_small_files = True
    """False: it takes minutes to, so what needs thousands of them there is left out."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = place.folder / self.name
        self.mountpoint = self.folder / "mnt"
        self.mountpoint.mkdir(parents=True)

    @property
    def remote_files(self) -> Path | None:
        """Where the files themselves are on the server, if they are kept as they are."""
        return None

    def start(self) -> None:
        """Mount; the first time, make what is needed for it."""

    def stop(self) -> None:
        """Unmount, and wait until its processes are gone."""

    def wait_uploaded(self) -> None:
        """Return when everything is on the server."""

    def check_uploaded(self) -> None:
        """Raise WorkError if the system itself says that something is not on the server."""

    def forget_local(self) -> None:
        """Have the next reads come from the server."""

    def memory_bytes(self) -> int:
        return 0


class Mounted(System):
    """A system with a process that stays in the foreground while it is mounted."""

    has_server = True
    _process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = self._process
        self._wait(lambda: self._is_mounted() or process.poll() is not None, STARTS_WITHIN_SECONDS)
        if process.poll() is not None:
            raise WorkError(f"{self.name} does not mount: {self._last_words()}")

    def stop(self) -> None:
        if self._process is None:
            return
        try:
            if self._is_mounted():
                self._unmount()
            self._process.wait(ENDS_WITHIN_SECONDS)
        finally:
            for pid in processes_below(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self._process.wait()
            self._process = None
            # Only if it ended badly.
            if self._is_mounted():
                subprocess.run(["umount", "-l", str(self.mountpoint)], check=False)

    def _unmount(self) -> None:
        program = "fusermount3" if shutil.which("fusermount3") else "fusermount"
        subprocess.run([program, "-u", str(self.mountpoint)], check=True)

    def _is_mounted(self) -> bool:
        return f" {self.mountpoint} " in Path("/proc/self/mountinfo").read_text()

    def _last_words(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-1000:]

    def _wait(self, is_done: Callable[[], bool], limit_seconds: float) -> None:
        deadline = time.monotonic() + limit_seconds
        while not is_done():
            if time.monotonic() > deadline:
                raise WorkError(f"{self.name} is not ready in time: {self._last_words()}")
            time.sleep(POLL_SECONDS)

    def forget_local(self) -> None:
        self.stop()
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        self.start()

    def memory_bytes(self) -> int:
        """Of its processes, without the ssh clients that some of them run."""
        assert self._process is not None
        return sum(
            resident_bytes(pid)
            for pid in processes_below(self._process.pid)
            if name_of(pid) != "ssh"
        )


class Syncer(Mounted):
    """syncer as `python -m syncer mount` starts it, with libfuse 3 where it is there."""

    name = "syncer"
    limit = "20G"

    def _command(self) -> list[str]:
        remote = f"{HOST}:{self.folder}/remote"
        return self._syncer("mount", "--foreground", "data", remote, "mnt", self.limit)

    def _syncer(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "syncer", *words]

    def _environment(self) -> dict[str, str]:
        config = {
            "SYNCER_SSH_CONFIG": str(self.place.ssh_config),
            "PYTHONPATH": str(REPOSITORY),
            # Compiled once, as an installed package is, whatever the caller's environment says.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(self.place.folder / "bytecode"),
        }
        return {**os.environ, **config}

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            self._syncer(*words),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WorkError(f"syncer {' '.join(words)}: {done.stderr}")
        return done.stdout

    def _is_mounted(self) -> bool:
        # It is in the list before it answers.
        return super()._is_mounted() and os.path.ismount(self.mountpoint)

    def _unmount(self) -> None:
        self._run("umount", "mnt")

    def wait_uploaded(self) -> None:
        self._run("flush", "mnt", "--timeout", str(UPLOADS_WITHIN_SECONDS))

    def hold_uploads(self) -> None:
        self._run("config", "mnt", "upload_limit", "10K")

    def let_uploads_go(self) -> None:
        self._run("config", "mnt", "upload_limit", "0")

    def check_uploaded(self) -> None:
        if not json.loads(self._run("status", "mnt", "--json"))["safe"]:
            raise WorkError("syncer: flush has returned, and not everything is on the server")

    def forget_local(self) -> None:
        self.check_uploaded()
        self._run("evict", "--all", "mnt")
        self.stop()
        self.start()


class Bare(Mounted):
    """Python behind libfuse that does as little as it can: no peer, but the limit of our kind."""

    name = "bare"
    has_server = False

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "tests.bench.bare", str(self.folder), str(self.mountpoint)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


class Sshfs(Mounted):
    """sshfs with its defaults; it keeps nothing locally but what the kernel does."""

    name = "sshfs"
    has_cache = False

    @property
    def remote_files(self) -> Path:
        return self.folder / "remote"

    def _command(self) -> list[str]:
        self.remote_files.mkdir(exist_ok=True)
        return [
            *("sshfs", "-f", "-F", str(self.place.ssh_config)),
            *(f"{HOST}:{self.remote_files}", str(self.mountpoint)),
        ]


class Rclone(Mounted):
    """rclone mount with its full file cache."""

    name = "rclone"
    uploads_small_files = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._control_port = free_port()

    @property
    def remote_files(self) -> Path:
        return self.folder / "remote"

    def _command(self) -> list[str]:
        self.remote_files.mkdir(exist_ok=True)
        options = {
            "host": "127.0.0.1",
            "port": str(self.place.port),
            "user": getpass.getuser(),
            "key_file": str(self.place.user_key),
            "known_hosts_file": str(self.place.known_hosts),
        }
        written = ",".join(f"{key}={value}" for key, value in options.items())
        return [
            *("rclone", "mount", f":sftp,{written}:{self.remote_files}", str(self.mountpoint)),
            *("--vfs-cache-mode", "full", "--cache-dir", str(self.folder / "cache")),
            *("--config", str(self.folder / "rclone.conf")),
            *("--rc", "--rc-no-auth", "--rc-addr", f"127.0.0.1:{self._control_port}"),
        ]

    def wait_uploaded(self) -> None:
        # A file that was just closed is not in the queue yet.
        self._wait(lambda: self._is_idle() and self._is_complete(), UPLOADS_WITHIN_SECONDS)

    def _is_complete(self) -> bool:
        for folder, _folders, names in os.walk(self.mountpoint):
            there = self.remote_files / os.path.relpath(folder, self.mountpoint)
            for name in names:
                size = (Path(folder) / name).lstat().st_size
                if not (there / name).exists() or (there / name).stat().st_size != size:
                    return False
        return True

    def _is_idle(self) -> bool:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._control_port}/vfs/stats", data=b"", method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            cache = json.load(answer)["diskCache"]
        return not cache["uploadsQueued"] and not cache["uploadsInProgress"]


class JuiceFs(Mounted):
    """JuiceFS with metadata in SQLite, SFTP as its store, and write-back."""

    name = "JuiceFS"

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SSH_PRIVATE_KEY_PATH": str(self.place.user_key)}

    @property
    def _metadata(self) -> str:
        return f"sqlite3://{self.folder}/metadata.db"

    def _command(self) -> list[str]:
        program = find_program("juicefs")
        assert program
        if not (self.folder / "metadata.db").exists():
            self._format(program)
        return [
            *(program, "mount", self._metadata, str(self.mountpoint)),
            *("--writeback", "--cache-dir", str(self.folder / "cache"), "--no-usage-report"),
        ]

    def _format(self, program: str) -> None:
        remote = self.folder / "remote"
        remote.mkdir()
        words = [
            *(program, "format", self._metadata, "bench", "--storage", "sftp"),
            *("--bucket", f"127.0.0.1:{self.place.port}:{remote}/"),
            *("--access-key", getpass.getuser(), "--trash-days", "0"),
        ]
        done = subprocess.run(
            words, env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise WorkError(f"JuiceFS format: {done.stderr[-1000:]}")

    def wait_uploaded(self) -> None:
        self._wait(lambda: not any(self._staged()), UPLOADS_WITHIN_SECONDS)

    def _staged(self) -> Iterator[Path]:
        for folder in self.folder.glob("cache/*/rawstaging"):
            for path, _, names in os.walk(folder):
                yield from (Path(path, name) for name in names)


def find_program(name: str) -> str | None:
    """A program on the PATH, or in the virtual environment that runs this."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def available() -> list[type[System]]:
    """The systems that this machine has, syncer first."""
    peers: list[tuple[str, type[System]]]
    peers = [("sshfs", Sshfs), ("rclone", Rclone), ("juicefs", JuiceFs)]
    return [Syncer, System, Bare, *(kind for program, kind in peers if find_program(program))]


def processes_below(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
