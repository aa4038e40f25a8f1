"""Keeping local what is pinned: the thread `syncer-pins`.

It waits for what `Pins` notes. What has come into reach of the pins is marked and fetched at once.
When something may have left it, or could not be fetched, all pins are gone through (a *pass*, see
`PinnedBlocks`), but not without a pause: passes take at most a twentieth of the time, more only
where room is short. Nothing is gone through at the start, unless the last process left something
to be done.

A pass that is overtaken by renames misses nothing: whatever gets a name within reach is noted, and
marked before the marks are swept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from syncer.blocks.budget import disk_bytes
from syncer.blocks.store import Blocks
from syncer.codec import BLOCK_BYTES
from syncer.errors import LocalFullError, SyncerError, TemporaryError
from syncer.metadata.contents import Contents
from syncer.metadata.node import Node
from syncer.metadata.pins import Pins
from syncer.metadata.tree import Tree
from syncer.metadata.walk import files_below
from syncer.transfer.workers import Crew

log = logging.getLogger(__name__)

FETCH_THREADS = 6
#: Blocks that are fetched, or marked, together.
_BATCH_BLOCKS = 96
_LOOK_SECONDS = 1.0
#: Between two steps, so that what is noted in a row is seen to together.
_GATHER_SECONDS = 0.1
#: Between two passes: where room is short or someone asked, after one that could not keep all, and
#: else.
_HURRIED_SECONDS = 0.5
_RETRY_SECONDS = 3.0
_CALM_SECONDS = 60.0
#: And so many times as long as the last pass took.
_HURRIED_SHARE = 1
_CALM_SHARE = 20
_STOP_SECONDS = 5.0


@dataclass
class Care:
    """What was gone through, and what was done."""

    files: int = 0
    content_bytes: int = 0
    fetched_blocks: int = 0
    fetched_bytes: int = 0
    refused_bytes: int = 0
    """What does not fit into what pins may take."""


def blocks_of(contents: Contents, node: Node) -> list[tuple[bytes, int]]:
    """A file's blocks, with the bytes that each holds at most."""
    return [
        (block_id, max(1, min(BLOCK_BYTES, node.size - index * BLOCK_BYTES)))
        for index, block_id in contents.blocks(node.id)
    ]


class PinKeeper:
    """Marks and fetches what is pinned. `take_care` may be called from any thread."""

    def __init__(self, tree: Tree, contents: Contents, blocks: Blocks) -> None:
        self._pins: Pins = tree.pins
        self._tree = tree
        self._contents = contents
        self._blocks = blocks
        self._crew = Crew()
        self._crew.add("pins", self.step)
        self._is_hurried = False
        self._is_failed = False
        self._ended_at = float("-inf")
        self._took_seconds = 0.0
        #: What pins reach and there is no room for, as of the last pass; `status` shows it.
        self.refused_bytes = 0
        #: Why not all that is pinned is local; empty where it is, or nobody has looked.
        self.error = ""

    def start(self) -> None:
        """Start the thread; not before a fork."""
        self._crew.start()

    def stop(self) -> bool:
        """End the thread; False if it did not end in time. The remote's end breaks its waits."""
        self._crew.stopping.set()
        self._pins.noted.set()
        return self._crew.stop(_STOP_SECONDS)

    def hurry(self) -> None:
        """Room is short, or somebody waits: the next pass may come soon."""
        if self._pins.is_loose and not self._is_hurried:
            self._is_hurried = True
            self._pins.noted.set()

    def step(self) -> None:
        """See to what was noted, or wait a moment."""
        self._pins.noted.wait(_LOOK_SECONDS)
        self._pins.noted.clear()
        if wanted := self._pins.take_wanted():
            if not self._try_care(wanted):
                self._pins.loosen()
            self._pins.settle()
        if self._pins.is_loose and self._is_due():
            try:
                self._pass()
            except BaseException as error:
                self._pins.loosen()
                if not (self._crew.stopping.is_set() and isinstance(error, TemporaryError)):
                    raise
        self._crew.stopping.wait(_GATHER_SECONDS)

    def _is_due(self) -> bool:
        pause, share = _CALM_SECONDS, _CALM_SHARE
        if self._is_hurried:
            pause, share = _HURRIED_SECONDS, _HURRIED_SHARE
        elif self._is_failed or self.refused_bytes:
            pause = _RETRY_SECONDS
        return time.monotonic() >= self._ended_at + max(pause, share * self._took_seconds)

    def _pass(self) -> None:
        began = time.monotonic()
        self._is_hurried = False
        self._pins.tighten()
        tops = self._pins.tops()
        self._blocks.pinned.begin_pass()
        try:
            self._mark(tops)
            # What was renamed meanwhile, and perhaps missed.
            while wanted := self._pins.take_wanted():
                self._mark(wanted)
            self._blocks.pinned.sweep()
        finally:
            self._blocks.pinned.end_pass()
        self._took_seconds = time.monotonic() - began
        self.refused_bytes = 0
        self._is_failed = not self._try_care(tops)
        if self._is_failed:
            self._pins.loosen()
        self._pins.settle()
        self._ended_at = time.monotonic()

    def _nodes(self, numbers: Iterable[int]) -> list[Node]:
        found = [self._tree.node(number) for number in numbers if self._pins.is_pinned(number)]
        return [node for node in found if node is not None]

    def _mark(self, numbers: Iterable[int]) -> None:
        batch: list[bytes] = []
        for top in self._nodes(numbers):
            for node in files_below(self._tree, top):
                self._check_stopping()
                batch += self._contents.ids(node.id)
                if len(batch) >= _BATCH_BLOCKS:
                    self._blocks.pinned.mark(batch)
                    batch.clear()
        self._blocks.pinned.mark(batch)

    def _try_care(self, numbers: Iterable[int]) -> bool:
        """Whether everything is local now that is to be."""
        try:
            care = self.take_care(self._nodes(numbers), lambda care: None)
        except SyncerError as error:
            if not self._crew.stopping.is_set() and str(error) != self.error:
                log.info("not all that is pinned is local yet: %s", error)
            self.error = str(error)
            return False
        self.error = ""
        self.refused_bytes += care.refused_bytes
        return True

    def take_care(self, tops: Iterable[Node], progress: Callable[[Care], None]) -> Care:
        """Mark what is at and below these nodes, and fetch what of it is not local.

        Raises LocalFullError where other data leaves no room, and what fetching raises; what was
        done by then stays done.
        """
        care = Care()
        sizes: dict[bytes, int] = {}
        with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="syncer-pinfetch") as pool:
            for top in tops:
                for node in files_below(self._tree, top):
                    self._check_stopping()
                    care.files += 1
                    care.content_bytes += node.size
                    for block_id, size_bytes in blocks_of(self._contents, node):
                        sizes[block_id] = size_bytes
                        if len(sizes) >= _BATCH_BLOCKS:
                            self._keep(pool, sizes, care)
                            progress(care)
                    if care.files % _BATCH_BLOCKS == 0:
                        progress(care)
            self._keep(pool, sizes, care)
            progress(care)
        return care

    def _keep(self, pool: ThreadPoolExecutor, sizes: dict[bytes, int], care: Care) -> None:
        """Mark these blocks, and fetch those that are not local; empties `sizes`."""
        absent, refused_bytes = self._blocks.pinned.mark(sizes)
        care.refused_bytes += refused_bytes
        room_bytes = self._blocks.pinned.room_bytes() if absent else 0
        fitting: dict[bytes, int] = {}
        for block_id in absent:
            if disk_bytes(sizes[block_id]) > room_bytes:
                care.refused_bytes += sizes[block_id]
                continue
            room_bytes -= disk_bytes(sizes[block_id])
            fitting[block_id] = sizes[block_id]
        sizes.clear()
        if not fitting:
            return
        list(pool.map(self._blocks.prefetch, fitting))
        not_kept, refused_bytes = self._blocks.pinned.mark(fitting)
        care.fetched_blocks += len(fitting) - len(not_kept)
        care.fetched_bytes += sum(fitting.values()) - sum(fitting[key] for key in not_kept)
        care.refused_bytes += refused_bytes
        if not_kept:
            raise LocalFullError(
                "what is not uploaded yet leaves no room for pinned data now; it comes later"
            )

    def _check_stopping(self) -> None:
        if self._crew.stopping.is_set():
            raise TemporaryError("the mount ends; the rest comes with the next mount")
