"""Runs syncer as a person does, in processes of its own, and looks at what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import mounts_below

COMMAND_SECONDS = 60.0


def command(*words: str | Path) -> list[str]:
    """The command line that runs syncer with these words."""
    return [sys.executable, "-m", "syncer", *map(str, words)]


def run(
    *words: str | Path, expect: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Fails unless it ends with that exit status."""
    done = subprocess.run(
        command(*words),
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which ``python -m syncer`` works from any folder."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, **more}


def status(target: str | Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(run("status", target, "--json").stdout)
    return state


def is_mounted(path: Path) -> bool:
    return path in mounts_below(path.parent)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so; fails if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        # The first thread may have ended before the others, which still hold what is open.
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found


def contents(folder: Path) -> dict[str, bytes | None]:
    """All below a folder: the files' contents by their paths, None for what is no file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
