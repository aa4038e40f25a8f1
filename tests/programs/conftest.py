"""The places where programs run: a mount, and the machine's own file system to compare it with."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, Mount, mounted

PROGRAM_SECONDS = 150.0
"""Longer than any program here takes; below the time limit of a test."""


@dataclass(frozen=True)
class Place:
    """Fresh folders for one test: in a mount, and on the machine's own file system."""

    mount: Mount
    path: Path
    native: Path

    def agree(self, script: str) -> str:
        """What a shell script says in the mount's folder. Fails unless it says so in the other."""
        said, expected = shell(script, self.path), shell(script, self.native)
        assert said == expected
        return said


def run(*words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program, and return what it printed. Fails unless it ends well."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout


def shell(script: str, cwd: Path) -> str:
    """Run a shell script, which ends with its first failure, and return what it printed."""
    return run("bash", "-euo", "pipefail", "-c", script, cwd=cwd)


MountOf = Callable[[str], Mount]


@pytest.fixture(scope="package")
def mount_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountOf]:
    """Gives the one mount of a libfuse that all programs share, made when the first asks."""
    options = ["allow_other", "suid", "dev"] if os.geteuid() == 0 else []
    mounts: dict[str, Mount] = {}
    with contextlib.ExitStack() as opened:

        def of(fuse: str) -> Mount:
            if fuse not in mounts:
                folder = tmp_path_factory.mktemp("programs")
                mounts[fuse] = opened.enter_context(mounted(folder, fuse, options=options))
            return mounts[fuse]

        yield of


def _place(mount: Mount, folder: Path) -> Place:
    # The name that pytest gave the folder is the test's own.
    path = mount.path / folder.name
    native = folder / "native"
    path.mkdir()
    native.mkdir()
    return Place(mount, path, native)


@pytest.fixture
def place(mount_of: MountOf, tmp_path: Path) -> Place:
    """In a mount of libfuse 3 as it is by default."""
    return _place(mount_of(BINDINGS[-1]), tmp_path)


@pytest.fixture(params=BINDINGS)
def each(request: pytest.FixtureRequest, mount_of: MountOf, tmp_path: Path) -> Place:
    """In a mount of each libfuse."""
    return _place(mount_of(request.param), tmp_path)
