"""Mixed work on a real mount that can be told again: the same seed gives the same calls.

A worker notes in a journal outside of the mount that a call begins, and, only after it has
returned, that it is done. Who finds the folder later repeats the work on a model as far as the
journal says, and knows what must be there: all that was done, and of the one call that was under
way either nothing, or all, or of contents some pages.
"""

from __future__ import annotations

import copy
import errno
import os
import random
import stat
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from syncer.process.mounts import is_dead

_SIZES = (0, 10, 900, 3_000, 9_000, 40_000, 70_000, 300_000, (1 << 20) + 5_000)
_WEIGHTS = (1, 4, 4, 4, 4, 4, 3, 2, 1)
_PAGE_BYTES = 4096
_MOST_NAMES = 25
_XATTR = "user.note"
#: What calls give when the process behind the mount has died.
_DEATHS = (errno.ENOTCONN, errno.ECONNABORTED)

Op = tuple[str, tuple[object, ...]]


@dataclass
class Node:
    """A file, a directory (mode only) or a symlink (target)."""

    kind: str
    mode: int = 0o644
    target: str = ""
    note: bytes | None = None
    contents: list[bytes] = field(default_factory=lambda: [b""])
    """Since the file was last synced, oldest first."""
    closed: int = 0
    """How many of these were over when a descriptor was closed or synced for the last time."""
    was_synced: bool = False

    @property
    def now(self) -> bytes:
        return self.contents[-1]

    def close(self) -> None:
        self.closed = len(self.contents) - 1

    def sync(self) -> None:
        self.contents = self.contents[-1:]
        self.closed = 0
        self.was_synced = True

    def after_kill(self) -> list[bytes]:
        return self.contents[self.closed :]

    def after_cut(self) -> list[bytes]:
        return self.contents if self.was_synced else [b"", *self.contents]


class Model:
    """One worker's folder. `choose` draws the next call, `apply` does it here."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.names: dict[str, Node] = {}
        self.held: str | None = None
        """A file that is kept open and written to."""

    def choose(self) -> Op:
        """The next call, as the seed and what there is decide it."""
        chance = self._random
        while True:
            name = chance.choice(_CHOICES)
            arguments = getattr(self, f"_choose_{name}")(chance)
            if arguments is not None:
                return name, arguments

    # Choosing: None where it can't be done now.

    def _of(self, *kinds: str) -> list[str]:
        return [path for path, node in self.names.items() if node.kind in kinds]

    def _file(self, chance: random.Random) -> str | None:
        files = [path for path in self._of("file") if path != self.held]
        return chance.choice(files) if files else None

    def _new(self, chance: random.Random) -> str | None:
        if len(self.names) >= _MOST_NAMES:
            return None
        folder = chance.choice(["", "", *(f"{path}/" for path in self._of("folder"))])
        return f"{folder}{chance.randrange(10**9)}"

    def _data(self, chance: random.Random) -> tuple[int, int]:
        return chance.randrange(1 << 60), chance.choices(_SIZES, _WEIGHTS)[0]

    def _choose_create(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._new(chance)
        return None if path is None else (path, *self._data(chance), chance.random() < 0.2)

    def _choose_overwrite(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._file(chance)
        if path is None:
            return None
        place = chance.randrange(len(self.names[path].now) + 1)
        return path, *self._data(chance), place, chance.random() < 0.4

    def _choose_append(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._file(chance)
        return None if path is None else (path, *self._data(chance))

    def _choose_rewrite(self, chance: random.Random) -> tuple[object, ...] | None:
        return self._choose_append(chance)

    def _choose_truncate(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._file(chance)
        return None if path is None else (path, chance.randrange(2 * len(self.names[path].now) + 1))

    def _choose_hold(self, chance: random.Random) -> tuple[object, ...] | None:
        path = None if self.held else self._file(chance)
        return None if path is None else (path,)

    def _choose_write(self, chance: random.Random) -> tuple[object, ...] | None:
        if self.held is None:
            return None
        return *self._data(chance), chance.randrange(len(self.names[self.held].now) + 1)

    def _choose_sync(self, chance: random.Random) -> tuple[object, ...] | None:
        return None if self.held is None else ()

    def _choose_drop(self, chance: random.Random) -> tuple[object, ...] | None:
        return None if self.held is None else ()

    def _choose_rename(self, chance: random.Random) -> tuple[object, ...] | None:
        movable = [path for path in self.names if path != self.held]
        new = self._new(chance)
        if not movable or new is None:
            return None
        old = chance.choice(movable)
        held_is_below = self.held is not None and self.held.startswith(f"{old}/")
        return None if held_is_below or new.startswith(f"{old}/") else (old, new)

    def _choose_replace(self, chance: random.Random) -> tuple[object, ...] | None:
        old, new = self._file(chance), self._file(chance)
        if old is None or new is None or self.names[old] is self.names[new]:
            return None
        return old, new, chance.random() < 0.5

    def _choose_link(self, chance: random.Random) -> tuple[object, ...] | None:
        old, new = self._file(chance), self._new(chance)
        return None if old is None or new is None else (old, new)

    def _choose_symlink(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._new(chance)
        return None if path is None else (f"to {chance.random()}", path)

    def _choose_unlink(self, chance: random.Random) -> tuple[object, ...] | None:
        paths = [path for path in self._of("file", "symlink") if path != self.held]
        return (chance.choice(paths),) if len(paths) > 3 else None

    def _choose_mkdir(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._new(chance)
        return None if path is None or len(self._of("folder")) > 4 else (path,)

    def _choose_rmdir(self, chance: random.Random) -> tuple[object, ...] | None:
        full = {path.rpartition("/")[0] for path in self.names}
        empty = [path for path in self._of("folder") if path not in full]
        return (chance.choice(empty),) if empty else None

    def _choose_note(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._file(chance)
        return None if path is None else (path, chance.randrange(1 << 60))

    def _choose_chmod(self, chance: random.Random) -> tuple[object, ...] | None:
        path = self._file(chance)
        return None if path is None else (path, 0o600 | chance.randrange(64))

    # Doing

    def apply(self, op: Op) -> None:
        name, arguments = op
        getattr(self, f"_{name}")(*arguments)

    def _create(self, path: str, seed: int, size: int, sync: bool) -> None:
        node = self.names[path] = Node("file")
        node.contents.append(noise(seed, size))
        _end(node, sync)

    def _overwrite(self, path: str, seed: int, size: int, place: int, sync: bool) -> None:
        node = self.names[path]
        node.contents.append(_with(node.now, noise(seed, size), place))
        _end(node, sync)

    def _append(self, path: str, seed: int, size: int) -> None:
        self._overwrite(path, seed, size, len(self.names[path].now), False)

    def _rewrite(self, path: str, seed: int, size: int) -> None:
        node = self.names[path]
        node.contents += [b"", noise(seed, size)]
        node.close()

    def _truncate(self, path: str, size: int) -> None:
        node = self.names[path]
        node.contents.append(node.now[:size].ljust(size, b"\0"))
        node.close()

    def _hold(self, path: str) -> None:
        self.held = path

    def _write(self, seed: int, size: int, place: int) -> None:
        assert self.held is not None
        node = self.names[self.held]
        node.contents.append(_with(node.now, noise(seed, size), place))

    def _sync(self) -> None:
        assert self.held is not None
        self.names[self.held].sync()

    def _drop(self) -> None:
        assert self.held is not None
        self.names[self.held].close()
        self.held = None

    def _rename(self, old: str, new: str) -> None:
        self.names[new] = self.names.pop(old)
        for path in [path for path in self.names if path.startswith(f"{old}/")]:
            self.names[new + path[len(old) :]] = self.names.pop(path)

    def _replace(self, old: str, new: str, is_open: bool) -> None:
        self.names[new] = self.names.pop(old)
        if self.held is None or self.names[new] is not self.names.get(self.held):
            self.names[new].sync()

    def _link(self, old: str, new: str) -> None:
        self.names[new] = self.names[old]

    def _symlink(self, target: str, path: str) -> None:
        self.names[path] = Node("symlink", 0o777, target)

    def _unlink(self, path: str) -> None:
        del self.names[path]

    def _mkdir(self, path: str) -> None:
        self.names[path] = Node("folder", 0o755)

    def _rmdir(self, path: str) -> None:
        del self.names[path]

    def _note(self, path: str, seed: int) -> None:
        self.names[path].note = b"%d" % seed

    def _chmod(self, path: str, mode: int) -> None:
        self.names[path].mode = mode


_CHOICES = (
    "create", "create", "create", "overwrite", "overwrite", "overwrite", "append", "append",
    "rewrite", "truncate", "hold", "write", "write", "sync", "drop", "rename", "replace",
    "replace", "link", "symlink", "unlink", "unlink", "mkdir", "rmdir", "note", "chmod",
)  # fmt: skip


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _with(content: bytes, data: bytes, place: int) -> bytes:
    return content[:place] + data + content[place + len(data) :]


def _end(node: Node, sync: bool) -> None:
    if sync:
        node.sync()
    else:
        node.close()


class Hands:
    """Does the calls for real, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._held = -1

    def do(self, op: Op) -> None:
        name, arguments = op
        getattr(self, f"_{name}")(*arguments)

    def _at(self, path: str) -> str:
        return f"{self._folder}/{path}"

    def _put(self, path: str, flags: int, data: bytes, place: int | None, sync: bool) -> None:
        descriptor = os.open(self._at(path), os.O_WRONLY | flags, 0o644)
        try:
            _write_all(descriptor, data, place)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _create(self, path: str, seed: int, size: int, sync: bool) -> None:
        self._put(path, os.O_CREAT | os.O_EXCL, noise(seed, size), None, sync)

    def _overwrite(self, path: str, seed: int, size: int, place: int, sync: bool) -> None:
        self._put(path, 0, noise(seed, size), place, sync)

    def _append(self, path: str, seed: int, size: int) -> None:
        self._put(path, os.O_APPEND, noise(seed, size), None, False)

    def _rewrite(self, path: str, seed: int, size: int) -> None:
        self._put(path, os.O_TRUNC, noise(seed, size), None, False)

    def _truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def _hold(self, path: str) -> None:
        self._held = os.open(self._at(path), os.O_RDWR)

    def _write(self, seed: int, size: int, place: int) -> None:
        _write_all(self._held, noise(seed, size), place)

    def _sync(self) -> None:
        os.fsync(self._held)

    def _drop(self) -> None:
        os.close(self._held)

    def _rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def _replace(self, old: str, new: str, is_open: bool) -> None:
        reader = os.open(self._at(new), os.O_RDONLY) if is_open else -1
        os.rename(self._at(old), self._at(new))
        if is_open:
            os.close(reader)

    def _link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new))

    def _symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def _unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def _mkdir(self, path: str) -> None:
        os.mkdir(self._at(path))

    def _rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def _note(self, path: str, seed: int) -> None:
        os.setxattr(self._at(path), _XATTR, b"%d" % seed)

    def _chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)


def _write_all(descriptor: int, data: bytes, place: int | None) -> None:
    view = memoryview(data)
    while view:
        if place is None:
            count = os.write(descriptor, view)
        else:
            count = os.pwrite(descriptor, view, place)
            place += count
        view = view[count:]


# Processes


def start(folder: Path, journal: Path, seed: int, *, verify: bool = False) -> int:
    """Work in a new folder until the mount dies; returns the process's id.

    With `verify`, it also reads what it has written, and compares, and it ends when there is a file
    called "stop" beside the journal.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        notes = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _work(folder, notes, seed, journal.with_name("stop") if verify else None)
            status = 0
        except OSError as error:
            # What could not be written is EIO at the close that follows.
            if error.errno not in _DEATHS and not is_dead(folder.parent):
                raise
            status = 0
    except BaseException:
        journal.with_suffix(".error").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _work(folder: Path, notes: int, seed: int, stop: Path | None) -> None:
    model, hands = Model(seed), Hands(folder)
    chance = random.Random(seed)
    folder.mkdir()
    while stop is None or not stop.exists():
        op = model.choose()
        os.write(notes, b"<")
        hands.do(op)
        os.write(notes, b">")
        model.apply(op)
        if stop is not None and chance.random() < 0.3:
            _look(folder, model, chance)


def _look(folder: Path, model: Model, chance: random.Random) -> None:
    """Compare one file, and now and then all names."""
    files = [path for path, node in model.names.items() if node.kind == "file"]
    if files:
        path = chance.choice(files)
        with open(folder / path, "rb") as file:
            assert file.read() == model.names[path].now, f"{path} has another content"
    if chance.random() < 0.1:
        assert set(found(folder)) == set(model.names), "the names are others"


def calls(journal: Path) -> tuple[int, int]:
    """How many calls (began, were done)."""
    notes = journal.read_bytes() if journal.exists() else b""
    return notes.count(b"<"), notes.count(b">")


# What must be there


def found(folder: Path) -> dict[str, Path]:
    """All below a folder, by path."""
    return {str(path.relative_to(folder)): path for path in _below(folder)}


def _below(folder: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(folder):
        for name in folders + files:
            yield Path(top, name)


def check(folder: Path, journal: Path, seed: int, *, power_was_cut: bool = False) -> None:
    """See that a folder is what the journal says."""
    begun, done = calls(journal)
    model = Model(seed)
    for _ in range(done):
        model.apply(model.choose())
    after = copy.deepcopy(model)
    emptied = None
    if begun > done:
        name, arguments = op = after.choose()
        after.apply(op)
        # A file that is being made, or made anew, is empty for a moment: under each of its names.
        emptied = after.names[str(arguments[0])] if name in ("create", "rewrite") else None
    if not folder.exists():
        assert not done, f"{folder} is gone"
        return
    paths = found(folder)
    sides = [side for side in (model, after) if side.names.keys() == paths.keys()]
    assert sides, (
        f"{folder}: {sorted(paths)} are there, not {sorted(model.names)} nor {sorted(after.names)}"
    )
    for path, place in paths.items():
        nodes = [side.names[path] for side in (model, after) if path in side.names]
        if emptied is not None and after.names.get(path) is emptied:
            nodes.append(replace(nodes[-1], contents=[b""], closed=0))
        _check_node(place, nodes, sides, power_was_cut)


def _check_node(place: Path, nodes: list[Node], sides: list[Model], power_was_cut: bool) -> None:
    status = place.lstat()
    kinds = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
    kind = kinds[stat.S_IFMT(status.st_mode)]
    assert kind in {node.kind for node in nodes}, f"{place} is a {kind}"
    nodes = [node for node in nodes if node.kind == kind]
    assert stat.S_IMODE(status.st_mode) in {node.mode for node in nodes}, f"{place}: its mode"
    if kind == "symlink":
        assert os.readlink(place) in {node.target for node in nodes}
    if kind == "file":
        name = str(place)
        assert any(
            status.st_nlink == sum(other is node for other in side.names.values())
            for side in sides
            for path, node in side.names.items()
            if name.endswith(f"/{path}")
        ), f"{place} has {status.st_nlink} names"
        note = os.getxattr(place, _XATTR) if _XATTR in os.listxattr(place) else None
        assert note in {node.note for node in nodes}, f"{place}: its attribute"
        contents: list[bytes] = []
        for node in nodes:
            contents += node.after_cut() if power_was_cut else node.after_kill()
        _check_content(place, contents)


def _check_content(place: Path, contents: list[bytes]) -> None:
    content = place.read_bytes()
    if content in contents:
        return
    assert len(set(contents)) > 1, f"{place} ({len(content)} bytes) is not what was written"
    lengths = {len(one) for one in contents}
    assert min(lengths) <= len(content) <= max(lengths), f"{place} has {len(content)} bytes"
    padded = [one.ljust(len(content), b"\0") for one in contents]
    for start in range(0, len(content), _PAGE_BYTES):
        page = content[start : start + _PAGE_BYTES]
        assert any(one[start : start + len(page)] == page for one in padded), (
            f"{place}: page {start // _PAGE_BYTES} of {len(content)} bytes was never written so"
        )
