"""One file under several names, which the kernel takes for several files with several caches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import mounted

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module", params=["on", "off"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("links")
    with mounted(place, "3", settings={"writeback": request.param}) as mount:
        yield mount.path


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
