"""Write what the server does not know into a folder: the changes of a displaced writer, above all.

Files, folders and symlinks go there under their paths, with their modes and times. What was
removed, what has no place in an ordinary folder and what could not be read is told. Nothing is
changed in the data directory, so it can be done again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncer.codec import BLOCK_BYTES
from syncer.errors import AccessError, ForeignError, SyncerError
from syncer.exchange.setback import LOST_ROLE
from syncer.maintain.invariants import missing_from_outbox
from syncer.metadata.db import Database
from syncer.metadata.node import ROOT, Node
from syncer.metadata.outbox import Outbox
from syncer.metadata.tree import Tree
from syncer.vfs.files import Files

Progress = Callable[[dict[str, Any]], None]


@dataclass
class _Result:
    files: int = 0
    size_bytes: int = 0
    removed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Neither file, folder nor symlink."""
    failed: list[str] = field(default_factory=list)


class Stranded:
    """A data directory's changes that are not published. Safe for use from several threads."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        tree: Tree,
        files: Files,
        close_epoch: Callable[[], None],
    ) -> None:
        """`close_epoch` makes all that was written so far part of the metadata."""
        self._db = db
        self._outbox = outbox
        self._tree = tree
        self._files = files
        self._close_epoch = close_epoch

    def export(self, target: Path, progress: Progress) -> dict[str, Any]:
        """Write all of it below `target`, which must be empty or not there.

        Raises ForeignError, AccessError. What can't be read is part of the result.
        """
        self._close_epoch()
        try:
            target.mkdir(mode=0o700, exist_ok=True)
            if any(target.iterdir()):
                raise ForeignError(f"{target} is not empty; choose a new folder")
        except OSError as error:
            raise AccessError(f"{target} can't be used: {error.strerror}") from error
        result = _Result()
        folders: list[tuple[Path, Node]] = []
        for path, node in self._changes(result):
            place = target / os.fsdecode(path.lstrip(b"/"))
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                if node.is_dir:
                    place.mkdir(exist_ok=True)
                    folders.append((place, node))
                else:
                    self._write(node, place, os.fsdecode(path), result)
            except (OSError, SyncerError) as error:
                result.failed.append(f"{os.fsdecode(path)}: {error}")
            progress({"files": result.files, "bytes": result.size_bytes})
        for place, node in reversed(folders):
            os.chmod(place, node.mode & 0o7777)
            os.utime(place, ns=(node.atime_ns, node.mtime_ns))
        return vars(result)

    def _changes(self, result: _Result) -> Iterator[tuple[bytes, Node]]:
        """The paths that lead to what is not published, each once; parents come first."""
        found: dict[bytes, Node] = {}
        for number, name in self._changed():
            path, child = self._tree.path_of(number), number
            if path == b"?":
                continue  # its folder, or all of its names, are gone as well
            if name:
                path = path.rstrip(b"/") + b"/" + name
                entry = self._tree.lookup(number, name)
                if entry is None:
                    result.removed.append(os.fsdecode(path))
                    continue
                child = entry
            node = self._tree.node(child)
            if node is not None and node.id != ROOT:
                found[path] = node
        result.removed.sort()
        yield from sorted(found.items(), key=lambda change: change[0])

    def _changed(self) -> list[tuple[int, bytes]]:
        """The nodes and names of which the remote does not know what they are now."""
        changed = list(self._outbox.changed_keys())
        if self._db.get_meta("setback", "") != LOST_ROLE:
            return changed
        # No more than what others have written is sure to be there.
        machine: int = self._db.get_meta("machine")
        row = self._db.query_one("SELECT max(seq) FROM epoch WHERE machine != ?", (machine,))
        shared = row[0] or 0 if row else 0
        lost = self._db.query(missing_from_outbox(shared))
        return [*changed, *((node, name) for _epoch, node, name in lost)]

    def _write(self, node: Node, place: Path, path: str, result: _Result) -> None:
        if node.target is not None:
            os.symlink(node.target, os.fsencode(place))
        elif node.is_file:
            self._copy(node, place)
            result.size_bytes += node.size
        else:
            result.skipped.append(path)
            return
        os.utime(place, ns=(node.atime_ns, node.mtime_ns), follow_symlinks=False)
        result.files += 1

    def _copy(self, node: Node, place: Path) -> None:
        handle = self._files.open(node)
        try:
            with open(place, "xb", buffering=0) as file:
                offset = 0
                buffer = memoryview(bytearray(BLOCK_BYTES))
                while count := self._files.read_into(handle, buffer, offset):
                    offset += file.write(buffer[:count])
                os.fchmod(file.fileno(), node.mode & 0o7777)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        finally:
            self._files.release(handle)
