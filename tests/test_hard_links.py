"""One file under several names, which the kernel takes for several files with several caches."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, mounted

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module", params=["on", "off"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("links")
    with mounted(place, "3", settings={"writeback": request.param}) as mount:
        yield mount.path


#: libfuse 2 has no writeback cache.
_VARIANTS = [(fuse, "off") for fuse in BINDINGS] + [("3", "on")]


@pytest.fixture(scope="module", params=_VARIANTS, ids=" ".join)
def any_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    fuse, writeback = request.param
    place = tmp_path_factory.mktemp("links")
    with mounted(place, fuse, settings={"writeback": writeback}) as mount:
        yield mount.path


@pytest.fixture
def any_folder(any_mount: Path, request: pytest.FixtureRequest) -> Path:
    folder = any_mount / request.node.name
    folder.mkdir()
    return folder


def test_a_write_through_one_name_is_not_lost_to_what_the_kernel_keeps_of_another(
    folder: Path,
) -> None:
    with (folder / "a").open("w+b", buffering=0) as first:
        first.write(b"a" * 200)
        os.link(folder / "a", folder / "b")
        os.pwrite(first.fileno(), b"X", 100)
        with (folder / "b").open("r+b", buffering=0) as second:
            assert os.pread(second.fileno(), 3, 99) == b"aXa"
            os.pwrite(second.fileno(), b"0123456789", 0)
            assert os.pread(first.fileno(), 12, 0) == b"0123456789aa"
            os.pwrite(first.fileno(), b"Y", 101)
            os.fsync(first.fileno())
    content = (folder / "b").read_bytes()
    assert content == b"0123456789" + b"a" * 90 + b"XY" + b"a" * 98
    assert (folder / "a").read_bytes() == content


@contextlib.contextmanager
def _kept_and_not(path: Path) -> Iterator[tuple[int, int]]:
    """Two descriptors of one name: the kernel keeps pages of the first, and none of the second,
    which was opened when there was another name."""
    first = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(first, b"a" * 8192)
    os.link(path, f"{path}-2")
    second = os.open(path, os.O_RDWR)
    try:
        yield first, second
    finally:
        os.close(first)
        os.close(second)


def test_what_the_kernel_keeps_may_come_by_a_descriptor_of_which_it_keeps_nothing(
    folder: Path,
) -> None:
    """It takes any that can write. So a hand-over for that one can't be waited for."""
    path = folder / "kept"
    with _kept_and_not(path) as (first, second):
        os.pwrite(first, b"X" * 10, 100)
        assert os.pread(second, 12, 99) == b"a" + b"X" * 10 + b"a"
        os.pwrite(first, b"Y" * 10, 5000)
        os.fsync(first)
        assert Path(f"{path}-2").read_bytes()[4999:5011] == b"a" + b"Y" * 10 + b"a"
        os.pwrite(second, b"Z" * 10, 200)
        assert os.pread(first, 12, 199) == b"a" + b"Z" * 10 + b"a"
        os.pwrite(first, b"W" * 10, 300)
    content = b"a" * 100 + b"X" * 10 + b"a" * 90 + b"Z" * 10 + b"a" * 90 + b"W" * 10
    content = (content + b"a" * (5000 - len(content)) + b"Y" * 10).ljust(8192, b"a")
    assert path.read_bytes() == Path(f"{path}-2").read_bytes() == content


def test_a_private_map_shows_what_was_written_before_though_the_kernel_kept_it(
    folder: Path,
) -> None:
    path = folder / "mapped"
    with _kept_and_not(path) as (first, second):
        os.pwrite(first, b"X" * 10, 100)
        with mmap.mmap(second, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as shown:
            assert shown[99:111] == b"a" + b"X" * 10 + b"a"
        with (
            open(f"{path}-2", "rb") as other,
            mmap.mmap(other.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as shown,
        ):
            assert shown[99:111] == b"a" + b"X" * 10 + b"a"


def test_attributes_and_counts_change_under_all_names_at_once(folder: Path) -> None:
    one, two, three = (folder / name for name in ("one", "two", "three"))
    one.write_bytes(b"content")
    os.link(one, two)
    assert one.stat().st_ino == two.stat().st_ino
    one.chmod(0o600)
    assert two.stat().st_mode & 0o777 == 0o600
    os.link(two, three)
    assert one.stat().st_nlink == 3
    one.unlink()
    assert two.stat().st_nlink == 2
    three.unlink()
    assert two.stat().st_nlink == 1


def test_what_is_appended_by_two_names_is_all_there(any_folder: Path) -> None:
    one, two = any_folder / "one", any_folder / "two"
    one.touch()
    os.link(one, two)
    with one.open("ab", buffering=0) as first, two.open("ab", buffering=0) as second:
        for number in range(20):
            first.write(b"first %d\n" % number)
            second.write(b"second %d\n" % number)
    lines = [f"{word} {number}" for number in range(20) for word in ("first", "second")]
    assert one.read_text().splitlines() == lines


def test_the_name_that_is_left_shows_what_was_written_by_the_other(any_folder: Path) -> None:
    one, two = any_folder / "one", any_folder / "two"
    one.write_bytes(b"short")
    os.link(one, two)
    assert one.stat().st_size == two.stat().st_size == 5
    with two.open("ab") as file:
        file.write(b" and long" * 1000)
    two.unlink()
    assert one.read_bytes() == b"short" + b" and long" * 1000
    with one.open("ab") as file:
        file.write(b".")
    assert one.read_bytes() == b"short" + b" and long" * 1000 + b"."


def test_a_removed_name_that_is_open_sees_what_is_done_by_the_other(any_folder: Path) -> None:
    one, two = any_folder / "one", any_folder / "two"
    one.write_bytes(b"content")
    os.link(one, two)
    with one.open("r+b", buffering=0) as file:
        one.unlink()
        assert os.fstat(file.fileno()).st_nlink == 1
        two.write_bytes(b"other")
        assert os.pread(file.fileno(), 100, 0) == b"other"
        file.write(b"O")
        assert two.read_bytes() == b"Other"
        two.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.pread(file.fileno(), 100, 0) == b"Other"


def test_two_removed_names_that_are_open_are_one_file(any_folder: Path) -> None:
    one, two = any_folder / "one", any_folder / "two"
    one.write_bytes(b"content")
    os.link(one, two)
    with one.open("r+b", buffering=0) as first, two.open("r+b", buffering=0) as second:
        one.unlink()
        two.unlink()
        assert os.fstat(first.fileno()).st_nlink == os.fstat(second.fileno()).st_nlink == 0
        second.write(b"CON")
        assert os.pread(first.fileno(), 100, 0) == b"CONtent"


def test_a_copied_range_shows_in_the_size_by_a_removed_name(tmp_path: Path) -> None:
    with mounted(tmp_path, "3", settings={"writeback": "off"}) as mount:
        one, two = mount.path / "one", mount.path / "two"
        one.write_bytes(b"content")
        os.link(one, two)
        with one.open("r+b") as first, two.open("r+b") as second:
            one.unlink()
            assert os.copy_file_range(second.fileno(), second.fileno(), 7, 0, 100) == 7
            assert os.fstat(first.fileno()).st_size == 107
            os.ftruncate(second.fileno(), 3)
            assert os.fstat(first.fileno()).st_size == 3
