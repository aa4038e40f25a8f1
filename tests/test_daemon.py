from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from syncer import binding, libfuse
from syncer.errors import LocalFullError
from syncer.mount import Operations
from syncer.process import control, mounts
from tests.processes import (
    children_of,
    command,
    environment,
    is_alive,
    is_mounted,
    run,
    status,
    wait_for,
)
from tests.sshd import HOST, Sshd
from tests.vfs_rig import VfsRig

pytestmark = [pytest.mark.fuse, pytest.mark.slow(1.8)]

BOTH_BINDINGS = pytest.mark.parametrize("fuse", ["3", "2"])
ENDS_WITHIN_SECONDS = 30


class Place:
    """A folder with a mount point; ends what is still mounted there, however the test went."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.remote = folder / "remote"
        self.mnt = folder / "mnt"
        self.mnt.mkdir()

    @property
    def pid(self) -> int:
        return control.process_behind(self.data / "control.sock")

    def mount(self, *options: str, expect: int = 0) -> str:
        return run("mount", self.data, self.remote, self.mnt, *options, expect=expect).stderr

    def ended(self, pid: int) -> Callable[[], bool]:
        return lambda: not is_alive(pid) and not is_mounted(self.mnt)

    def end(self) -> None:
        try:
            pid = self.pid
        except control.NoProcessError:
            return
        os.kill(pid, signal.SIGTERM)
        wait_for(self.ended(pid), ENDS_WITHIN_SECONDS)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    try:
        yield place
    finally:
        place.end()
        while is_mounted(place.mnt):
            mounts.unmount(place.mnt, lazy=True)


@BOTH_BINDINGS
def test_what_was_written_is_there_after_the_next_mount(place: Place, fuse: str) -> None:
    content = os.urandom(3_000_000)
    place.mount("--fuse", fuse)
    pid = place.pid
    (place.mnt / "größer 写真").write_bytes(content)
    state = status(place.mnt / "größer 写真")
    assert (state["pid"], state["mountpoint"]) == (pid, str(place.mnt))
    assert (state["fuse"], state["data"]) == (int(fuse), str(place.data))
    run("umount", place.mnt)
    assert not is_alive(pid) and not is_mounted(place.mnt)
    run("mount", place.data, place.mnt, "--fuse", fuse)
    assert (place.mnt / "größer 写真").read_bytes() == content


@BOTH_BINDINGS
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change what the kernel moves at once")
def test_the_kernel_reads_whole_blocks_ahead_and_lets_programs_write_on(
    place: Place, fuse: str
) -> None:
    place.mount("--fuse", fuse)
    device = os.stat(place.mnt).st_dev
    told = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    assert (told / "read_ahead_kb").read_text() == "1024\n"
    assert (told / "max_ratio").read_text() == "4\n"


def test_who_reads_all_names_first_has_all_attributes(place: Place) -> None:
    place.mount("--fuse", "3")
    (place.mnt / "folder").mkdir()
    for number in range(2000):
        (place.mnt / "folder" / f"a name of some length {number:04d}").touch()
    run("umount", place.mnt)
    run("mount", place.data, place.mnt, "--fuse", "3")
    pid, names = place.pid, os.listdir(place.mnt / "folder")
    assert len(names) == 2000
    os.kill(pid, signal.SIGSTOP)
    try:
        # It answers nothing now: what the kernel has not been told does not come.
        look = "import os, sys; [os.lstat(line[:-1]) for line in sys.stdin]"
        lines = "".join(f"{place.mnt}/folder/{name}\n" for name in names)
        subprocess.run([sys.executable, "-c", look], input=lines, text=True, timeout=10, check=True)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("looks", [0, 500])
def test_the_last_names_of_a_huge_folder_come_without_unless_somebody_looks(
    rig: VfsRig, looks: int
) -> None:
    given: list[tuple[bytes, int]] = []

    def filler(buf: None, name: bytes, stat: SimpleNamespace, offset: int, flags: int) -> int:
        given.append((name, flags))
        return 0

    def fill_all(fill: Callable[[bytes, Any, int], int], offset: int, handle: int) -> None:
        for name, number in ((b"10,000th", 10_000), (b"next", 10_001)):
            fill(name, SimpleNamespace(id=number, mode=0o100644), number)

    fuse = SimpleNamespace(
        module=SimpleNamespace(c_stat=SimpleNamespace),
        stat=mock.Mock(),
        operations=rig.vfs.directories,
        _readdir=fill_all,
        _looks=0,
    )
    listing = SimpleNamespace(contents=SimpleNamespace(fh=rig.vfs.opendir(b"/")))
    for _ in range(3):
        binding._Calls3.readdir_fuse_3(cast(Any, fuse), None, None, filler, 0, listing, 1)
        # Attributes that came with the names are not asked for, so nobody looks any more.
        fuse._looks = looks
    with_attributes = 2 if looks else 0
    assert [flags for _, flags in given] == [2, 0, 2, with_attributes, 2, with_attributes]


@BOTH_BINDINGS
def test_evict_and_fetch_free_and_bring_back(place: Place, fuse: str) -> None:
    place.mount("--fuse", fuse)
    folder = place.mnt / "holiday"
    folder.mkdir()
    for number in range(3):
        (folder / str(number)).write_bytes(os.urandom(1_500_000))
    run("flush", place.mnt)
    assert status(place.mnt)["safe"]
    assert "(2 blocks of 1 file)" in run("evict", folder / "0").stdout
    assert "(4 blocks)" in run("evict", place.mnt).stdout
    assert status(place.mnt)["cache_blocks"] == 0
    assert "2 blocks of 1 file" in run("fetch", folder / "1").stdout
    run("fetch", folder / "1", folder)
    assert status(place.mnt)["cache_blocks"] == 6
    run("evict", "--all", folder / "1")
    assert status(place.mnt)["cache_blocks"] == 0
    run("fetch", folder / "missing", expect=3)


@BOTH_BINDINGS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order(place: Place, fuse: str, number: signal.Signals) -> None:
    place.mount("--fuse", fuse)
    (place.mnt / "file").write_text("written just before")
    pid = place.pid
    os.kill(pid, number)
    wait_for(place.ended(pid), ENDS_WITHIN_SECONDS)
    assert not (place.data / "control.sock").exists()
    place.mount("--fuse", fuse)
    assert (place.mnt / "file").read_text() == "written just before"


@BOTH_BINDINGS
def test_an_unmount_by_somebody_else_ends_it_as_well(place: Place, fuse: str) -> None:
    place.mount("--fuse", fuse)
    (place.mnt / "file").write_text("text")
    pid = place.pid
    mounts.unmount(place.mnt)
    wait_for(place.ended(pid), ENDS_WITHIN_SECONDS)


def test_what_the_kernel_gathered_of_an_open_file_is_kept(place: Place) -> None:
    place.mount("--fuse", "3", "--writeback", "on")
    pid = place.pid
    file = open(place.mnt / "file", "wb", buffering=0)
    file.write(b"never flushed by its program")
    os.kill(pid, signal.SIGTERM)
    wait_for(place.ended(pid), ENDS_WITHIN_SECONDS)
    with pytest.raises(OSError, match="not connected"):
        file.close()
    place.mount()
    assert (place.mnt / "file").read_bytes() == b"never flushed by its program"


def test_what_is_written_while_it_ends_is_kept_as_long_as_it_is_mounted(place: Place) -> None:
    """A program that goes on has some time, and loses nothing of it."""
    place.mount("--fuse", "3", "--writeback", "on")
    pid = place.pid
    file = open(place.mnt / "file", "wb", buffering=0)
    os.kill(pid, signal.SIGTERM)
    written = kept = 0
    while is_mounted(place.mnt):
        kept = written
        with contextlib.suppress(OSError):
            written += file.write(b"line\n")
    wait_for(place.ended(pid), ENDS_WITHIN_SECONDS)
    with pytest.raises(OSError, match="not connected"):
        file.close()
    place.mount()
    assert kept
    assert (place.mnt / "file").stat().st_size >= kept


def test_what_was_written_through_a_mapping_is_kept_at_a_signal(place: Place) -> None:
    """The kernel holds such pages; neither msync nor fsync hands them over before the signal."""
    place.mount("--fuse", "3", "--writeback", "on")
    pid = place.pid
    (place.mnt / "file").write_bytes(bytes(100_000))
    file = open(place.mnt / "file", "r+b", buffering=0)
    with mmap.mmap(file.fileno(), 0) as pages:
        pages[50_000:50_006] = b"mapped"
        os.kill(pid, signal.SIGTERM)
        wait_for(place.ended(pid), ENDS_WITHIN_SECONDS)
    with pytest.raises(OSError, match="not connected"):
        file.close()
    place.mount()
    assert (place.mnt / "file").read_bytes() == bytes(50_000) + b"mapped" + bytes(49_994)


@BOTH_BINDINGS
def test_the_next_mount_clears_what_a_crash_left_behind(place: Place, fuse: str) -> None:
    place.mount("--fuse", fuse)
    (place.mnt / "file").write_text("text")
    pid = place.pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    assert mounts.is_dead(place.mnt)
    for words in ([place.mnt / "file"], [place.data], []):
        # Other tests' mounts, which may be on their way, are among those without a target.
        line = command("status", *words)
        shown = subprocess.run(line, env=environment(), capture_output=True, check=False)
        told = f"{place.mnt}: its process has died; mount it again: syncer mount {place.data}"
        assert told in os.fsdecode(shown.stdout)
    state = status(place.mnt)
    assert (state["mountpoint"], state["pid"], state["is_dead"]) == (str(place.mnt), 0, True)
    place.mount("--fuse", fuse)
    assert (place.mnt / "file").read_text() == "text"


def test_umount_clears_what_a_crash_left_behind(place: Place) -> None:
    place.mount()
    pid = place.pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    run("umount", place.mnt)
    assert not is_mounted(place.mnt)


def test_a_busy_mount_stays_mounted_and_it_is_said_who_uses_it(place: Place) -> None:
    place.mount()
    with open(place.mnt / "file", "w") as file:
        error = run("umount", place.mnt, expect=13).stderr
        assert "fuser" in error and error.count("\n") == 1
        file.write("still works")
    assert (place.mnt / "file").read_text() == "still works"
    run("umount", place.mnt)


def test_a_mount_point_or_data_directory_serves_once(place: Place) -> None:
    place.mount()
    assert "mounted already" in place.mount(expect=13)
    other = place.folder / "other"
    other.mkdir()
    error = run("mount", place.data, other, expect=12).stderr
    assert str(place.pid) in error
    assert "mounted already" in run("mount", "data2", "remote2", place.mnt, expect=13).stderr


def test_paths_may_be_relative_and_odd(place: Place) -> None:
    folder = place.folder / "größer, 写真\\ #1"
    (folder / "mnt").mkdir(parents=True)
    run("mount", "data", "remote", "mnt", cwd=folder)
    try:
        assert status(folder / "mnt")["data"] == str(folder / "data")
        (folder / "link").symlink_to("mnt")
        run("flush", "link", cwd=folder)
    finally:
        run("umount", "mnt", cwd=folder)


def test_the_foreground_stays_and_shows_its_log(place: Place) -> None:
    log = place.folder / "log"
    process = subprocess.Popen(
        command("mount", "--foreground", "--log-file", log, place.data, place.remote, place.mnt),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: is_mounted(place.mnt))
    wait_for(lambda: "is mounted at" in log.read_text())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=ENDS_WITHIN_SECONDS)
    assert process.returncode == 0
    assert "is mounted at" in output
    assert "Traceback" not in output
    assert not (place.data / "log").exists()


def test_the_background_process_has_left_its_caller(place: Place) -> None:
    reader, writer = os.pipe()
    done = subprocess.run(
        command("mount", place.data, place.remote, place.mnt),
        env=environment(),
        pass_fds=[writer],
        check=True,
        timeout=ENDS_WITHIN_SECONDS,
    )
    os.close(writer)
    # At the end of the file, since the mount has not kept the caller's pipe.
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert done.returncode == 0
    pid = place.pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


def test_systemd_is_told(place: Place) -> None:
    address = place.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(address))
        notified.settimeout(ENDS_WITHIN_SECONDS)
        words = ("mount", place.data, place.remote, place.mnt)
        run(*words, env={"NOTIFY_SOCKET": str(address)})
        assert notified.recv(100) == b"READY=1"
        assert is_mounted(place.mnt)
        run("umount", place.mnt)
        assert notified.recv(100) == b"STOPPING=1"


def test_options_reach_the_mount(place: Place) -> None:
    place.mount("-o", "ro,noatime", "-o", "allow_other")
    mount = Path("/proc/self/mountinfo").read_text()
    line = next(line for line in mount.splitlines() if str(place.mnt) in line)
    assert "ro," in line and "noatime" in line and "allow_other" in line
    with pytest.raises(OSError, match="Read-only"):
        (place.mnt / "file").touch()


def test_the_limit_of_the_last_mount_holds(place: Place) -> None:
    run(str(place.data), str(place.remote), str(place.mnt), "100")
    assert status(place.mnt)["cache_limit_bytes"] == 100_000_000
    run("umount", place.mnt)
    run("mount", place.data, place.mnt, "200")
    run("umount", place.mnt)
    run("mount", place.data, place.mnt)
    assert status(place.mnt)["cache_limit_bytes"] == 200_000_000
    run("config", place.mnt, "max-size", "300")
    assert status(place.mnt)["cache_limit_bytes"] == 300_000_000
    assert run("config", place.data, "max-size").stdout == "300M\n"


def test_status_without_a_target_shows_all_mounts(place: Place) -> None:
    place.mount()
    # Other tests' mounts, which may have something to upload, are among them.
    shown = subprocess.run(command("status"), env=environment(), capture_output=True, check=False)
    assert str(place.mnt) in os.fsdecode(shown.stdout)


def test_a_mount_that_is_broken_does_not_hide_the_others(place: Place, tmp_path: Path) -> None:
    place.mount()
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    try:
        other.mount()
        pid = other.pid
        other.data.rename(tmp_path / "moved away")
        shown = run("status", expect=3)
        assert str(place.mnt) in shown.stdout
        assert f"{other.data} does not exist" in shown.stderr
        assert [
            state["mountpoint"]
            for state in json.loads(run("status", "--json", expect=3).stdout)
            if state["mountpoint"].startswith(str(tmp_path))
        ] == [str(place.mnt)]
    finally:
        (tmp_path / "moved away").rename(other.data)
        os.kill(pid, signal.SIGTERM)
        wait_for(other.ended(pid), ENDS_WITHIN_SECONDS)


def test_umount_can_wait_for_the_server(place: Place) -> None:
    place.mount()
    (place.mnt / "file").write_bytes(os.urandom(5_000_000))
    run("umount", "--wait", place.mnt)
    assert status(place.data)["safe"]


def test_who_waits_for_a_server_that_needs_a_person_is_told_and_all_stays_mounted(
    place: Place,
) -> None:
    place.mount()
    run("umount", "--wait", place.mnt)
    (place.remote / "writers").rename(place.folder / "writers")
    place.mount()
    (place.mnt / "file").write_text("text")
    for words in (["flush"], ["umount", "--wait"]):
        error = run(*words, place.mnt, expect=15).stderr
        assert "has lost who" in error
        assert error.count("\n") == 1
    assert (place.mnt / "file").read_text() == "text"


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.mark.parametrize("transport", ["ssh", "paramiko"])
def test_a_server_that_is_away_is_no_error_once_it_is_known(
    place: Place, server: Sshd, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setenv("SYNCER_SSH_CONFIG", str(server.config))
    options = ("--transport", transport)
    run("mount", place.data, f"{HOST}:{place.remote}", place.mnt, *options)
    (place.mnt / "file").write_bytes(b"x" * 100_000)
    run("flush", place.mnt)
    run("umount", place.mnt)
    server.stop()
    try:
        run("mount", place.data, place.mnt, *options)
        assert (place.mnt / "file").read_bytes() == b"x" * 100_000
        (place.mnt / "new").write_bytes(b"y" * 100_000)
        wait_for(lambda: status(place.mnt)["remote"]["state"] == "offline")
        assert "can't be used" in run("status", place.mnt).stdout.splitlines()[0]
        assert "not on the server" in run("flush", place.mnt, "--timeout", "0", expect=4).stderr
        began = time.monotonic()
        run("umount", place.mnt)
        assert time.monotonic() - began < ENDS_WITHIN_SECONDS
    finally:
        server.start()


@pytest.mark.parametrize("transport", ["ssh", "paramiko"])
def test_a_server_that_hangs_does_not_keep_it_from_ending(
    place: Place, server: Sshd, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setenv("SYNCER_SSH_CONFIG", str(server.config))
    words = (place.data, f"{HOST}:{place.remote}", place.mnt, "--transport", transport)
    run("mount", *words)
    pid = place.pid
    (place.mnt / "old").write_bytes(os.urandom(1_000_000))
    run("flush", place.mnt)
    server.freeze()
    try:
        (place.mnt / "file").write_bytes(os.urandom(3_000_000))
        children = children_of(pid)
        began = time.monotonic()
        run("umount", place.mnt)
        assert time.monotonic() - began < ENDS_WITHIN_SECONDS
        assert not any(is_alive(process) for process in (pid, *children))
    finally:
        server.thaw()


def test_its_ssh_processes_end_with_it(
    place: Place, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCER_SSH_CONFIG", str(server.config))
    run("mount", place.data, f"{HOST}:{place.remote}", place.mnt, "--transport", "ssh")
    (place.mnt / "file").write_bytes(os.urandom(2_000_000))
    run("flush", place.mnt)
    children = children_of(place.pid)
    assert children
    run("umount", place.mnt)
    assert not any(is_alive(child) for child in children)


def test_a_clone_shows_all_and_is_read_only(place: Place) -> None:
    place.mount()
    (place.mnt / "file").write_bytes(b"z" * 2_000_000)
    run("umount", "--wait", place.mnt)
    data = place.folder / "data2"
    run("clone", data, place.remote)
    run("mount", data, place.mnt)
    try:
        assert (place.mnt / "file").read_bytes() == b"z" * 2_000_000
        with pytest.raises(OSError, match="Read-only"):
            (place.mnt / "new").touch()
        assert "read-only" in run("status", place.mnt).stdout
    finally:
        run("umount", place.mnt)
    run("mount", data, place.mnt, "--take-over")
    try:
        (place.mnt / "new").touch()
        run("flush", place.mnt)
    finally:
        run("umount", place.mnt)


def test_no_request_is_served_before_recovery_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """libfuse's other threads serve as soon as the kernel has the answer to its INIT.

    A size that is told before patches are taken up stays in the kernel's memory.
    """
    steps: list[str] = []
    calls, connection = mock.MagicMock(), mock.MagicMock()
    connection.contents = SimpleNamespace(want=0, capable=0)
    calls.options = libfuse.MountOptions("data", is_writer=True, writeback=True)
    calls.operations.start = lambda: steps.append("recovered")
    monkeypatch.setattr(binding, "Invalidator", mock.MagicMock())
    monkeypatch.setattr(binding, "answer_init", lambda *arguments: steps.append("answered"))
    binding._Calls3.init_fuse_3(calls, connection, mock.MagicMock())
    assert steps == ["recovered", "answered"]


#: A mount whose engine fails when libfuse is about to serve.
_FAILS_TO_START = """\
import sys
from syncer.commands import cli
from syncer.errors import LocalFullError
from syncer.process.engine import Engine

def fail(engine):
    raise LocalFullError("no room to repair anything")

Engine._recover = fail
sys.exit(cli.main(sys.argv[1:]))
"""


@BOTH_BINDINGS
@pytest.mark.parametrize("options", [(), ("--foreground",)], ids=["background", "foreground"])
def test_a_mount_whose_engine_does_not_start_is_an_error_and_gone(
    place: Place, fuse: str, options: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILS_TO_START, "mount", "--fuse", fuse, *options]
        + [str(path) for path in (place.data, place.remote, place.mnt)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_SECONDS,
        check=False,
    )
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1] == "syncer: no room to repair anything"
    assert not is_mounted(place.mnt)
    assert not (place.data / "control.sock").exists()
    # Its process is gone, and nothing stands in the way of the next one.
    place.mount("--fuse", fuse)
    (place.mnt / "file").write_bytes(os.urandom(100_000))
    run("flush", "--timeout", "30", place.mnt)


#: Serves operations that can't start, with a loop that nobody ends, and tells what a program gets.
_REFUSES = """\
import errno, os, subprocess, sys, threading
from pathlib import Path
from syncer import binding, libfuse
from syncer.metadata.node import Node
from syncer.mount import Operations
from tests.processes import wait_for

version, mnt = int(sys.argv[1]), sys.argv[2]

class Broken(Operations):
    def __init__(self): pass
    def set_cache_dropper(self, drop): pass
    def set_abandoned_probe(self, probe): pass
    def set_asked(self, *asked): pass
    def start(self): raise ValueError("it can't start")
    def stale_paths(self): return []
    def attributes(self, target): return Node(1, 1, 0o40755, 0, 0, 0, 2, 0, 0, 0, 0, 0, None)
    def opendir(self, path): return 1
    def mkdir(self, path, mode): pass

load = binding._load

def load_without_an_end(version):
    fuse = load(version)
    fuse.module.fuse_exit = lambda: None
    return fuse

binding._load = load_without_an_end
raised = []

def serve():
    try:
        binding.serve(version, lambda caller: Broken(), mnt, libfuse.MountOptions("data"))
    except Exception as error:
        raised.append(repr(error))

def told(call, *words):
    try:
        call(*words)
        return "nothing"
    except OSError as error:
        return errno.errorcode[error.errno]

thread = threading.Thread(target=serve)
thread.start()
wait_for(lambda: mnt in Path("/proc/mounts").read_text())
print(told(os.stat, mnt), told(os.listdir, mnt), told(os.mkdir, mnt + "/folder"))
subprocess.run(["fusermount3" if version == 3 else "fusermount", "-u", "-z", mnt], check=True)
thread.join()
print(*raised)
"""


@BOTH_BINDINGS
def test_between_a_start_that_fails_and_the_end_no_request_is_served(
    place: Place, fuse: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _REFUSES, fuse, str(place.mnt)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_SECONDS,
        check=False,
    )
    assert done.stdout.splitlines() == ["EIO EIO EIO", 'ValueError("it can\'t start")'], done.stderr


#: A mount whose engine has much to repair: it is at work as long as a file is not there.
_REPAIRS = """\
import os, sys, time
from syncer.commands import cli
from syncer.process import daemon
from syncer.process.engine import Engine

gate = sys.argv.pop(1)
recover = Engine._recover

def recover_slowly(engine):
    while not os.path.exists(gate):
        time.sleep(0.01)
    return recover(engine)

Engine._recover = recover_slowly
daemon._SERVES_WITHIN_SECONDS = daemon._LOOK_SECONDS = 0.1
sys.exit(cli.main(sys.argv[1:]))
"""


@contextlib.contextmanager
def repairing(place: Place, fuse: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command of a mount that has said that it takes long."""
    run("init", place.data, place.remote)
    words = ("mount", "--fuse", fuse, *options, str(place.data), str(place.mnt))
    process = subprocess.Popen(
        [sys.executable, "-c", _REPAIRS, str(place.folder / "gate"), *words],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "is being repaired" not in (line := process.stderr.readline()):
            assert line, "it ended without a word"
        yield process
    finally:
        (place.folder / "gate").touch()
        process.communicate(timeout=ENDS_WITHIN_SECONDS)


@BOTH_BINDINGS
def test_a_start_that_has_much_to_repair_is_waited_for(place: Place, fuse: str) -> None:
    with repairing(place, fuse) as process:
        # As long as it may take to be mounted, several times.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        (place.folder / "gate").touch()
        assert process.wait(ENDS_WITHIN_SECONDS) == 0
    (place.mnt / "file").write_bytes(b"content")
    run("umount", place.mnt)


def test_what_a_call_has_changed_before_it_fails_shows_under_the_other_names_too(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[list[bytes], bool]] = []

    class Fuse(binding._Common):
        operations = Operations(rig.vfs, mock.Mock(), mock.Mock())

        def invalidate(self, paths: list[bytes], *, waits: bool = True) -> None:
            told.append((sorted(paths), waits))

    def chmod() -> None:
        rig.vfs.chmod(b"/file", 0o600)
        raise LocalFullError("the disk is full")

    rig.make(b"/file", b"content")
    rig.vfs.link(b"/file", b"/other")
    rig.vfs.take_stale_paths()
    monkeypatch.setattr(binding, "keep", lambda: None)
    assert Fuse()._wrapper(chmod) == -errno.ENOSPC
    assert told == [([b"/file", b"/other"], True)]
