"""64 processes of mixed work, which verify what they read, on a mount whose limit they exceed.

No error, no deadlock; memory, threads and descriptors do not grow with the work.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import work
from tests.faults.test_kills import truth_of, working
from tests.mounted import BINDINGS, Mount, mounted, resident_bytes

pytestmark = pytest.mark.fuse

_PROCESSES = 64
_SECONDS = float(os.environ.get("SYNCER_LOAD_SECONDS", "20"))
_TORTURE_SECONDS = 600.0
_LIMIT_MB = 64
_STUCK_SECONDS = 60.0
"""No worker takes longer for one call, however busy the machine is."""
_FLAT_BYTES = 96_000_000
"""What the process may grow by after its first seconds: buffers of open files (32 MiB), caches of
rows, and what its allocator does not give back."""


@dataclass(frozen=True)
class Sample:
    resident_bytes: int
    threads: int
    descriptors: int


def sample(pid: int) -> Sample:
    return Sample(
        resident_bytes(pid),
        len(os.listdir(f"/proc/{pid}/task")),
        len(os.listdir(f"/proc/{pid}/fd")),
    )


def load(folder: Path, fuse: str, seconds: float, ballast_files: int) -> None:
    journals = folder / "journals"
    journals.mkdir()
    with mounted(folder, fuse, limit=str(_LIMIT_MB), settings={"timeout": "60"}) as mount:
        # So that the limit is a tenth of the data, or what the time is enough for.
        for number in range(ballast_files):
            (mount.path / f"ballast-{number}").write_bytes(work.noise(number, 8 << 20))
        seeds = range(_PROCESSES)
        places = [(mount.path / str(seed), journals / str(seed), seed) for seed in seeds]
        samples = []
        with working(places, verify=True):
            try:
                samples = _watch(mount, journals, seconds)
            finally:
                (journals / "stop").touch()
        calls = sum(work.calls(journal)[1] for _, journal, _ in places)
        print(f"{calls} calls in {seconds:.0f} s; {samples[0]} to {samples[-1]}")
        assert mount.status()["errors"] == []
        _check_flat(samples)
        for place in places:
            work.check(*place)
        mount.evict()
        mount.remount()
        for place in places:
            work.check(*place)
        for number in range(ballast_files):
            content = (mount.path / f"ballast-{number}").read_bytes()
            assert content == work.noise(number, 8 << 20)
        truths = {folder.name: truth_of(folder) for folder, _, _ in places}
        with mounted(folder, fuse, name="clone", clone=True, limit=str(_LIMIT_MB)) as clone:
            for name, truth in truths.items():
                assert truth_of(clone.path / name) == truth, name


def _watch(mount: Mount, journals: Path, seconds: float) -> list[Sample]:
    """Look at the process while the workers work, and see that each of them goes on."""
    end = time.monotonic() + seconds
    samples, moved = [], dict.fromkeys(range(_PROCESSES), (0, time.monotonic()))
    while (now := time.monotonic()) < end:
        time.sleep(min(1.0, seconds / 20))
        samples.append(sample(mount.pid))
        for seed, (before, since) in moved.items():
            _, done = work.calls(journals / str(seed))
            error = (journals / str(seed)).with_suffix(".error")
            assert not error.exists(), error.read_text()
            if done != before:
                moved[seed] = done, now
            assert now - since < _STUCK_SECONDS, f"worker {seed} is stuck"
    assert all(done for done, _ in moved.values()), "some workers did nothing"
    return samples


def _check_flat(samples: list[Sample]) -> None:
    """After a third of the time, what it takes has reached its height."""
    third = len(samples) // 3
    early, late = samples[:third], samples[-third:]
    # One of libfuse's own for each process that waits.
    assert max(one.threads for one in late) <= max(one.threads for one in early) + _PROCESSES
    assert max(one.descriptors for one in late) <= max(one.descriptors for one in early) + 80
    grown = max(one.resident_bytes for one in late) - max(one.resident_bytes for one in early)
    assert grown < _FLAT_BYTES, f"it has grown by {grown} bytes"


@pytest.mark.slow(45)
def test_many_processes_at_once_are_served_right(tmp_path: Path) -> None:
    load(tmp_path, BINDINGS[-1], _SECONDS, 8)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_ten_minutes_of_many_processes_are_served_right(tmp_path: Path) -> None:
    seconds = float(os.environ.get("SYNCER_LOAD_SECONDS", _TORTURE_SECONDS))
    load(tmp_path, BINDINGS[-1], seconds, 80)
