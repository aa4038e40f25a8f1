"""A remote in memory that can be told to fail, for tests of what uses remotes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from syncer.errors import (
    AccessError,
    CorruptError,
    ExistsError,
    LoginError,
    MissingError,
    OfflineError,
    RemoteFullError,
    SyncerError,
    TemporaryError,
)
from syncer.remote.base import Entry, Payload, Remote, Usage, buffers_of, check_key
from syncer.remote.retry import Health

Result = TypeVar("Result")

ERRORS: tuple[SyncerError, ...] = (
    TemporaryError("it did not work"),
    OfflineError("it is away"),
    RemoteFullError("it is full"),
    MissingError("it is not there"),
    AccessError("it is denied"),
    LoginError("no key is accepted"),
    CorruptError("it is damaged"),
)
"""One of each kind that a remote may answer a call with."""


class MemoryRemote(Remote):
    """Passes the same contract as the others, until a test tells it not to."""

    def __init__(self) -> None:
        self.health = Health()
        self.calls: Counter[str] = Counter()
        """How often each method reached the remote, the failed calls included."""
        self.delay_seconds = 0.0
        """How long each call takes."""
        self.is_durable = True
        self.room: Usage | None = None
        self._lock = threading.Lock()
        # The lock guards everything below, and the counter.
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._faults: dict[str, list[SyncerError | None]] = {}
        self._offline = False
        self._closed = False

    @property
    def objects(self) -> dict[str, bytes]:
        """A copy of what is stored, by key."""
        with self._lock:
            return {key: content for key, (content, _) in self._objects.items()}

    def damage(self, key: str, content: bytes) -> None:
        """Replace an object behind everyone's back."""
        with self._lock:
            self._objects[key] = content, time.time()

    def fail(self, method: str, error: SyncerError, times: int = 1, *, after: int = 0) -> None:
        """Let the next calls of a method fail, but for some that go well `after` which it begins.

        For "put" and "create", nothing is stored.
        """
        with self._lock:
            self._faults.setdefault(method, []).extend([*[None] * after, *[error] * times])

    def work_again(self) -> None:
        """Forget the failures that have not come yet, and that it was away."""
        with self._lock:
            self._faults.clear()
        self.check()

    def go_offline(self) -> None:
        """Be unreachable from now on."""
        self._offline = True

    def go_online(self) -> None:
        """Be reachable again; `check` makes it known at once, other calls when a probe is due."""
        self._offline = False

    @property
    def name(self) -> str:
        return "memory"

    def _perform(
        self,
        method: str,
        action: Callable[[], Result],
        *,
        forced: bool = False,
        urgent: bool = False,
    ) -> Result:
        storing = method in ("put", "create")
        with self.health.attempt(forced=forced, storing=storing, urgent=urgent):
            time.sleep(self.delay_seconds)
            with self._lock:
                self.calls[method] += 1
                if self._closed or self._offline:
                    raise OfflineError("memory is away")
                faults = self._faults.get(method)
                if faults and (error := faults.pop(0)):
                    raise error
                return action()

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, urgent: bool = False
    ) -> bytes:
        content, _ = self._perform("get", lambda: self._find(check_key(key)), urgent=urgent)
        return content[offset:] if length is None else content[offset : offset + length]

    def _find(self, key: str) -> tuple[bytes, float]:
        try:
            return self._objects[key]
        except KeyError:
            raise MissingError(f"memory has no object {key}") from None

    def put(self, key: str, data: Payload) -> bool:
        check_key(key)
        content = b"".join(buffers_of(data)), time.time()
        self._perform("put", lambda: self._objects.update({key: content}))
        return self.is_durable

    def create(self, key: str, data: Payload) -> None:
        check_key(key)
        content = b"".join(buffers_of(data)), time.time()

        def create() -> None:
            if self._objects.setdefault(key, content) is not content:
                raise ExistsError(f"memory has {key} already")

        self._perform("create", create)

    def delete(self, key: str) -> None:
        check_key(key)
        self._perform("delete", lambda: self._objects.pop(key, None))

    def move(self, key: str, target: str) -> None:
        check_key(key)
        check_key(target)

        def move() -> None:
            self._find(key)
            self._objects[target] = self._objects.pop(key)

        self._perform("move", move)

    def list(self, prefix: str) -> Iterator[Entry]:
        if prefix:
            check_key(prefix)
        start = f"{prefix}/" if prefix else ""

        def entries() -> list[Entry]:
            return [
                Entry(key[len(start) :], len(content), mtime)
                for key, (content, mtime) in self._objects.items()
                if key.startswith(start) and "/" not in key[len(start) :]
            ]

        return iter(self._perform("list", entries))

    def stat(self, key: str) -> Entry:
        content, mtime = self._perform("stat", lambda: self._find(check_key(key)))
        return Entry(key.rpartition("/")[2], len(content), mtime)

    def make_root(self) -> None:
        self._perform("make_root", lambda: None)

    def make_folders(self, others: Sequence[str] = ()) -> None:
        for folder in others:
            check_key(folder)
        self._perform("make_folders", lambda: None)

    def usage(self) -> Usage | None:
        return self._perform("usage", lambda: self.room)

    def check(self) -> None:
        self._perform("check", lambda: None, forced=True)

    def is_empty(self) -> bool:
        return self._perform("is_empty", lambda: not self._objects)

    def close(self) -> None:
        self._closed = True
