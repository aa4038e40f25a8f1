"""What every test is held to, whatever it tests.

A test may log no warning, leave no thread of syncer behind and no mount. On CI nothing is skipped.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from syncer.blocks import flights

if TYPE_CHECKING:
    from tests.vfs_rig import VfsRig

ON_CI = bool(os.environ.get("CI"))

# Where Python is told to keep no bytecode, each of the many commands that tests run would compile
# the whole program anew: more work than all else that a mount does to begin.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_THREADS_END_WITHIN_SECONDS = 5.0
# Each test that fetches something would wait so long for the threads that have done it.
flights._IDLE_SECONDS = 0.05


class _Warnings(logging.Handler):
    """Collects what is logged at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.levelname} {record.name}: {self.format(record)}")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test if it logged a warning, or if a thread named syncer-* outlives it.

    Autouse fixtures are set up first, so this one looks when the others have cleaned up.
    """
    before = set(threading.enumerate())
    warnings = _Warnings()
    logger = logging.getLogger("syncer")
    logger.addHandler(warnings)
    try:
        yield
        # What nobody closed warns now, in this test, and not in some later one.
        gc.collect()
        left = _threads_left(before)
    finally:
        logger.removeHandler(warnings)
    assert not left, f"threads outlive the test: {left}"
    if not request.node.get_closest_marker("expects_warnings"):
        assert not warnings.texts, "syncer logged:\n" + "\n".join(warnings.texts)


def _threads_left(before: set[threading.Thread]) -> list[str]:
    deadline = time.monotonic() + _THREADS_END_WITHIN_SECONDS
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("syncer-"):
            thread.join(max(0.0, deadline - time.monotonic()))
    return sorted(
        thread.name
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("syncer-")
    )


@pytest.fixture(scope="session", autouse=True)
def no_mount_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Unmounts what the tests left mounted below their temporary folder, and fails if it had to."""
    yield
    left = mounts_below(tmp_path_factory.getbasetemp())
    for mountpoint in left:
        if subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False).returncode:
            subprocess.run(["umount", "-l", mountpoint], check=False)
    assert not left, f"tests left mounted: {left}"


def mounts_below(folder: Path) -> list[Path]:
    """The FUSE mounts below a folder, whoever made them. Does not look into them."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # Fields 5 and, after the dash, 1 of proc(5): the mount point, with octal escapes; the type.
        mount, _, filesystem = line.partition(b" - ")
        mountpoint = Path(os.fsdecode(re.sub(rb"\\(\d{3})", _unescaped, mount.split()[4])))
        if filesystem.startswith((b"fuse ", b"fuse.")) and folder in mountpoint.parents:
            found.append(mountpoint)
    return found


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 8)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _longest_files_first(items)
    if ON_CI or os.path.exists("/dev/fuse"):
        return
    for item in items:
        if item.get_closest_marker("fuse"):
            item.add_marker(pytest.mark.skip(reason="there is no /dev/fuse"))


def _longest_files_first(items: list[pytest.Item]) -> None:
    """Where several workers share the files, none is to begin a long one when the others end."""
    seconds: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("slow")
        seconds[item.path] = seconds.get(item.path, 0.0) + (mark.args[0] if mark else 0.0)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # An expected failure is reported as skipped as well.
    if not hasattr(report, "wasxfail"):
        _skipping_fails_on_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _skipping_fails_on_ci(report)
    return report


def _skipping_fails_on_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    """CI has all that tests need, or it would pass without having tested."""
    if ON_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure on CI: {report.longrepr}"


@pytest.fixture
def rig() -> Iterator[VfsRig]:
    """An empty file system without a mount. Where a test needs another one, its module makes it."""
    # Here, since this file is also tried out in folders of its own.
    from tests.vfs_rig import VfsRig, fast_folder

    with fast_folder() as folder:
        rig = VfsRig(folder)
        yield rig
        rig.close()
