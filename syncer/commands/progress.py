"""A progress bar on a terminal; nothing where stderr is none. `rich` is imported when it shows."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def flush_bar() -> Iterator[Progress]:
    """Shows how many of the dirty bytes are uploaded, from the states that `flush` tells."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars("uploading", *columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        most = 0

        def show(state: dict[str, Any]) -> None:
            # What is written meanwhile is waited for as well: the bar's end moves.
            nonlocal most
            most = max(most, state["dirty_bytes"])
            bars.update(task, total=most or None, completed=most - state["dirty_bytes"])

        yield show


@contextlib.contextmanager
def fetch_counter() -> Iterator[Progress]:
    """Counts the fetched blocks, whose total nobody knows before, as `fetch` tells them."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console

    with Console(stderr=True).status("fetching") as line:

        def show(state: dict[str, Any]) -> None:
            if "counted_files" in state:
                line.update(f"counting: {state['counted_files']:,} files")
            else:
                line.update(f"fetching: {state['blocks']:,} blocks")

        yield show


@contextlib.contextmanager
def fsck_line() -> Iterator[Progress]:
    """Tells what is being looked at, and how far that is, as `fsck` tells it."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console

    with Console(stderr=True).status("checking") as line:

        def show(state: dict[str, Any]) -> None:
            far = f"{state['done']:,}" if state["done"] else ""
            if state["total"]:
                far = f"{100 * state['done'] // state['total']} %"
            line.update(f"{state['what']} {far}")

        yield show


def _silent(state: dict[str, Any]) -> None:
    pass
