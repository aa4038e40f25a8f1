"""Objects as files, one each: the logic, written once over a few file primitives.

`Files` is what a place has to offer: a local directory and an SFTP connection supply it.
`FileRemote` makes a `Remote` of it. A file is written under ``tmp/``, synced, its size
confirmed, and only then moved to its key, so that an object is there whole or not at all. Then
its folder is synced, without which a power cut may take the name.
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TypeVar

from ..errors import (
    AccessError,
    CorruptError,
    ForeignError,
    FormatError,
    MissingError,
    OfflineError,
    TemporaryError,
)
from .base import (
    CONFIG_KEY,
    FOLDERS,
    TEMPORARY_FOLDER,
    Entry,
    Payload,
    Placed,
    Remote,
    Usage,
    buffers_of,
    check_key,
)
from .retry import Health

Result = TypeVar("Result")

_NAME_BYTES = 12
ROOT_MODE = 0o700
"""Of a repository's folder: contents are not encrypted. One that is there already keeps its own."""
"""Of the random names under ``tmp/``."""
_MAX_CONFIG_BYTES = 64 << 10
"""As much as is read of `CONFIG_KEY` to tell one repository from another."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What a primitive knows about a file or folder."""

    name: str
    size_bytes: int
    mtime_seconds: float
    is_file: bool
    is_folder: bool


class NewFile(ABC):
    """A file that was written under a temporary name and synced, and is still open."""

    size_bytes: int
    """As the place counts it, not as it was asked for."""

    @abstractmethod
    def publish(self, path: str, *, replace: bool, look_for: Collection[str] = ()) -> Placed:
        """Move it to `path` in one step, then sync the folders that `Files.write` was told.

        Tells whether that was possible; else a power cut may take it. And which of the paths
        `look_for` there are then. May be called again after an error.

        Raises:
            MissingError: there is no such folder.
            ExistsError: `replace` is false and something is there.
        """

    @abstractmethod
    def close(self) -> None:
        """Close it, and remove it if it was not published."""


class Files(ABC):
    """File primitives below one folder. Paths are relative to it; "" is the folder itself.

    Used by one thread at a time. Errors are those of `Remote`, with MissingError for a path
    that isn't there.
    """

    @abstractmethod
    def place(self) -> Hashable:
        """What stays the same only while no other disk can have come to be here unnoticed.

        Costs no round trip. Raises MissingError where there is no repository.
        """

    @abstractmethod
    def read(self, path: str, offset: int, length: int | None) -> bytes:
        """Read `length` bytes or all; fewer only at the end."""

    @abstractmethod
    def write(self, path: str, parts: Sequence[memoryview], folders: Sequence[str] = ()) -> NewFile:
        """Write a new file and sync it; nothing is left behind on an error.

        `folders` are to be synced once it has its place, and may be missing until then.
        """

    @abstractmethod
    def stat(self, path: str) -> FileStatus:
        """Describe a file or folder, through symlinks."""

    @abstractmethod
    def list(self, path: str) -> list[FileStatus]:
        """List a folder."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file."""

    @abstractmethod
    def move(self, path: str, target: str) -> None:
        """Rename a file over `target`. A crash of the place may undo it."""

    @abstractmethod
    def make_root(self) -> None:
        """Make the folder itself, with `ROOT_MODE`, and its parents, where they are missing."""

    @abstractmethod
    def make_folders(self, paths: Sequence[str]) -> None:
        """Make those of the folders that are missing, each after the one that it lies in.

        Those that they lie in are synced, where the place can do that.
        """

    @abstractmethod
    def usage(self) -> Usage | None:
        """The room on the disk, if it can be told."""


class FileRemote(Remote):
    """A remote that keeps each object in a file. Subclasses say where and how."""

    _has_connections = False
    """Whether several places (`Files.place`) lead to it at once, and one more tells nothing new."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.health = Health()
        #: Folders whose own names are on the remote's disk, as this process has seen to. It only
        #: grows, so threads may share it.
        self._safe_folders: set[str] = set()
        self._is_expected: Callable[[bytes], bool] | None = None
        #: Places (`Files.place`) where the repository is known to be the expected one. Replaced,
        #: not emptied, so that what was read before an outage counts for nothing after it.
        self._recognised: set[Hashable] = set()
        self._arrivals = 0

    @property
    def arrivals(self) -> int:
        return self._arrivals

    @property
    def name(self) -> str:
        return self._name

    @abstractmethod
    def _perform(
        self, action: Callable[[Files], Result], *, urgent: bool, repeatable: bool
    ) -> Result:
        """Run `action` with primitives of its own; again if that is allowed and may help."""

    def _run(
        self,
        action: Callable[[Files], Result],
        *,
        urgent: bool = False,
        repeatable: bool = True,
        storing: bool = False,
        forced: bool = False,
        reading: bool = False,
        changing: bool = False,
    ) -> Result:
        """What is read of an object tells by itself whether it is the right one: so with `reading`,
        the repository is looked at only where something is missing (`_existing`)."""

        def act(files: Files) -> Result:
            if not reading:
                self._recognise(files, changing=storing or changing)
            return action(files)

        with self.health.attempt(forced=forced, storing=storing, urgent=urgent):
            try:
                return self._perform(act, urgent=urgent, repeatable=repeatable)
            except OfflineError:
                self._forget_places()
                raise

    def _forget_places(self) -> None:
        """It was away: what is there when it is back may be another one, or an older state."""
        self._recognised = set()

    def expect(self, is_expected: Callable[[bytes], bool]) -> None:
        self._is_expected = is_expected

    def _recognise(self, files: Files, *, changing: bool = False) -> None:
        """Raise ForeignError if another repository is there than the expected one."""
        if self._is_expected is None:
            return
        recognised = self._recognised
        try:
            place = files.place()
            if place in recognised:
                return
            data = files.read(CONFIG_KEY, 0, _MAX_CONFIG_BYTES)
        except MissingError:
            raise self._is_absent() from None
        try:
            is_expected = self._is_expected(data)
        except (CorruptError, FormatError) as error:
            # What is there can be read as ever: each object proves itself.
            if changing:
                raise AccessError(
                    f"{self.name}: {error}; so nobody can tell whose repository it is"
                ) from error
            return
        if not is_expected:
            raise ForeignError(
                f"{self.name} holds another repository than this data directory's:"
                " is the right disk mounted there?"
            )
        if not recognised or not self._has_connections:
            # Of several threads at once, one counts for all.
            self._arrivals += 1
        recognised.add(place)

    def _is_absent(self) -> OfflineError:
        return OfflineError(f"{self.name} holds no repository at present: is its disk mounted?")

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, urgent: bool = False
    ) -> bytes:
        check_key(key)
        return self._run(
            lambda files: self._existing(files, key, lambda: files.read(key, offset, length)),
            urgent=urgent,
            reading=True,
        )

    def stat(self, key: str) -> Entry:
        check_key(key)
        found = self._run(
            lambda files: self._existing(files, key, lambda: files.stat(key)), reading=True
        )
        return _entry(found)

    def _existing(self, files: Files, key: str, look: Callable[[], Result]) -> Result:
        """Tell an object that is missing from a repository that is (an unmounted disk)."""
        try:
            return look()
        except MissingError:
            # Who asks for the repository's configuration doesn't know yet that there is one.
            if key != CONFIG_KEY:
                self._require_repository(files)
            raise MissingError(f"{self.name} has no object {key}") from None

    def _require_repository(self, files: Files) -> None:
        try:
            files.stat(TEMPORARY_FOLDER)
        except MissingError:
            raise self._is_absent() from None
        self._recognise(files)

    def put(self, key: str, data: Payload) -> bool:
        placed = self._store(key, data, replace=True)
        assert placed is not None
        return placed.is_safe

    def place(
        self, key: str, data: Payload, may_show: Callable[[], bool], look_for: Collection[str] = ()
    ) -> Placed | None:
        return self._store(key, data, replace=True, may_show=may_show, look_for=look_for)

    def create(self, key: str, data: Payload) -> None:
        self._store(key, data, replace=False)

    def _store(
        self,
        key: str,
        data: Payload,
        *,
        replace: bool,
        may_show: Callable[[], bool] = lambda: True,
        look_for: Collection[str] = (),
    ) -> Placed | None:
        for each in (key, *look_for):
            check_key(each)
        folders = _folders_of(key)
        parts = buffers_of(data)
        size_bytes = sum(part.nbytes for part in parts)

        def store(files: Files) -> Placed | None:
            temporary = f"{TEMPORARY_FOLDER}/{secrets.token_hex(_NAME_BYTES)}"
            with closing(files.write(temporary, parts, self._to_sync(folders))) as file:
                if file.size_bytes != size_bytes:
                    raise TemporaryError(
                        f"{self.name}: {key} has {file.size_bytes} bytes there"
                        f" instead of {size_bytes}"
                    )
                if not may_show():
                    return None
                try:
                    placed = file.publish(key, replace=replace, look_for=look_for)
                except MissingError:
                    files.make_folders(folders)
                    placed = file.publish(key, replace=replace, look_for=look_for)
            if placed.is_safe:
                self._safe_folders.update(folders)
            return placed

        def store_in_repository(files: Files) -> Placed | None:
            try:
                return store(files)
            except MissingError:
                # The whole of it may go away between any two steps.
                self._require_repository(files)
                raise

        # A repeated create would find its own object and call it another's.
        return self._run(store_in_repository, repeatable=replace, storing=True)

    def _to_sync(self, folders: Sequence[str]) -> list[str]:
        """What to sync after a new name in the last one of these, of which each holds the next.

        That one; and where others have theirs, unless this process has done so: who made them may
        have died before, and a name is worth nothing in a folder without one.
        """
        above = ["", *folders]
        unsafe = [
            holder
            for holder, folder in zip(above, folders, strict=False)
            if folder not in self._safe_folders
        ]
        return [*unsafe, above[-1]]

    def delete(self, key: str) -> None:
        check_key(key)

        def delete(files: Files) -> None:
            try:
                files.remove(key)
            except MissingError:
                self._require_repository(files)

        self._run(delete, changing=True)

    def move(self, key: str, target: str) -> None:
        check_key(key)
        check_key(target)
        # A repeated move would not find what the first one has moved.
        self._run(
            lambda files: self._existing(files, key, lambda: files.move(key, target)),
            repeatable=False,
            changing=True,
        )

    def list(self, prefix: str) -> Iterator[Entry]:
        if prefix:
            check_key(prefix)

        def entries(files: Files) -> list[FileStatus]:
            try:
                return files.list(prefix)
            except MissingError:
                if prefix:
                    self._require_repository(files)
                return []

        return (_entry(status) for status in self._run(entries) if status.is_file)

    def make_root(self) -> None:
        self._make((TEMPORARY_FOLDER,))

    def make_folders(self, others: Sequence[str] = ()) -> None:
        for folder in others:
            check_key(folder)
        self._make((*FOLDERS, *others))

    def _make(self, folders: Sequence[str]) -> None:
        def make(files: Files) -> None:
            files.make_root()
            files.make_folders(folders)

        self._run(make, storing=True)

    def usage(self) -> Usage | None:
        return self._run(lambda files: files.usage())

    def check(self) -> None:
        def look(files: Files) -> None:
            with suppress(MissingError):
                if not files.stat("").is_folder:
                    raise ForeignError(f"{self.name} is not a folder")

        self._run(look, forced=True, urgent=True)

    def is_empty(self) -> bool:
        def is_empty(files: Files) -> bool:
            try:
                found = files.list("")
            except MissingError:
                return True
            if [(each.name, each.is_folder) for each in found] == [(TEMPORARY_FOLDER, True)]:
                found = [each for each in files.list(TEMPORARY_FOLDER) if not _is_temporary(each)]
            return not found

        return self._run(is_empty)


def _is_temporary(status: FileStatus) -> bool:
    """Whether it is what an upload that was cut short has left."""
    name = re.fullmatch(rf"[0-9a-f]{{{2 * _NAME_BYTES}}}", status.name)
    return status.is_file and name is not None


def _entry(status: FileStatus) -> Entry:
    return Entry(status.name, status.size_bytes, status.mtime_seconds)


def _folders_of(key: str) -> list[str]:
    """``a/b/c`` -> ``a``, ``a/b``: outermost first."""
    parts = key.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]
