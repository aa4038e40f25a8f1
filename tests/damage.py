"""A data directory of which some is published and some is not, for tests that damage it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncer.config import Config
from syncer.exchange.recover import clone
from syncer.maintain.fsck import Options
from syncer.metadata.db import Database
from syncer.metadata.node import ROOT
from syncer.process.checking import check_alone
from syncer.process.engine import Engine
from syncer.process.folder import DataFolder
from syncer.process.repository import clone_repository, create_repository
from syncer.remote import open_remote
from syncer.vfs.caller import Caller

ME = Caller(0, 0)


def noise(number: int, size_bytes: int) -> bytes:
    return random.Random(number).randbytes(size_bytes)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    """Cut a file."""
    os.truncate(path, path.stat().st_size // 2)


#: What may become of a file that holds a block or another object.
HARM: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": halve,
    "swapped": lambda path: path.write_bytes(noise(77, path.stat().st_size)),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@dataclass(frozen=True)
class Found:
    """The report of `fsck`."""

    state: str
    damage: int
    left: int
    kinds: dict[str, dict[str, int]]
    findings: list[dict[str, Any]]
    notes: list[str]


class Place:
    """A data directory beside its remote, worked on without a mount."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.remote = folder / "remote"
        self.folder = DataFolder(self.data)
        #: path -> content, of all files.
        self.files: dict[bytes, bytes] = {}

    @classmethod
    def made_in(cls, folder: Path) -> Place:
        """A new repository, with some files: see `fill`."""
        place = cls(folder)
        config = Config(remote=str(place.remote), limit_bytes=10**8)
        create_repository(place.data, config, "laptop")
        place.fill()
        return place

    def copied_to(self, folder: Path) -> Place:
        """The same, once more, both sides of it: quicker than to make it anew."""
        copy = Place(folder)
        shutil.copytree(self.data, copy.data)
        shutil.copytree(self.remote, copy.remote)
        config = Config.load(copy.folder.config).with_value("remote", str(copy.remote))
        config.save(copy.folder.config)
        copy.files = dict(self.files)
        return copy

    @contextlib.contextmanager
    def engine(self) -> Iterator[Engine]:
        """The data directory at work, ended in order."""
        with self.folder.lock():
            engine = Engine(self.data, Config.load(self.folder.config))
            try:
                engine.start()
                yield engine
            finally:
                engine.stop()

    @contextlib.contextmanager
    def taken_over(self) -> Iterator[Engine]:
        """Another computer at work, which has become the writer."""
        data = self.data.with_name("another")
        clone_repository(data, Config(remote=str(self.remote), limit_bytes=10**8), "another")
        engine = Engine(data, Config.load(data / "config"))
        try:
            engine.take_over()
            engine.start()
            yield engine
        finally:
            engine.stop()

    def write(self, engine: Engine, path: bytes, content: bytes) -> None:
        """Make a file, or replace its content."""
        vfs = engine.vfs
        handle = vfs.create(path, 0o644, 0, ME)
        vfs.write(handle, memoryview(content), 0)
        vfs.files.flush(handle)
        vfs.release(handle)
        self.files[path] = content

    def fill(self) -> None:
        """Some files that are published, and some that are not, in directories."""
        with self.engine() as engine:
            engine.vfs.mkdir(b"/album", 0o755, ME)
            engine.vfs.mkdir(b"/album/2024", 0o755, ME)
            self.write(engine, b"/tiny", b"a few bytes")
            self.write(engine, b"/album/photo", noise(1, 300_000))
            self.write(engine, b"/album/2024/island", noise(2, 1_300_000))
            engine.vfs.symlink(b"photo", b"/album/link", ME)
            engine.vfs.link(b"/album/photo", b"/album/2024/same")
            self.files[b"/album/2024/same"] = self.files[b"/album/photo"]
            engine.flush(60, lambda state: None)
        self.remote_away()
        with self.engine() as engine:
            engine.vfs.mkdir(b"/new", 0o755, ME)
            self.write(engine, b"/new/small", b"not published")
            self.write(engine, b"/new/large", noise(3, 200_000))
            engine.vfs.rename(b"/tiny", b"/new/tiny")
            self.files[b"/new/tiny"] = self.files.pop(b"/tiny")
        self.remote_back()

    def remote_away(self) -> None:
        """As a disk that is not mounted."""
        self.remote.rename(self.remote.with_name("away"))

    def remote_back(self) -> None:
        self.remote.with_name("away").rename(self.remote)

    def fsck(self, *, repair: bool = False, remote: bool = False, read_data: bool = False) -> Found:
        """What `syncer fsck` finds and does."""
        options = Options(repair=repair, remote=remote, read_data=read_data)
        return Found(**check_alone(self.folder, options, lambda state: None))

    def read_all(self) -> dict[bytes, bytes]:
        """Every file there is, by its path."""
        found: dict[bytes, bytes] = {}
        with self.engine() as engine:
            waiting = [(b"", ROOT)]
            while waiting:
                path, number = waiting.pop()
                for name, node in engine._tree.entries(number, b"", 1000):
                    if node.is_dir:
                        waiting.append((path + b"/" + name, node.id))
                    elif node.is_file:
                        found[path + b"/" + name] = read(engine, path + b"/" + name)
        return found

    def cloned_names(self) -> set[bytes]:
        """All names that another computer gets."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "metadata.db"
            clone(open_remote(str(self.remote)), path, "desktop")
            with contextlib.closing(Database(path)) as db:
                return {row[0] for row in db.query("SELECT name FROM name")}

    @contextlib.contextmanager
    def sql(self) -> Iterator[sqlite3.Connection]:
        """The database, for doing harm to it."""
        connection = sqlite3.connect(self.folder.database)
        try:
            yield connection
            connection.commit()
        finally:
            connection.close()

    def blocks(self) -> list[Path]:
        """The local block files."""
        return sorted(self.folder.blocks.glob("[0-9a-f][0-9a-f]/*"))

    def objects(self) -> list[Path]:
        """The blocks on the remote."""
        return sorted(self.remote.glob("blocks/*/*"))


def read(engine: Engine, path: bytes) -> bytes:
    """A file's content. Raises what reading raises."""
    handle = engine.vfs.open(path, 0)
    try:
        buffer = bytearray(engine.vfs.getattr(path).size)
        count = engine.vfs.files.read_into(handle, memoryview(buffer), 0)
        return bytes(buffer[:count])
    finally:
        engine.vfs.release(handle)
