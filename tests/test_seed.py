"""What the program that this one replaces got wrong: each point is a test of a real mount."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import io
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncer.codec import BLOCK_BYTES
from tests.mounted import (
    BINDINGS,
    CommandError,
    Mount,
    disk_bytes_written,
    mounted,
    resident_bytes,
    syncer,
)
from tests.sshd import HOST, Sshd

pytestmark = [pytest.mark.fuse, pytest.mark.slow(1.8)]

FUSE = BINDINGS[-1]
IS_ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture(params=BINDINGS)
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path, request.param) as mount:
        yield mount


@pytest.fixture
def one_mount(tmp_path: Path) -> Iterator[Mount]:
    """For what lies behind both bindings."""
    with mounted(tmp_path, FUSE) as mount:
        yield mount


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


def server_environment(server: Sshd) -> dict[str, str]:
    return {"SYNCER_SSH_CONFIG": str(server.config)}


def noise(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes that no two blocks have in common."""
    return random.Random(seed).randbytes(size_bytes)


def wait_until(is_true: Callable[[], bool], timeout_seconds: float = 15.0) -> None:
    """Wait for something that happens soon, and fail if it doesn't."""
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline, "it does not happen in time"
        time.sleep(0.05)


def run(*words: str | Path) -> None:
    """Run a program that has to succeed."""
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=60)


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it has cached of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


# 1


def test_programs_that_set_attributes_on_open_files_lose_no_content(
    mount: Mount, tmp_path: Path
) -> None:
    """Point 1: cp -p, tar x and rsync --inplace set attributes of files still open and dirty."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        file = source / f"{number}"
        file.write_bytes(noise(number * 7_000, number))
        file.chmod(0o600 + number % 8 * 8)
        os.utime(file, ns=(10**18 + number, 10**18 + 7 * number))
    (source / "large").write_bytes(noise(3 * BLOCK_BYTES + 5))
    run("cp", "-p", "-r", source, mount.path / "cp")
    run("tar", "-c", "--format=posix", "-f", tmp_path / "tar", "-C", source, ".")
    (mount.path / "tar").mkdir()
    run("tar", "-x", "-p", "-f", tmp_path / "tar", "-C", mount.path / "tar")
    copies = ["cp", "tar"]
    if shutil.which("rsync"):
        run("rsync", "-a", "--inplace", f"{source}/", mount.path / "rsync")
        copies.append("rsync")
    mount.evict()
    mount.remount()
    for copy in copies:
        run("diff", "-r", source, mount.path / copy)
        for file in source.iterdir():
            want, got = file.stat(), (mount.path / copy / file.name).stat()
            assert (got.st_mode, got.st_mtime_ns) == (want.st_mode, want.st_mtime_ns)


def test_attributes_set_between_writes_leave_the_writes_whole(mount: Mount) -> None:
    """Point 1, by hand: each way to set attributes, in the middle of writing."""
    path = mount.path / "file"
    content = noise(300_000)
    with open(path, "wb", buffering=0) as file:
        file.write(content[:100_000])
        os.fchmod(file.fileno(), 0o640)
        file.write(content[100_000:200_000])
        os.utime(file.fileno(), ns=(1, 2))
        os.utime(path, ns=(3, 4))
        path.chmod(0o604)
        file.write(content[200_000:])
    mount.evict()
    mount.remount()
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


# 2


def test_a_renamed_directory_takes_its_content_along(mount: Mount) -> None:
    """Point 2: files below a renamed directory, and a new one in its old place."""
    below = mount.path / "a/b/c"
    below.mkdir(parents=True)
    (below / "file").write_bytes(b"first")
    (mount.path / "a").rename(mount.path / "moved")
    (mount.path / "a").mkdir()
    (mount.path / "a/file").write_bytes(b"second")
    for _ in range(2):
        assert (mount.path / "moved/b/c/file").read_bytes() == b"first"
        assert (mount.path / "a/file").read_bytes() == b"second"
        assert os.listdir(mount.path / "a") == ["file"]
        assert not (mount.path / "a/b").exists()
        mount.remount()


# 3


def test_a_file_that_shrinks_and_grows_shows_zeros(mount: Mount) -> None:
    """Point 3: no old bytes after shrinking and growing, holes across blocks, mtime moves."""
    path = mount.path / "file"
    path.write_bytes(noise(2 * BLOCK_BYTES))
    os.utime(path, (0, 0))
    os.truncate(path, 1000)
    assert path.stat().st_mtime > 0
    os.truncate(path, 2 * BLOCK_BYTES)
    want = noise(2 * BLOCK_BYTES)[:1000] + bytes(2 * BLOCK_BYTES - 1000)
    assert path.read_bytes() == want
    hole = mount.path / "hole"
    with open(hole, "wb") as file:
        file.write(b"start")
        file.seek(3 * BLOCK_BYTES + 10)
        file.write(b"end")
    mount.evict()
    mount.remount()
    assert path.read_bytes() == want
    assert hole.read_bytes() == b"start" + bytes(3 * BLOCK_BYTES + 5) + b"end"


# 4


def test_renaming_over_a_directory_that_is_not_empty_fails(mount: Mount) -> None:
    """Point 4, first half: the content is not lost."""
    (mount.path / "a").mkdir()
    (mount.path / "b").mkdir()
    (mount.path / "b/file").write_bytes(b"content")
    with pytest.raises(OSError) as caught:
        os.rename(mount.path / "a", mount.path / "b")
    assert caught.value.errno == errno.ENOTEMPTY
    assert (mount.path / "b/file").read_bytes() == b"content"


def test_a_crash_while_files_are_replaced_leaves_one_of_them_whole(mount: Mount) -> None:
    """Point 4, second half: rename over a file is one step, whenever the process is killed."""
    path = mount.path / "file"
    path.write_bytes(b"%06d" % 0 * 3000)
    for moment in range(3):
        script = (
            "import itertools, os, sys\n"
            "for number in itertools.count():\n"
            "    with open('new', 'wb') as file:\n"
            "        file.write(b'%06d' % number * 3000)\n"
            "    held = open('file', 'rb') if number % 2 else None\n"
            "    os.rename('new', 'file')\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script], cwd=mount.path, stderr=subprocess.DEVNULL
        ) as writer:
            time.sleep(0.3 + 0.05 * moment)
            mount.kill()
            writer.wait(timeout=20)
        mount.remount()
        content = path.read_bytes()
        assert len(content) == 18_000
        assert content == content[:6] * 3000


# 5


@pytest.mark.parametrize("fuse", BINDINGS)
def test_hard_links_are_one_file(fuse: str, tmp_path: Path) -> None:
    """Point 5: link counts, inode numbers, and size and content through each name at once.

    Without the writeback cache: under it the kernel never looks at the size of a file that it
    has cached, and to it each name is a file of its own.
    """
    with mounted(tmp_path, fuse, settings={"writeback": "off"}) as mount:
        check_hard_links(mount)


def check_hard_links(mount: Mount) -> None:
    one, two = mount.path / "one", mount.path / "two"
    one.write_bytes(b"first")
    os.link(one, two)
    assert two.read_bytes() == b"first"
    assert (one.stat().st_nlink, two.stat().st_nlink) == (2, 2)
    assert one.stat().st_ino == two.stat().st_ino
    with open(one, "ab") as file:
        file.write(b" and second")
    assert two.stat().st_size == 16
    assert two.read_bytes() == b"first and second"
    two.write_bytes(b"third")
    assert one.read_bytes() == b"third"
    one.chmod(0o600)
    assert stat.S_IMODE(two.stat().st_mode) == 0o600
    one.unlink()
    assert two.stat().st_nlink == 1
    assert two.read_bytes() == b"third"


# 6


def test_an_open_file_lives_on_without_its_name(mount: Mount) -> None:
    """Point 6: reading, fstat and fchmod of an unlinked file, also when its name is made again."""
    path = mount.path / "file"
    path.write_bytes(b"old content")
    with open(path, "r+b", buffering=0) as file:
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        path.write_bytes(b"new")
        assert file.read() == b"old content"
        file.write(b", longer")
        os.fchmod(file.fileno(), 0o600)
        found = os.fstat(file.fileno())
        assert (found.st_size, stat.S_IMODE(found.st_mode)) == (19, 0o600)
        assert os.listdir(mount.path) == ["file"]
    assert path.read_bytes() == b"new"


# 7


@pytest.mark.parametrize("fuse", BINDINGS)
def test_a_clone_shows_the_changes_of_the_writer(fuse: str, tmp_path: Path) -> None:
    """Point 7: stat and ls agree about what another machine has changed, soon."""
    with mounted(tmp_path, fuse) as writer:
        (writer.path / "file").write_bytes(b"first")
        writer.flush()
        with mounted(tmp_path, fuse, name="clone", clone=True) as clone:
            seen = clone.path / "file"
            assert seen.read_bytes() == b"first"
            (writer.path / "file").write_bytes(b"the second")
            (writer.path / "other").write_bytes(b"new")
            writer.flush()
            wait_until(lambda: seen.stat().st_size == 10)
            wait_until(lambda: sorted(os.listdir(clone.path)) == ["file", "other"])
            wait_until(lambda: seen.read_bytes() == b"the second")
            assert (clone.path / "other").stat().st_size == 3


# 8


def test_times_move_and_new_files_belong_to_their_maker(mount: Mount) -> None:
    """Point 8: ctime on each change of attributes, a directory's mtime on each change of names."""
    path = mount.path / "folder/file"
    path.parent.mkdir()

    def moves(watched: Path, field: str, change: Callable[[], object]) -> bool:
        before = getattr(watched.stat(), field)
        time.sleep(0.02)
        change()
        return bool(getattr(watched.stat(), field) > before)

    assert moves(path.parent, "st_mtime_ns", path.touch)
    assert moves(path, "st_ctime_ns", lambda: path.chmod(0o600))
    assert moves(path, "st_ctime_ns", lambda: os.utime(path, (1, 1)))
    assert moves(path, "st_ctime_ns", lambda: path.write_bytes(b"content"))
    assert moves(path.parent, "st_mtime_ns", path.unlink)
    assert moves(path.parent, "st_ctime_ns", lambda: os.mkfifo(path))


@pytest.mark.skipif(not IS_ROOT, reason="only root can make files as somebody else")
@pytest.mark.parametrize("fuse", BINDINGS)
def test_new_files_belong_to_who_makes_them(fuse: str, tmp_path: Path) -> None:
    """Point 8: not to the owner of the directory."""
    with mounted(tmp_path, fuse, options=["allow_other"]) as mount:
        (mount.path / "shared").mkdir()
        (mount.path / "shared").chmod(0o777)
        descriptor = os.open(mount.path / "shared", os.O_RDONLY)
        try:
            subprocess.run(
                ["sh", "-c", "echo x > file && mkdir folder && ln -s x link"],
                user=NOBODY, group=NOBODY, extra_groups=[], check=True,
                preexec_fn=lambda: os.fchdir(descriptor),
            )  # fmt: skip
        finally:
            os.close(descriptor)
        for name in ("file", "folder", "link"):
            found = (mount.path / "shared" / name).lstat()
            assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)


# 9


def test_names_of_any_bytes_and_all_kinds_of_files_are_kept(mount: Mount) -> None:
    """Point 9: names that are not UTF-8, fifos, sockets, devices, room set aside, statfs."""
    folder = os.fsencode(mount.path)
    names = [b"caf\xe9", b"\xff\xfe", b"new\nline", "🙂".encode(), b"\x80" * 255]
    for name in names:
        with open(folder + b"/" + name, "wb") as file:
            file.write(name)
    os.mkfifo(mount.path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(mount.path, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{descriptor}/socket")
        finally:
            os.close(descriptor)
    kinds = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}
    if IS_ROOT:
        os.mknod(mount.path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        kinds["device"] = stat.S_IFCHR
    with open(mount.path / "room", "wb") as room:
        os.posix_fallocate(room.fileno(), 0, 100_000)
    mount.remount()
    for name in names:
        assert Path(os.fsdecode(folder + b"/" + name)).read_bytes() == name
    assert set(names) < set(os.listdir(folder))
    for text, kind in kinds.items():
        assert stat.S_IFMT((mount.path / text).lstat().st_mode) == kind
    if IS_ROOT:
        assert (mount.path / "device").stat().st_rdev == os.makedev(1, 3)
    assert (mount.path / "room").stat().st_size == 100_000
    (mount.path / "room").unlink()


def test_statfs_tells_the_size_of_the_servers_disk(mount: Mount) -> None:
    """Point 9: not an invented one."""
    want = os.statvfs(mount.remote)

    def agrees() -> bool:
        got = os.statvfs(mount.path)
        return got.f_blocks * got.f_frsize == want.f_blocks * want.f_frsize

    wait_until(agrees)
    assert os.statvfs(mount.path).f_namemax == 255


# 10


def test_a_killed_process_loses_nothing_that_was_closed_or_synced(mount: Mount) -> None:
    """Point 10: kill -9 right after close, fsync, mkdir, rename and their like."""
    content = noise(3 * BLOCK_BYTES + 77)
    (mount.path / "closed").write_bytes(content)
    (mount.path / "folder").mkdir()
    (mount.path / "folder/old").write_bytes(b"small")
    (mount.path / "folder/old").rename(mount.path / "folder/new")
    (mount.path / "link").symlink_to("closed")
    with killed_with_open_file(mount, "synced", signal.SIGKILL) as file:
        file.write(content)
        os.fsync(file.fileno())
        # Or the server had everything, and this would show nothing.
        assert mount.status()["safe"] is False
    mount.remount()
    assert (mount.path / "closed").read_bytes() == content
    assert (mount.path / "synced").read_bytes() == content
    assert (mount.path / "folder/new").read_bytes() == b"small"
    assert os.readlink(mount.path / "link") == "closed"


def test_a_terminated_process_saves_what_open_files_had_not_synced(tmp_path: Path) -> None:
    """Point 10: SIGTERM is an orderly end, also for programs that go on."""
    content = noise(200_000)
    with mounted(tmp_path, FUSE, expects_warnings=True) as mount:
        with killed_with_open_file(mount, "file", signal.SIGTERM) as file:
            file.write(content)
        mount.remount()
        assert (mount.path / "file").read_bytes() == content


@contextlib.contextmanager
def killed_with_open_file(mount: Mount, name: str, number: int) -> Iterator[io.FileIO]:
    """A file in the mount, open for writing, whose mount is killed before it is closed."""
    file = open(os.open(mount.path / name, os.O_WRONLY | os.O_CREAT), "wb", buffering=0)
    try:
        yield file
    finally:
        mount.signal(number)
        mount.wait_ended()
        with contextlib.suppress(OSError):
            file.close()


# 11


def test_a_file_whose_blocks_are_evicted_can_be_synced(mount: Mount) -> None:
    """Point 11, first half: fsync needs only what was changed."""
    path = mount.path / "file"
    content = bytearray(noise(3 * BLOCK_BYTES))
    path.write_bytes(content)
    mount.evict()
    with open(path, "r+b", buffering=0) as file:
        os.fsync(file.fileno())
        file.seek(BLOCK_BYTES + 5)
        file.write(b"changed")
        os.fsync(file.fileno())
    content[BLOCK_BYTES + 5 : BLOCK_BYTES + 12] = b"changed"
    mount.kill()
    mount.remount()
    assert path.read_bytes() == content


def test_small_synced_changes_cost_little_writing(one_mount: Mount) -> None:
    """Point 11, second half: 50 times 128 bytes and fsync write well below 1 MB to the disk."""
    path = one_mount.path / "file"
    content = bytearray(noise(900_000))
    path.write_bytes(content)
    one_mount.flush()
    before = disk_bytes_written(one_mount.pid)
    with killed_with_open_file(one_mount, "file", signal.SIGKILL) as file:
        for number in range(50):
            change = noise(128, number + 1)
            place = number * 17_000
            content[place : place + 128] = change
            os.pwrite(file.fileno(), change, place)
            os.fsync(file.fileno())
        written = disk_bytes_written(one_mount.pid) - before
    one_mount.remount()
    assert path.read_bytes() == content
    assert written < 1_000_000


# 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 80 MB."""
    if not IS_ROOT:
        pytest.skip("only root can mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def test_a_full_local_disk_is_an_error_and_no_loss(tmp_path: Path, small_disk: Path) -> None:
    """Point 12: cp fails, what was there stays whole, and the mount works again with room."""
    content = noise(2 * BLOCK_BYTES)
    with mounted(
        tmp_path, FUSE, limit="1000", data=small_disk / "data", expects_warnings=True,
        settings={"timeout": "1", "min_free": "4"},
    ) as mount:  # fmt: skip
        # So that uploading and evicting can't make room.
        os.rename(mount.remote, f"{mount.remote}.away")
        before = mount.path / "before"
        before.write_bytes(content)
        ballast = small_disk / "ballast"
        with open(ballast, "wb") as file:
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            file.write(bytes(free - 5_000_000))
        source = tmp_path / "source"
        source.write_bytes(noise(8 * BLOCK_BYTES, 1))
        copied = subprocess.run(
            ["cp", source, mount.path / "after"], capture_output=True, timeout=60, check=False
        )
        assert copied.returncode
        assert b"No space left" in copied.stderr
        assert before.read_bytes() == content
        ballast.unlink()
        os.rename(f"{mount.remote}.away", mount.remote)
        run("cp", source, mount.path / "after")
        mount.evict()
        mount.remount()
        assert before.read_bytes() == content
        assert filecmp.cmp(source, mount.path / "after", shallow=False)


def test_more_than_the_local_disk_holds_can_be_written(tmp_path: Path, small_disk: Path) -> None:
    """Point 12: with a server to take it, the disk's floor only slows the writer down."""
    with mounted(
        tmp_path, FUSE, limit="1000", data=small_disk / "data", settings={"min_free": "20"}
    ) as mount:
        content = noise(100 << 20)
        (mount.path / "file").write_bytes(content)
        assert (mount.path / "file").read_bytes() == content
        assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize > 16_000_000


# 13


def test_a_damaged_local_block_is_never_read_as_content(one_mount: Mount) -> None:
    """Point 13: each local copy is verified, and fetched again if it is bad."""
    path = one_mount.path / "file"
    content = noise(2 * BLOCK_BYTES)
    path.write_bytes(content)
    one_mount.flush()
    one_mount.umount()
    for block in (one_mount.data / "blocks").glob("??/*"):
        damaged = bytearray(block.read_bytes())
        damaged[5000] ^= 1
        block.write_bytes(damaged)
    one_mount.mount()
    assert path.read_bytes() == content
    assert one_mount.status()["fetched_blocks"] == 2


def test_a_damaged_block_on_the_server_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Point 13, the other side: verified before a byte of it is returned."""
    with mounted(tmp_path, FUSE, expects_warnings=True) as mount:
        path = mount.path / "album/photo"
        path.parent.mkdir()
        path.write_bytes(noise(100_000))
        (mount.path / "other").write_bytes(b"fine")
        mount.evict()
        for block in (Path(mount.remote) / "blocks").glob("??/*"):
            damaged = bytearray(block.read_bytes())
            damaged[-5000] ^= 1
            block.write_bytes(damaged)
        mount.remount()
        with pytest.raises(OSError) as caught:
            path.read_bytes()
        assert caught.value.errno == errno.EIO
        assert "album/photo" in mount.log
        assert (mount.path / "other").read_bytes() == b"fine"


# 14


def test_a_server_that_hangs_is_an_error_in_time(tmp_path: Path, server: Sshd) -> None:
    """Point 14: a read fails after the time limit, the rest goes on, and recovery needs nothing."""
    with mounted(
        tmp_path, FUSE, remote=f"{HOST}:{tmp_path}/remote", env=server_environment(server),
        settings={"timeout": "2"}, expects_warnings=True,
    ) as mount:  # fmt: skip
        path = mount.path / "file"
        path.write_bytes(noise(100_000))
        (mount.path / "small").write_bytes(b"local")
        mount.evict()
        forget_pages(path)
        server.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(OSError) as caught:
                path.read_bytes()
            assert caught.value.errno == errno.EIO
            # The time limit for what was under way, once more to connect anew, and some ease.
            assert time.monotonic() - began < 10
            assert (mount.path / "small").read_bytes() == b"local"
            (mount.path / "new").write_bytes(b"written meanwhile")
            assert mount.status()["remote"]["state"] == "offline"
        finally:
            server.thaw()
        wait_until(lambda: mount.status()["remote"]["state"] == "online", 30)
        assert path.read_bytes() == noise(100_000)
        mount.flush()


def test_commands_that_can_not_work_say_so(tmp_path: Path) -> None:
    """Point 14: the exit status of init with a dead server, and of mount on a bad directory."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(CommandError) as dead:
        syncer("init", tmp_path / "data", f"sftp://127.0.0.1:{port}/x")
    assert dead.value.status == 4
    with pytest.raises(CommandError) as bad:
        syncer("mount", tmp_path / "data", tmp_path / "remote", tmp_path / "missing")
    assert bad.value.status
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "remote").exists()


# 15


def test_a_data_directory_is_mounted_once(one_mount: Mount, tmp_path: Path) -> None:
    """Point 15: the second mount is refused, and the first goes on."""
    (tmp_path / "second").mkdir()
    with pytest.raises(CommandError) as caught:
        one_mount.run("mount", one_mount.data, tmp_path / "second")
    assert "in use" in str(caught.value)
    (one_mount.path / "file").write_bytes(b"content")
    one_mount.remount()
    assert (one_mount.path / "file").read_bytes() == b"content"


# 16


def test_many_small_files_make_few_objects(one_mount: Mount) -> None:
    """Point 16: 2,000 files of 10 bytes made 8,004 objects and 76 MB."""
    folder = one_mount.path / "folder"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number}").write_bytes(b"%010d" % number)
    one_mount.flush()
    objects = [path for path in Path(one_mount.remote).rglob("*") if path.is_file()]
    assert len(objects) < 100
    assert sum(path.stat().st_size for path in objects) < 2_000_000


def test_what_is_removed_at_once_is_never_uploaded(one_mount: Mount) -> None:
    """Point 16: what nothing names leaves no garbage, neither here nor on the server."""
    os.rename(one_mount.remote, f"{one_mount.remote}.away")
    path = one_mount.path / "file"
    for number in range(5):
        path.write_bytes(noise(BLOCK_BYTES, number))
        path.unlink()
    (one_mount.path / "kept").write_bytes(noise(BLOCK_BYTES, 99))
    wait_until(lambda: one_mount.block_bytes() == BLOCK_BYTES)
    os.rename(f"{one_mount.remote}.away", one_mount.remote)
    one_mount.flush()
    assert len(list((Path(one_mount.remote) / "blocks").glob("??/*"))) == 1


# 17


def test_small_objects_share_connections_and_the_process_ends_with_the_mount(
    tmp_path: Path, server: Sshd
) -> None:
    """Point 17: no connection per few objects; unmounting does not wait for the backlog."""
    remote = f"{HOST}:{tmp_path}/remote"
    with mounted(
        tmp_path, FUSE, remote=remote, env=server_environment(server),
        settings={"connections": "4", "timeout": "2"},
    ) as mount:  # fmt: skip
        for number in range(200):
            (mount.path / f"{number}").write_bytes(noise(5000, number))
        mount.flush()
        log = (server.folder / "log").read_text()
        assert len(re.findall("Accepted publickey", log)) <= 10
        server.stop()
        for number in range(20):
            (mount.path / f"late-{number}").write_bytes(noise(200_000, number))
        began = time.monotonic()
        mount.umount()
        assert time.monotonic() - began < 15
        server.start()
        mount.mount()
        mount.flush()
        assert mount.status()["safe"]


def test_a_clone_fetches_nothing_but_what_is_read(one_mount: Mount, tmp_path: Path) -> None:
    """Point 17: not each version of each file."""
    path = one_mount.path / "file"
    for number in range(4):
        path.write_bytes(noise(2 * BLOCK_BYTES, number))
        one_mount.flush()
    with mounted(tmp_path, one_mount.fuse, name="clone", clone=True) as clone:
        assert (clone.path / "file").stat().st_size == 2 * BLOCK_BYTES
        assert clone.status()["fetched_blocks"] == 0
        assert (clone.path / "file").read_bytes() == noise(2 * BLOCK_BYTES, 3)
        assert clone.status()["fetched_blocks"] == 2


# 18


def test_the_limit_on_local_data_is_held(tmp_path: Path) -> None:
    """Point 18: by small objects and one large open file alike, on the disk and in memory."""
    limit, slack = 64_000_000, 16_000_000
    with mounted(tmp_path, FUSE, limit="64") as mount:
        samples: list[tuple[int, int]] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.1):
                samples.append((mount.block_bytes(), resident_bytes(mount.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for number in range(500):
                (mount.path / f"{number}").write_bytes(noise(5000, number))
            with open(mount.path / "large", "wb") as file:
                for number in range(160):
                    file.write(noise(BLOCK_BYTES, number))
            mount.evict()
            assert (mount.path / "7").read_bytes() == noise(5000, 7)
            with open(mount.path / "large", "rb") as file:
                for number in range(160):
                    assert file.read(BLOCK_BYTES) == noise(BLOCK_BYTES, number)
        finally:
            done.set()
            watcher.join()
        assert max(sample[0] for sample in samples) <= limit + slack
        assert max(sample[1] for sample in samples) <= 200_000_000
        mount.evict()
        # All of it can go: small objects as well.
        assert mount.block_bytes() == 0


# 19


def test_two_machines_never_overwrite_each_other_in_silence(tmp_path: Path) -> None:
    """Point 19: one writes; who takes over makes the other read-only, and its changes stay."""
    fuse = BINDINGS[-1]
    with mounted(tmp_path, fuse, name="first", expects_warnings=True) as first:
        file = first.path / "file"
        file.write_bytes(b"from the start")
        first.flush()
        with mounted(tmp_path, fuse, name="second", clone=True) as second:
            theirs = second.path / "file"
            with pytest.raises(OSError) as caught:
                theirs.write_bytes(b"refused")
            assert caught.value.errno == errno.EROFS
            second.remount("--take-over")
            theirs.write_bytes(b"of the second")
            second.flush()
            # If it has heard of the other one by now, it refuses that already.
            written = b""
            with contextlib.suppress(OSError):
                file.write_bytes(b"of the first")
                written = b"of the first"
            wait_until(lambda: first.status()["role"] != "writer")
            with pytest.raises(OSError) as caught:
                file.write_bytes(b"too late")
            assert caught.value.errno == errno.EROFS
            if written == b"of the first":
                assert first.status()["stranded_changes"]
                assert file.read_bytes() == written
            assert theirs.read_bytes() == b"of the second"
