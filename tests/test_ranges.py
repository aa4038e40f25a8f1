"""Holes, allocation and copies that share blocks, as programs use them through the mount."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import Mount, mounted

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(tmp_path_factory.mktemp("ranges"), "3") as mount:
        yield mount


@pytest.fixture
def folder(mount: Mount, request: pytest.FixtureRequest) -> Path:
    folder = mount.path / request.node.name
    folder.mkdir()
    return folder


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if libc.fallocate(descriptor, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def test_a_punched_hole_reads_as_zeros_and_leaves_the_rest(folder: Path) -> None:
    content = bytearray(os.urandom(5 * MIB + 12345))
    path = folder / "file"
    path.write_bytes(content)
    with path.open("r+b") as file:
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, MIB + 100, 2 * MIB)
        content[MIB + 100 : 3 * MIB + 100] = bytes(2 * MIB)
        fallocate(file.fileno(), ZERO_RANGE | KEEP_SIZE, 10, 20)
        content[10:30] = bytes(20)
    assert path.read_bytes() == content


def test_allocating_behind_the_end_makes_the_file_longer_unless_told_not_to(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"begin")
    with path.open("r+b") as file:
        fallocate(file.fileno(), KEEP_SIZE, 0, 3 * MIB)
        assert path.stat().st_size == 5
        fallocate(file.fileno(), 0, 0, 3 * MIB)
    assert path.read_bytes() == b"begin" + bytes(3 * MIB - 5)


def test_content_is_not_moved_by_fallocate(folder: Path) -> None:
    with (folder / "file").open("w+b") as file:
        file.write(bytes(MIB))
        with pytest.raises(OSError, match="not supported") as refused:
            fallocate(file.fileno(), COLLAPSE_RANGE, 0, 4096)
    assert refused.value.errno == errno.EOPNOTSUPP


def test_seek_finds_the_data_in_a_file_of_five_terabytes(folder: Path) -> None:
    path = folder / "file"
    with path.open("w+b") as file:
        descriptor = file.fileno()
        os.ftruncate(descriptor, 5 << 40)
        os.pwrite(descriptor, b"here", 4 << 40)
        os.fsync(descriptor)
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 4 << 40
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 0
        assert os.lseek(descriptor, 4 << 40, os.SEEK_HOLE) == (4 << 40) + MIB
        fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, 0, 5 << 40)
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(descriptor, 0, os.SEEK_DATA)


@pytest.mark.parametrize("offset", [0, MIB, 777], ids=["whole", "from a block", "unaligned"])
def test_a_copied_range_has_the_same_bytes(folder: Path, offset: int) -> None:
    content = os.urandom(3 * MIB + 5000)
    (folder / "source").write_bytes(content)
    with (folder / "source").open("rb") as source, (folder / "copy").open("w+b") as copy:
        os.lseek(source.fileno(), offset, os.SEEK_SET)
        while os.copy_file_range(source.fileno(), copy.fileno(), 100 * MIB):
            pass
    assert (folder / "copy").read_bytes() == content[offset:]


def test_a_copy_shares_blocks_and_stays_apart_from_its_source(mount: Mount, folder: Path) -> None:
    content = os.urandom(3 * MIB + 5000)
    (folder / "source").write_bytes(content)
    mount.flush()
    mount.evict()
    before = mount.status()
    with (folder / "source").open("rb") as source, (folder / "copy").open("w+b") as copy:
        assert os.copy_file_range(source.fileno(), copy.fileno(), 10 * MIB) == len(content)
    mount.flush()
    after = mount.status()
    assert after["fetched_blocks"] == before["fetched_blocks"]
    assert after["uploaded_bytes"] == before["uploaded_bytes"]
    with (folder / "copy").open("r+b") as copy:
        copy.write(b"changed")
    assert (folder / "copy").read_bytes() == b"changed" + content[7:]
    assert (folder / "source").read_bytes() == content


def test_holes_stay_holes_for_the_programs_that_look_for_them(mount: Mount, folder: Path) -> None:
    source = folder / "source"
    with source.open("w+b") as file:
        os.pwrite(file.fileno(), os.urandom(2 * MIB), 3 * MIB)
        os.ftruncate(file.fileno(), 500 * MIB)
    assert source.stat().st_blocks * 512 == 2 * MIB
    subprocess.run(["cp", "--reflink=never", source, folder / "copy"], check=True)
    subprocess.run(["cp", "--sparse=always", source, folder / "always"], check=True)
    subprocess.run(["tar", "-cSf", folder / "tar", "-C", folder, "source"], check=True)
    assert (folder / "tar").stat().st_size < 3 * MIB
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "-xSf", folder / "tar", "-C", folder / "unpacked"], check=True)
    copies = (source, folder / "copy", folder / "always", folder / "unpacked/source")
    for path in copies:
        subprocess.run(["cmp", source, path], check=True)
        assert path.stat().st_blocks * 512 == 2 * MIB
    mount.evict()
    mount.remount()
    taken = subprocess.check_output(["du", "-B1", *copies], text=True)
    assert [int(line.split()[0]) for line in taken.splitlines()] == [2 * MIB] * 4
