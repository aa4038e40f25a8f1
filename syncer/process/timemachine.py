"""What the commands about the past do: snapshots, versions, deleted, diff and restore.

What they answer is for the control socket: dictionaries of JSON's types. Long lists go as progress,
a few hundred items at a time under "items", so that no line grows with the collection.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from syncer.blocks.store import Blocks
from syncer.codec import split_ids
from syncer.errors import AccessError, ExistsError, MissingError, UsageError
from syncer.metadata.contents import RUN_BLOCKS, Contents
from syncer.metadata.db import Database
from syncer.metadata.history import History, Version
from syncer.metadata.moments import Moments
from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree

Progress = Callable[[dict[str, Any]], None]

#: Nodes that are restored in one transaction: other callers wait for some milliseconds.
_BATCH = 256
_ITEMS = 200
#: What was looked at since it was last told that it goes on, though there was nothing to tell.
_LOOKED = 10_000


class TimeMachine:
    """The past of one data directory. Safe for use from several threads."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        contents: Contents,
        blocks: Blocks,
        history: History,
        moments: Moments,
        *,
        close_epoch: Callable[[], None],
        refusal: Callable[[], str | None],
    ) -> None:
        """`close_epoch` makes history of all that was written so far; `refusal` says why nothing
        can be changed, or None."""
        self._db = db
        self._tree = tree
        self._contents = contents
        self._blocks = blocks
        self._history = history
        self._moments = moments
        self._close_epoch = close_epoch
        self._refusal = refusal

    # Snapshots

    def snapshot(self, name: str) -> dict[str, Any]:
        """Name the state of now."""
        self._check_writable()
        self._close_epoch()
        snapshot = self._moments.take(name)
        self._close_epoch()
        return {"name": name, "epoch": snapshot.epoch}

    def _check_writable(self) -> None:
        if refusal := self._refusal():
            raise AccessError(f"nothing can be changed here: {refusal}")

    def remove_snapshot(self, name: str) -> dict[str, Any]:
        """Take a snapshot's name away. What it alone keeps goes with the next prune."""
        self._check_writable()
        snapshot = self._moments.remove(name)
        self._close_epoch()
        return {"name": name, "epoch": snapshot.epoch}

    def snapshots(self, progress: Progress) -> dict[str, Any]:
        """All named snapshots, oldest first, with what each holds, and what it alone keeps.

        Reads all of the past's block lists, and those of the present where there is a need.
        """
        from syncer.maintain.figures import snapshots as snapshot_figures

        named = self._moments.named()
        epochs = [snapshot.epoch for snapshot in named]
        figures = snapshot_figures(self._db, epochs, lambda: progress({}))
        found = [
            {
                "name": snapshot.name,
                "epoch": snapshot.epoch,
                "time_ns": snapshot.time_ns,
                "files": kept.files,
                "own_blocks": kept.alone.blocks,
                "own_bytes": kept.alone.size_bytes,
            }
            for snapshot, kept in zip(named, figures, strict=True)
        ]
        return {"snapshots": found}

    def moment(self, text: str) -> dict[str, Any]:
        """The closed epoch that is meant, and what it is called."""
        self._close_epoch()
        epoch = self._moments.find(text)
        return {"epoch": epoch, "when": self._moments.written(epoch)}

    # Looking back

    def versions(self, path: bytes) -> dict[str, Any]:
        """The versions of what is or was at a path, oldest first; see `versions_of_name`."""
        self._close_epoch()
        parent, name = self._place_of_then(path)
        versions = self._history.versions_of_name(parent, name)
        if not versions:
            raise MissingError(f"{os.fsdecode(path)} is not there, and never was")
        return {"versions": [self._version(*version) for version in versions]}

    def _version(self, epoch: int, version: Version, before: Version | None) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "when": self._moments.written(epoch),
            "size": version.node.size,
            "change": _change(before.node if before else None, version.node),
        }

    def deleted(self, path: bytes, progress: Progress) -> dict[str, Any]:
        """Tell what is gone from a folder and those below it: the moment when it was last there,
        its path and size. What only has another name now, or was replaced, is not gone. The folder
        may be gone itself."""
        self._close_epoch()
        top = self._last(path)
        return _tell(self._removed(top, path.rstrip(b"/"), progress), progress)

    def _removed(self, top: int, path: bytes, progress: Progress) -> Iterator[dict[str, Any]]:
        waiting = [(top, path)]
        looked = 0
        while waiting:
            directory, above = waiting.pop()
            for gone in self._history.removed(directory):
                last = self._history.kept_by(gone.last)
                node = self._history.node(gone.node, last)
                if node is not None:
                    yield {
                        "path": os.fsdecode(above + b"/" + gone.name),
                        "when": self._moments.written(last),
                        "size": node.size,
                        "is_folder": node.is_dir,
                    }
            for name, node in self._history.walk(directory, self._moments.latest()):
                looked += 1
                if looked % _LOOKED == 0:
                    progress({"items": []})
                if node.is_dir:
                    waiting.append((node.id, above + b"/" + name))

    def diff(self, path: bytes, first: str, second: str, progress: Progress) -> dict[str, Any]:
        """Tell how a path differs at two moments: "+" new, "-" gone, "M" another content or kind,
        "m" other attributes. Of a folder that is new or gone, only the folder itself."""
        self._close_epoch()
        epochs = self._moments.find(first), self._moments.find(second)
        old, new = (self._history.find(path, epoch) for epoch in epochs)
        if old is None and new is None:
            raise MissingError(f"{os.fsdecode(path)} was there at neither moment")
        return _tell(self._differences(path.rstrip(b"/"), old, new, epochs, progress), progress)

    def _differences(
        self,
        path: bytes,
        old: Node | None,
        new: Node | None,
        epochs: tuple[int, int],
        progress: Progress,
    ) -> Iterator[dict[str, Any]]:
        waiting = [(path, old, new)]
        looked = 0
        while waiting:
            path, old, new = waiting.pop()
            looked += 1
            if looked % _LOOKED == 0:
                progress({"items": []})
            if kind := self._difference(old, new, epochs):
                shown = new or old
                assert shown is not None
                name = os.fsdecode(path or b"/") + ("/" if path and shown.is_dir else "")
                yield {"change": kind, "path": name}
            if old is not None and new is not None and old.is_dir and new.is_dir:
                pairs = list(self._pairs(old.id, new.id, epochs))
                # What is taken last comes out first.
                waiting += [(path + b"/" + name, a, b) for name, a, b in reversed(pairs)]

    def _pairs(
        self, old: int, new: int, epochs: tuple[int, int]
    ) -> Iterator[tuple[bytes, Node | None, Node | None]]:
        """The entries of a directory at two moments that may differ, by name."""

        def entries(directory: int, side: int) -> Iterator[tuple[bytes, int, Node]]:
            for name, node in self._history.walk(directory, epochs[side]):
                yield name, side, node

        for name, found in groupby(merge(entries(old, 0), entries(new, 1)), key=itemgetter(0)):
            nodes: list[Node | None] = [None, None]
            for _, side, node in found:
                nodes[side] = node
            a, b = nodes
            # Of a directory the row may be the same though something below it changed.
            if a is None or a != b or a.is_dir:
                yield name, a, b

    def _difference(
        self, old: Node | None, new: Node | None, epochs: tuple[int, int]
    ) -> str | None:
        if old is None or new is None:
            return "+" if old is None else "-"
        if old == new:
            return None
        if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode) or self._held(
            old, epochs[0]
        ) != self._held(new, epochs[1]):
            return "M"
        if _attributes(old) != _attributes(new) or self._history.xattrs(
            old.id, epochs[0]
        ) != self._history.xattrs(new.id, epochs[1]):
            return "m"
        return None

    def _held(self, node: Node, epoch: int) -> tuple[object, ...]:
        if not node.is_file:
            return node.target, node.rdev
        history = self._history
        return node.size, history.inline(node.id, epoch), history.ids(node.id, epoch)

    # Restoring

    def restore(self, path: bytes, moment: str, to: bytes, progress: Progress) -> dict[str, Any]:
        """Make what was at `path` then, under a name of its own beside the path `to`.

        The caller renames it into its place, through the kernel where it is mounted, which then
        knows of it. The new files name the blocks of the old: nothing is read, copied or uploaded.
        What is made before an error stays there, to be removed like anything else.
        """
        self._check_writable()
        # What it may replace is to be in the history.
        self._close_epoch()
        epoch = self._moments.find(moment)
        source = self._history.find(path, epoch)
        if source is None:
            raise MissingError(
                f"{os.fsdecode(path)} was not there at {self._moments.written(epoch)}"
            )
        parent, _ = self._place(to)
        name = b".syncer-restored-" + secrets.token_hex(8).encode()
        counts = self._copy(source, epoch, parent, name, progress)
        above, _, replaced = to.rstrip(b"/").rpartition(b"/")
        self._pin_as(parent, replaced, name)
        return {"made": os.fsdecode(above + b"/" + name), **counts}

    def put_back(
        self, path: bytes, moment: str, to: bytes, progress: Progress, *, replaces: bool
    ) -> dict[str, Any]:
        """Restore, and put it into its place: where nobody has the present mounted.

        A kernel that has would go on showing what it knows. What is in the place is removed if it
        `replaces` that, and stays in the history.
        """
        parent, name = self._place(to)
        if not replaces and self._tree.lookup(parent.id, name) is not None:
            raise ExistsError(f"{os.fsdecode(to)} exists already; name a place that is free")
        done = self.restore(path, moment, to, progress)
        made = os.fsencode(done["made"]).rpartition(b"/")[2]
        with self._tree.transaction():
            replaced = self._tree.lookup(parent.id, name)
            if replaced is None:
                self._tree.rename(parent.id, made, parent.id, name)
            else:
                self._tree.exchange(parent.id, made, parent.id, name)
        if replaced is not None:
            self._remove(parent.id, made, replaced)
        self._close_epoch()
        return done

    def _remove(self, parent: int, name: bytes, number: int) -> None:
        """Remove a name with all that is below it. A crash leaves what is not removed yet."""
        waiting = [(parent, name, number)]
        while waiting:
            parent, name, number = waiting[-1]
            with self._tree.transaction():
                node = self._tree.node(number)
                assert node is not None
                below = self._tree.entries(number, b"", _BATCH) if node.is_dir else []
                for entry, child in below:
                    if child.is_dir:
                        waiting.append((number, entry, child.id))
                    else:
                        self._blocks.unname(self._tree.unlink(number, entry, keep=False))
                if not below:
                    self._blocks.unname(self._tree.unlink(parent, name, keep=False))
                    waiting.pop()

    def _pin_as(self, parent: Node, replaced: bytes, made: bytes) -> None:
        """Pin what takes the place of something pinned."""
        before, after = (self._tree.lookup(parent.id, name) for name in (replaced, made))
        if before is not None and after is not None and self._tree.pins.is_top(before):
            self._tree.pins.add([after])
            self._tree.pins.loosen()

    def _copy(
        self, source: Node, epoch: int, parent: Node, name: bytes, progress: Progress
    ) -> dict[str, int]:
        counts = {"files": 0, "bytes": 0}
        links: dict[int, int] = {}

        def one(node: Node, above: Node, name: bytes) -> Node:
            counts["files"] += 1
            counts["bytes"] += node.size if node.is_file else 0
            if node.id in links:
                return self._tree.link(links[node.id], above.id, name)
            made = self._copy_node(node, epoch, above, name)
            if node.nlink > 1 and not node.is_dir:
                links[node.id] = made.id
            return made

        with self._tree.transaction():
            waiting = [(source, one(source, parent, name))]
        while waiting:
            old, new = waiting.pop()
            if not old.is_dir:
                continue
            entries = self._history.walk(old.id, epoch)
            while batch := list(islice(entries, _BATCH)):
                with self._tree.transaction():
                    made = [(node, one(node, new, name)) for name, node in batch]
                waiting += [pair for pair in made if pair[0].is_dir]
                progress(dict(counts))
            # Its times are those of then once nothing more is put into it.
            with self._tree.transaction():
                self._set_times(new.id, old)
        return counts

    def _copy_node(self, node: Node, epoch: int, parent: Node, name: bytes) -> Node:
        """A new node with all that one had at an epoch. In the caller's transaction."""
        made = self._tree.create(
            parent, name, node.mode, node.uid, node.gid, rdev=node.rdev, target=node.target
        )
        inline = self._history.inline(node.id, epoch)
        if inline is not None:
            self._contents.set_inline(made.id, inline)
        for run, data in self._history.runs(node.id, epoch):
            blocks = dict(enumerate(split_ids(data), run * RUN_BLOCKS))
            placed, _ = self._contents.set_blocks(made.id, blocks)
            self._blocks.name(placed)
        for key, value in self._history.xattrs(node.id, epoch).items():
            self._tree.set_xattr(made.id, key, value)
        self._set_times(made.id, node)
        return made

    def _set_times(self, number: int, then: Node) -> None:
        node = self._tree.node(number)
        assert node is not None
        self._tree.save(
            node.changed(
                size=then.size,
                atime_ns=then.atime_ns,
                mtime_ns=then.mtime_ns,
                btime_ns=then.btime_ns,
            )
        )

    # Paths of now

    def _place(self, path: bytes) -> tuple[Node, bytes]:
        """The directory that holds the last part of a path, and that part."""
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise UsageError("the top folder has no name of its own; name something in it")
        parent = self._present(above)
        if not parent.is_dir:
            raise MissingError(f"{os.fsdecode(above)} is not a folder")
        return parent, name

    def _present(self, path: bytes) -> Node:
        number: int | None = ROOT
        for part in path.split(b"/"):
            if part and number is not None:
                number = self._tree.lookup(number, part)
        node = None if number is None else self._tree.node(number)
        if node is None:
            raise MissingError(
                f"{os.fsdecode(path)} does not exist now; restore that, or name another place: --to"
            )
        return node

    # Paths of then

    def _place_of_then(self, path: bytes) -> tuple[int, bytes]:
        """The number of the directory that holds or last held the last part, and that part."""
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise UsageError("the top folder has no name of its own; name something in it")
        return self._last(above), name

    def _last(self, path: bytes) -> int:
        """The number of the directory that is or last was at a path."""
        number = ROOT
        for part in filter(None, path.split(b"/")):
            lives = self._history.lives(number, part)
            if not lives:
                raise MissingError(f"{os.fsdecode(path)} is not there, and never was")
            number = lives[-1].node
        versions = self._history.versions(number)
        if versions and not versions[-1].node.is_dir:
            raise UsageError(f"{os.fsdecode(path)} is not a folder")
        return number


def _tell(items: Iterator[dict[str, Any]], progress: Progress) -> dict[str, Any]:
    """Hand on all items as progress; the result counts them."""
    count = 0
    while batch := list(islice(items, _ITEMS)):
        progress({"items": batch})
        count += len(batch)
    return {"count": count}


def _change(before: Node | None, now: Node) -> str:
    """What made a version, in a word."""
    if before is None:
        return "made"
    if (before.size, before.mtime_ns, before.target) != (now.size, now.mtime_ns, now.target):
        return "content"
    if _attributes(before) != _attributes(now):
        return "attributes"
    return "name or xattrs"


def _attributes(node: Node) -> tuple[int, ...]:
    """What a person sees of a node besides its content; a folder's times follow from its names."""
    return node.mode, node.uid, node.gid, 0 if node.is_dir else node.mtime_ns
