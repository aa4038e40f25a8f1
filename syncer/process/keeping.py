"""What stays at hand: pins, fetching and evicting by path, and what of each file is local.

What it answers is for the control socket: dictionaries of JSON's types.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from syncer.blocks.budget import disk_bytes
from syncer.blocks.store import Blocks
from syncer.errors import LocalFullError, MissingError, SyncerError, UsageError
from syncer.metadata.contents import Contents
from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree
from syncer.metadata.walk import files_below
from syncer.transfer.keeper import FETCH_THREADS, Care, PinKeeper, blocks_of
from syncer.vfs.states import States

Progress = Callable[[dict[str, Any]], None]

_ITEMS = 200
_FETCHED_TOGETHER = 96
#: Files after which progress is told.
_TOLD_FILES = 500


class Keeping:
    """The commands about local copies. Safe for use from several threads."""

    def __init__(
        self, tree: Tree, contents: Contents, blocks: Blocks, keeper: PinKeeper, states: States
    ) -> None:
        self._tree = tree
        self._contents = contents
        self._blocks = blocks
        self._keeper = keeper
        self._states = states
        states.set_pinned = self._set_pinned

    # Pins

    def pin(self, paths: Sequence[bytes], progress: Progress) -> dict[str, Any]:
        """Pin what is at these paths, and fetch what of it is not local.

        Raises LocalFullError, and pins nothing, where it does not all fit. Raises what fetching
        raises; then it is pinned, and the rest comes by itself when that is possible.
        """
        nodes = [self._find(path) for path in paths]
        self._check_fits(nodes, progress)
        self._tree.pins.add(node.id for node in nodes)
        try:
            care = self._keeper.take_care(nodes, lambda care: progress(_told(care)))
        except SyncerError as error:
            self._tree.pins.loosen()
            raise type(error)(
                f"pinned, but not all of it is local yet: {error}; the rest comes by itself"
            ) from error
        except BaseException:
            self._tree.pins.loosen()
            raise
        self._tree.pins.settle()
        return _told(care)

    def _set_pinned(self, number: int, pinned: bool) -> None:
        node = self._tree.node(number)
        assert node is not None
        if not pinned:
            self._unpin([node])
        elif not self._tree.pins.is_top(number):
            self._check_fits([node], lambda state: None)
            self._tree.pins.add([number])
            self._tree.pins.want(number)

    def _check_fits(self, nodes: Iterable[Node], progress: Progress) -> None:
        """Raise LocalFullError if the pins that there are and these don't fit together."""
        allowed = self._blocks.pinned.allowance_bytes()
        counted: set[bytes] = set()
        taken = self._needed(self._tops(), counted, allowed, progress)
        more = self._needed(nodes, counted, allowed, progress)
        if more and taken + more > allowed:
            limit = self._blocks.cache.budget.limit_bytes
            raise LocalFullError(
                f"it needs {_megabytes(more)} more, but of the limit of {_megabytes(limit)} pins"
                f" may take {_megabytes(allowed)}, of which {_megabytes(taken)} are taken;"
                " pin less, or set a higher max_size"
            )

    def _needed(
        self, nodes: Iterable[Node], counted: set[bytes], enough: int, progress: Progress
    ) -> int:
        """What the blocks of these take on the disk, but for those that are counted already."""
        found = files = 0
        for node in nodes:
            for file in files_below(self._tree, node):
                files += 1
                if files % _TOLD_FILES == 0:
                    progress({"counted_files": files})
                for block_id, size_bytes in blocks_of(self._contents, file):
                    if block_id in counted:
                        continue
                    found += disk_bytes(size_bytes)
                    # Beyond that, the sum is only shown: it may count what is there twice.
                    if found <= enough:
                        counted.add(block_id)
        return found

    def unpin(self, paths: Sequence[bytes]) -> dict[str, Any]:
        """Take pins away; what they kept is local until other data needs the room."""
        self._unpin([self._find(path) for path in paths])
        return {"unpinned": len(paths)}

    def _unpin(self, nodes: Sequence[Node]) -> None:
        pins = self._tree.pins
        for node in nodes:
            top = pins.top_of(node.id)
            shown = os.fsdecode(self._tree.path_of(node.id))
            if top is None:
                raise UsageError(f"{shown} is not pinned")
            if not pins.is_top(node.id):
                above = os.fsdecode(self._tree.path_of(top))
                raise UsageError(f"{shown} is pinned by {above}; unpin that")
        pins.remove(node.id for node in nodes)
        self._keeper.hurry()

    def pins(self, progress: Progress) -> dict[str, Any]:
        """All pins, the oldest first: path, files, bytes, and how much of that is local."""
        found = []
        files = 0
        for top in self._tops():
            entry = {"files": 0, "bytes": 0, "local_files": 0, "local_bytes": 0}
            for node in files_below(self._tree, top):
                state = self._states.of(node)
                entry["files"] += 1
                entry["bytes"] += node.size
                entry["local_files"] += state.state in ("local", "dirty")
                entry["local_bytes"] += min(node.size, state.cached_bytes)
                files += 1
                if files % _TOLD_FILES == 0:
                    progress({"counted_files": files})
            found.append({"path": os.fsdecode(self._tree.path_of(top.id)), **entry})
        return {"pins": found, **self.summary()}

    def summary(self) -> dict[str, Any]:
        """What the pins take together; for `status`."""
        return {
            "pinned_bytes": self._blocks.pinned.used_bytes(),
            "pinned_limit_bytes": self._blocks.pinned.allowance_bytes(),
            "unpinnable_bytes": self._keeper.refused_bytes,
            "pins_error": self._keeper.error,
        }

    def _tops(self) -> list[Node]:
        nodes = [self._tree.node(number) for number in self._tree.pins.tops()]
        return [node for node in nodes if node is not None and node.nlink]

    # Fetching and evicting

    def fetch(self, paths: Sequence[bytes], progress: Progress) -> dict[str, Any]:
        """Fetch what is not local of these paths, as far as there is room for it.

        Raises what fetching a block raises.
        """
        done = {"files": 0, "blocks": 0, "bytes": 0, "skipped_files": 0, "skipped_bytes": 0}
        budget, usage = self._blocks.cache.budget, self._blocks.usage()
        room = budget.limit_bytes - budget.slack_bytes - usage.inline_bytes
        # Besides these, which stay anyway. What is both is counted twice; it is on its way out.
        room -= usage.dirty_bytes + self._blocks.pinned.used_bytes()
        with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="syncer-fetch") as pool:
            for node in self._files_below(paths):
                sizes = dict(blocks_of(self._contents, node))
                absent = [key for key in sizes if not self._blocks.is_local(key)]
                room -= sum(disk_bytes(size_bytes) for size_bytes in sizes.values())
                share = self._blocks.local_share(sizes)
                room += share.dirty_bytes + share.pinned_bytes
                if absent and room < 0:
                    done["skipped_files"] += 1
                    done["skipped_bytes"] += sum(sizes[key] for key in absent)
                    continue
                done["files"] += bool(absent)
                while absent:
                    batch, absent = absent[:_FETCHED_TOGETHER], absent[_FETCHED_TOGETHER:]
                    list(pool.map(self._blocks.prefetch, batch))
                    done["blocks"] += len(batch)
                    done["bytes"] += sum(sizes[key] for key in batch)
                    progress(dict(done))
        return done

    def evict(self, paths: Sequence[bytes] | None) -> dict[str, Any]:
        """Free local copies of what the server has and nobody pinned: of these paths, or (None) of
        everything. Tells what stays, and why."""
        if paths is None:
            return self._evict_all()
        done = {
            "files": 0, "blocks": 0, "bytes": 0,
            "dirty_bytes": 0, "pinned_bytes": 0, "busy_bytes": 0,
        }  # fmt: skip
        for node in self._files_below(paths):
            ids = self._contents.ids(node.id)
            blocks, freed_bytes = self._blocks.evict_these(ids)
            left = self._blocks.local_share(ids)
            done["files"] += bool(blocks)
            done["blocks"] += blocks
            done["bytes"] += freed_bytes
            done["dirty_bytes"] += left.dirty_bytes
            done["pinned_bytes"] += left.pinned_bytes
            done["busy_bytes"] += left.content_bytes - left.dirty_bytes - left.pinned_bytes
        return done

    def _evict_all(self) -> dict[str, Any]:
        before = self._blocks.evicted_blocks
        freed_bytes = self._blocks.evict(self._blocks.cache.budget.limit_bytes)
        usage, pinned_bytes = self._blocks.usage(), self._blocks.pinned.used_bytes()
        return {
            "files": 0,
            "blocks": self._blocks.evicted_blocks - before,
            "bytes": freed_bytes,
            "dirty_bytes": usage.dirty_bytes,
            "pinned_bytes": pinned_bytes,
            "busy_bytes": 0,
        }

    # Looking

    def ls(self, path: bytes, progress: Progress) -> dict[str, Any]:
        """Tell what is in a folder, or of a file itself: name, size, state and pin."""
        items = self._listed(self._find(path), path)
        count = 0
        while batch := list(islice(items, _ITEMS)):
            progress({"items": batch})
            count += len(batch)
        return {"count": count}

    def _listed(self, top: Node, path: bytes) -> Iterator[dict[str, Any]]:
        if not top.is_dir:
            yield self._item(path.rpartition(b"/")[2], top)
            return
        after = b""
        while rows := self._tree.entries(top.id, after, _ITEMS):
            after = rows[-1][0]
            for name, node in rows:
                yield self._item(name, node)

    def _item(self, name: bytes, node: Node) -> dict[str, Any]:
        state = self._states.of(node) if node.is_file else None
        return {
            "name": os.fsdecode(name) + ("/" if node.is_dir else ""),
            "size": node.size if node.is_file else None,
            "state": state.state if state else None,
            "pinned": self._states.is_pinned(node),
            "cached_bytes": state.cached_bytes if state else None,
        }

    # Paths

    def _files_below(self, paths: Sequence[bytes]) -> Iterator[Node]:
        """The regular files at and below some paths of the mount, all of which exist."""
        for node in [self._find(path) for path in paths]:
            yield from files_below(self._tree, node)

    def _find(self, path: bytes) -> Node:
        node = self._tree.node(ROOT)
        for part in path.split(b"/"):
            if part and node is not None:
                number = self._tree.lookup(node.id, part)
                node = None if number is None else self._tree.node(number)
        if node is None:
            raise MissingError(f"{os.fsdecode(path)} does not exist in the mount")
        return node


def _told(care: Care) -> dict[str, Any]:
    return {
        "files": care.files,
        "bytes": care.content_bytes,
        "blocks": care.fetched_blocks,
        "fetched_bytes": care.fetched_bytes,
        "refused_bytes": care.refused_bytes,
    }


def _megabytes(size_bytes: int) -> str:
    return f"{-(-size_bytes // 1_000_000):,} MB"
