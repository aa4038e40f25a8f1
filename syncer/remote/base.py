"""The contract of a remote: a place that stores objects under keys.

A key is a path below the repository's folder, such as ``syncer.json`` or
``blocks/ab/abcdef...``. An object is a run of bytes that is there whole or not at all. What the
bytes mean is the business of the layers above; how they are kept is that of the subclasses.
`tests/remote_contract.py` holds the tests that every remote passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ..errors import MissingError, UsageError
from .retry import Health

Data = bytes | bytearray | memoryview
Payload = Data | Sequence[Data]
"""An object's content: one buffer, or several that are written one after the other."""

BLOCK_FOLDERS = tuple(f"blocks/{number:02x}" for number in range(256))
FOLDERS = (
    "blocks",
    *BLOCK_FOLDERS,
    "packs",
    "log",
    "checkpoint",
    "machines",
    "writers",
    "trash",
    "tmp",
)
"""What `Remote.make_folders` makes, parents first. The folders below ``log`` and
``checkpoint`` are named after machines and appear with their first object, or before it."""

STARTS_AFTER_SECONDS = 0.5
"""Nothing begins to use a remote in the background before: whoever has just mounted looks around
first, and each login takes a tenth of a second of the processors."""

CONFIG_KEY = "syncer.json"
TEMPORARY_FOLDER = "tmp"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object, as listed."""

    name: str
    """The last part of the key."""
    size_bytes: int
    mtime_seconds: float
    """Seconds since 1970 by the server's clock; some remotes know only whole seconds."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The room on the remote's disk, as an ordinary user may use it."""

    capacity_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Placed:
    """How an object was stored by `Remote.place`."""

    is_safe: bool
    """As `Remote.put` returns."""
    there: frozenset[str]
    """Those of the keys that were looked for under which there was an object afterwards."""


class Remote(ABC):
    """A place that stores objects. May be used from many threads at once.

    Constructing one neither connects nor starts a thread, so it is safe before a fork. Every
    method may raise

    - `OfflineError`: not reachable, no progress within the time limit, or the repository's
      folder is gone (a disk that isn't mounted). Once that is known, further calls fail at once
      until the next probe is due: see `Health`. The same object works again without a restart.
    - `LoginError`, `HostKeyError`: a person must act; looked at again in the same way.
    - `ForeignError`: another repository is there than the one that was expected (`expect`);
      likewise.
    - `AccessError`: the remote refuses, by permission or because it is read-only.
    - `UsageError`: the key is malformed.

    and what its own docstring names. No other exception leaves a remote.
    """

    health: Health

    @property
    @abstractmethod
    def name(self) -> str:
        """The location, for people; holds no secret."""

    @abstractmethod
    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, urgent: bool = False
    ) -> bytes:
        """Return `length` bytes from `offset` on, or all the rest; fewer only at the end.

        `urgent` is for callers that someone waits for: uploads never keep them waiting for a
        connection.

        Raises:
            MissingError: there is no such object, though the repository is there.
        """

    @abstractmethod
    def put(self, key: str, data: Payload) -> bool:
        """Store an object; when this returns, it is on the remote, whole.

        Returns whether it is on the remote's disk, with its name, so that a power cut there does
        not take it. Where that is not to be had, the caller keeps what it has for a settling time.

        An object of that name is replaced in one step. Nothing is skipped because the name is
        there already: what is there may be a ruin that only a person could have made.

        Raises:
            RemoteFullError: no room; nothing was stored.
            TemporaryError: the server failed for a reason that it did not tell.
        """

    def place(
        self, key: str, data: Payload, may_show: Callable[[], bool], look_for: Collection[str] = ()
    ) -> Placed | None:
        """Store an object as `put` does, but give it its name only once `may_show` returns true.

        That is called when all else is done, perhaps more than once, and takes some seconds at
        most. If it returns false, nothing is stored, and None is returned. With its name given,
        looks for other objects: so of two who store one, and then look for the other's, one finds
        it. A remote far away does in one round trip what takes several by the calls for each.
        """
        if not may_show():
            return None
        is_safe = self.put(key, data)
        return Placed(is_safe, frozenset(filter(self._has, look_for)))

    def _has(self, key: str) -> bool:
        try:
            self.stat(key)
        except MissingError:
            return False
        return True

    @abstractmethod
    def create(self, key: str, data: Payload) -> None:
        """Store an object unless one of that name exists; of several at once, one succeeds.

        After an `OfflineError` the object may have been created all the same: read it to know.

        Raises:
            ExistsError: there is one; it was not touched.
            RemoteFullError, TemporaryError: as `put`.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; removing what is not there is no error.

        A power cut of the remote may bring it back.
        """

    @abstractmethod
    def move(self, key: str, target: str) -> None:
        """Give an object another key, in one step; one that has that key already is replaced.

        A power cut of the remote may undo it. After an `OfflineError` it may have moved all the
        same, or move later.

        Raises:
            MissingError: there is no object under `key`.
        """

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Entry]:
        """List the objects that lie directly in the folder `prefix`, in no order.

        Uploads in flight, and those that a crash left behind, show under ``tmp`` only. A folder
        that is not there is empty. "" is the repository's own folder.
        """

    @abstractmethod
    def stat(self, key: str) -> Entry:
        """Describe one object.

        Raises:
            MissingError: there is no such object.
        """

    @abstractmethod
    def make_root(self) -> None:
        """Make the repository's folder, with what storing its first object takes.

        With no more than this it still counts as empty, so that whoever dies here, or while the
        first object is on its way, leaves nothing that is in anybody's way.
        """

    @abstractmethod
    def make_folders(self, others: Sequence[str] = ()) -> None:
        """Make the repository's folder, all of `FOLDERS` and `others` in these; cheap if they are
        there."""

    @abstractmethod
    def usage(self) -> Usage | None:
        """The room on the remote, or None if it can't tell."""

    @abstractmethod
    def check(self) -> None:
        """Reach the remote, whatever is known about its health, or raise why it can't be.

        That the repository's folder does not exist is no error: see `is_empty`.
        """

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether the repository's folder is missing, or holds nothing but what `make_root` makes
        and first objects that were never finished."""

    def expect(self, is_expected: Callable[[bytes], bool]) -> None:  # noqa: B027  needs no disk
        """From now on be away with a `ForeignError` while another repository is there.

        `is_expected` is given what `CONFIG_KEY` holds, and raises CorruptError or FormatError if
        that can't be told; then nothing can be stored. It is asked before the first call that finds
        the place, and whenever another one may have come to be there since.
        """

    @property
    def arrivals(self) -> int:
        """How often the repository was found to be there anew (`expect`): after it was away, if
        only for one connection, or where something was different about it. An older state of it may
        have come by then."""
        return 0

    def prepare(self) -> None:  # noqa: B027  most have nothing to prepare
        """Have calls to come find the remote reachable, if it is; returns at once."""

    @property
    def lead_bytes(self) -> int:
        """How much to ask for at once ahead of a reader, so that a long line is not idle while
        requests travel; 0 if that is not known, or does not matter."""
        return 0

    @property
    def sending_lead_bytes(self) -> int:
        """The same of what is stored: how much to have under way, so that a long line is full."""
        return 0

    @property
    def is_far(self) -> bool:
        """Whether it is known that round trips, rather than processors, take the time."""
        return False

    @property
    def is_near(self) -> bool:
        """Whether it is known that they do not."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Drop all connections. Calls under way and later ones fail with `OfflineError`."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.health}>"


def check_key(key: str) -> str:
    """Return `key` if it names an object below the repository's folder.

    Raises:
        UsageError: it is empty or absolute, has an empty part, ``.`` or ``..``, or a NUL.
    """
    parts = key.split("/")
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"not a valid object key: {key!r}")
    return key


def buffers_of(data: Payload) -> tuple[memoryview, ...]:
    """Return the content as flat byte views, empty ones left out; nothing is copied."""
    parts = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
    views = (memoryview(part).cast("B") for part in parts)
    return tuple(view for view in views if view.nbytes)
