"""A directory of 100,000 names. How long a listing takes stands in docs/performance.md."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, mounted
from tests.posix.case import in_processes

pytestmark = [pytest.mark.fuse, pytest.mark.torture]

_COUNT = 100_000


@pytest.mark.parametrize("fuse", BINDINGS)
def test_a_hundred_thousand_names_are_listed_whole_while_others_change(
    tmp_path: Path, fuse: str
) -> None:
    with mounted(tmp_path, fuse) as mount:
        folder = mount.path / "folder"
        folder.mkdir()
        names = [f"IMG_{number:06d}.jpg" for number in range(_COUNT)]
        for name in names:
            os.mknod(folder / name)
        assert sorted(os.listdir(folder)) == names
        mount.remount()
        assert sorted(os.listdir(folder)) == names

        def work(number: int) -> None:
            if number % 2:
                for name in names[number::50]:
                    os.mknod(folder / f"{name}-{number}")
                    os.rename(folder / f"{name}-{number}", folder / f"A{name}-{number}")
                    os.unlink(folder / f"A{name}-{number}")
                return
            for _ in range(3):
                found = Counter(os.listdir(folder))
                assert max(found.values()) == 1
                assert all(name in found for name in names)

        in_processes(work)
        with os.scandir(folder) as entries:
            assert all(entry.stat().st_size == 0 for entry in entries)
        for name in names[::2]:
            os.unlink(folder / name)
        assert sorted(os.listdir(folder)) == names[1::2]
