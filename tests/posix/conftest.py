"""The places where the table is checked: each binding, and the native file system it must equal."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, mounted
from tests.posix.case import populate

EXACT = "3 exact"
"""libfuse 3 without the kernel's writeback cache."""
NATIVE = "ext4"
_VARIANTS = [*BINDINGS, *([EXACT] if "3" in BINDINGS else [])]


@pytest.fixture(scope="module", autouse=True)
def collections_are_short() -> Iterator[None]:
    """Each test ends with a garbage collection; without this, most of the time would go there."""
    gc.freeze()
    yield
    gc.unfreeze()


def _is_ext4(path: Path) -> bool:
    words = ["stat", "-f", "-c", "%T", str(path)]
    return b"ext" in subprocess.run(words, check=True, capture_output=True).stdout


@dataclass
class Variant:
    """One file system under test; `place` gives a fresh folder with what each case finds."""

    name: str
    root: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def place(self) -> Path:
        place = self.root / f"{next(self.numbers)}"
        populate(place)
        return place


@pytest.fixture(scope="module", params=[NATIVE, *_VARIANTS])
def variant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Variant]:
    folder = tmp_path_factory.mktemp("posix")
    if request.param == NATIVE:
        # The table itself is checked where that is possible; elsewhere this is no case at all.
        yield Variant(NATIVE if _is_ext4(folder) else "", folder)
        return
    options = ["allow_other", "suid", "dev"] if os.geteuid() == 0 else []
    writeback = "off" if request.param == EXACT else "on"
    with mounted(
        folder, request.param[0], options=options, settings={"writeback": writeback}
    ) as mount:
        yield Variant(request.param, mount.path)
