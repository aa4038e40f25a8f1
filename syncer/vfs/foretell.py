"""Which files will be read next: those that follow, by name, the ones that were read in this order.

A folder's photos are looked at one after another, by thumbnailers, viewers and copying programs,
and each file is too short for reading ahead within it. So where a file is read whose name comes
soon after that of the last one read in its folder, the files after it are fetched too: their
beginnings, if only the beginning of the last one was read, else all of them. The window doubles
with each file that continues the series; over a long line it begins with what that carries in some
round trips.

Costs two queries where the first read of a file finds it absent, and none where it is local,
unless it was foretold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from syncer.blocks.heads import HEAD_BYTES
from syncer.codec import BLOCK_BYTES, split_ids
from syncer.metadata.contents import Contents
from syncer.metadata.node import Node
from syncer.metadata.tree import Tree

#: A name continues a series if it is among so many after the last one.
_NEAR_NAMES = 8
_FIRST_WINDOW_FILES = 4
_MAX_WINDOW_FILES = 32
#: Folders that are being read at once.
_MAX_SERIES = 16

Ask = Callable[[Sequence[bytes], bool], None]
"""Given ids of blocks to fetch, and whether their beginnings will do."""


@dataclass
class _Series:
    """A folder whose files are read in the order of their names."""

    last_number: int
    last_name: bytes
    window_files: int = 0
    wants_all: bool = False
    """Whether more than beginnings are asked for."""
    went_beyond: bool = False
    """Whether more than the beginning of the last file was read."""
    told: dict[int, bytes] = field(default_factory=dict)
    """The files that were foretold and not read yet: nodes and names, in order."""


class Foretelling:
    """Notices folders that are read in order. May be used from several threads."""

    def __init__(
        self,
        tree: Tree,
        contents: Contents,
        ask: Ask,
        max_bytes: int,
        lead_bytes: Callable[[], int],
    ) -> None:
        """`max_bytes` bounds what is asked for at once, but for beginnings. `lead_bytes` tells how
        much a long line must be asked for at once so that it is not idle."""
        self._tree = tree
        self._contents = contents
        self._ask = ask
        self._max_bytes = max_bytes
        self._lead_bytes = lead_bytes
        self._lock = threading.Lock()
        # The lock guards everything below; it comes before the database's.
        self._series: dict[int, _Series] = {}  # by folder; those that went on last at the end
        self._folders: dict[int, int] = {}  # of the files that any series has as last or told

    def begin(self, number: int, is_local: Callable[[], bool]) -> None:
        """A file is read for the first time through some handle."""
        with self._lock:
            folder = self._folders.get(number)
            series = self._series.get(folder) if folder is not None else None
            name = series.told.get(number) if series is not None else None
        if name is None:
            if is_local():
                return
            names = self._tree.names_of(number)
            if not names:
                return
            folder, name = names[0]
        assert folder is not None
        with self._lock:
            series = self._series.pop(folder, None)
            if series is None or not self._continues(folder, series, number, name):
                if series is not None:
                    self._forget(series)
                self._series[folder] = _Series(number, name)
                self._folders[number] = folder
                while len(self._series) > _MAX_SERIES:
                    self._forget(self._series.pop(next(iter(self._series))))
                return
            self._series[folder] = series
            self._go_on(folder, series, number, name)

    def go_beyond(self, number: int) -> None:
        """More than the beginning of a file is read."""
        with self._lock:
            folder = self._folders.get(number)
            series = self._series.get(folder) if folder is not None else None
            if series is None or series.last_number != number or series.went_beyond:
                return
            series.went_beyond = True
            if not series.wants_all:
                series.wants_all = True
                # So far only their beginnings were asked for.
                self._ask_for(series, filter(None, map(self._tree.node, series.told)))

    def _continues(self, folder: int, series: _Series, number: int, name: bytes) -> bool:
        if number in series.told or number == series.last_number:
            return True
        near = self._tree.entries(folder, series.last_name, _NEAR_NAMES)
        return any(name == each for each, _node in near)

    def _go_on(self, folder: int, series: _Series, number: int, name: bytes) -> None:
        if number == series.last_number:
            return
        for passed in [each for each, told in series.told.items() if told <= name]:
            del series.told[passed]
            # A file that was moved may be in another folder's series by now.
            self._folders.pop(passed, None)
        self._folders.pop(series.last_number, None)
        self._folders[number] = folder
        series.last_number, series.last_name = number, name
        series.wants_all, series.went_beyond = series.went_beyond, False
        # Of whole files, the first window is as much as most lines carry in some round trips.
        lead_files = 0 if series.wants_all else self._lead_bytes() // HEAD_BYTES
        window = max(_FIRST_WINDOW_FILES, lead_files, 2 * series.window_files)
        window = min(window, _MAX_WINDOW_FILES)
        series.window_files = window
        if len(series.told) > window // 2:
            return
        after = max(series.told.values(), default=name)
        entries = self._tree.entries(folder, after, window - len(series.told))
        names = {node.id: each for each, node in entries}
        for asked in self._ask_for(series, (node for _name, node in entries)):
            # Of a file with two names in the folder, it is the latter one's turn.
            series.told[asked] = names[asked]
            self._folders[asked] = folder

    def _ask_for(self, series: _Series, nodes: Iterable[Node]) -> list[int]:
        """Ask for these files, until that is much; returns which were reached."""
        whole: list[bytes] = []
        heads: list[bytes] = []
        reached = []
        room_bytes = self._max_bytes
        for node in nodes:
            if room_bytes <= 0:
                break
            reached.append(node.id)
            if not node.is_file:
                continue
            # The first run will do, however long the file is; `ask` passes over holes.
            ids = split_ids(self._contents.run(node.id, 0))
            if series.wants_all or node.size <= HEAD_BYTES:
                whole += ids[: -(-self._max_bytes // BLOCK_BYTES)]
                room_bytes -= node.size
            else:
                heads += ids[:1]
        if whole:
            self._ask(whole, False)
        if heads:
            self._ask(heads, True)
        return reached

    def _forget(self, series: _Series) -> None:
        for number in (series.last_number, *series.told):
            self._folders.pop(number, None)
