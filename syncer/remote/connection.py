"""One SFTP connection that several callers share: requests out, answers in.

A transfer spends most of its time on round trips, in which its connection would be idle. So the
requests of several callers go over one connection as they come, each in the order in which its
caller sent it, and a thread hands each answer to the caller that it belongs to. Because that
thread always reads, a server that must get rid of its answers before it takes more requests never
blocks those who send.
"""

from __future__ import annotations

import itertools
import logging
import math
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import OfflineError, SyncerError
from . import packets
from .base import Data
from .packets import Fields
from .window import Sent, Window, Windows

log = logging.getLogger(__name__)

EXPECTED_OF_OPENSSH = {b"fsync@openssh.com", b"posix-rename@openssh.com", b"limits@openssh.com"}


CLOSE_SECONDS = 5.0
"""How long the receiving thread may take to end; it finds out why the stream ended first."""
PROGRESS_SECONDS = 1.0
"""How soon it is noticed, while a large answer comes, that the server still sends."""
ROOM_BYTES = 4096
"""Received at once where less is wanted: small answers come together, each with its head."""
DATA_HEAD_BYTES = 4
"""What comes before the bytes in an answer that brings some: their number."""
GREETING = 0
"""Stands for the number of the first request, which has none."""

_numbers = itertools.count(1)

Answer = tuple[int, memoryview]
"""Its kind, and the bytes that follow its number."""


class DroppedError(OfflineError):
    """The connection ended; another one may work at once."""


class Stream(Protocol):
    """A byte stream to an SFTP server. One thread sends, another one receives."""

    name: str

    def open(self) -> None:
        """Connect and log in. Raises SyncerError; at once if another thread closes it meanwhile."""

    def send(self, buffers: Sequence[Data], limit_seconds: float) -> None:
        """Send all; raise TimeoutError after `limit_seconds` without progress."""

    def receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        """Receive some bytes, with `whole` as many as there is room for, or what `limit_seconds`
        have brought; 0 at the end. Raises TimeoutError if they have brought nothing."""

    def is_alive(self) -> bool:
        """Whether nothing is known against it; does not ask the server."""

    def ending(self) -> SyncerError:
        """Why the stream ended, once `receive_into` has given 0 or failed, or `send` has failed."""

    def close(self) -> None:
        """Close it; wakes the threads that wait in it."""


class Server:
    """What the server at the other end can do."""

    def __init__(self, extensions: frozenset[bytes]) -> None:
        self.extensions = extensions
        self.in_order = extensions >= EXPECTED_OF_OPENSSH
        """Whether it handles one request after the other, as OpenSSH's does. Others that have
        some of its extensions may not, so all are asked for."""
        self.can_sync = b"fsync@openssh.com" in extensions
        """Whether it can sync a file; set to False when it turns out that its disk can't."""
        self.read_bytes = self.write_bytes = packets.SAFE_CHUNK_BYTES
        """The most that it takes in one request."""


class Inbox:
    """Where the answers for one caller arrive; guarded by its connection's lock. What has arrived
    is the caller's to take."""

    def __init__(self, lock: threading.Lock, lost_seconds: float) -> None:
        self.answers: dict[int, Answer] = {}
        self.lost_seconds = lost_seconds
        """For how long the caller had waited in vain before; the first answer ends that."""
        self.wanted = 0
        """The request whose answer the caller sleeps for."""
        self.arrived = threading.Condition(lock)
        self.unanswered_bytes = 0


@dataclass(frozen=True, slots=True)
class _Flow:
    """What a request counts for in one direction's window."""

    window: Window
    sent: Sent

    expected: int
    """The kind of an answer that shows how fast the data moved: the end of a file does not."""

    def end(self, kind: int, body: memoryview) -> None:
        """Its answer has come."""
        if kind == self.expected:
            brought_data = kind == packets.DATA
            carried_bytes = len(body) - DATA_HEAD_BYTES if brought_data else self.sent.size_bytes
            self.window.answered(self.sent, carried_bytes)
        else:
            self.window.refused(self.sent)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request without an answer yet."""

    inbox: Inbox
    size_bytes: int
    flow: _Flow | None
    """Only requests that bring data, or ask for some, have one."""


class Connection:
    """A connection to an SFTP server. May be used from several threads.

    The constructor waits for the server's greeting, so it raises what connecting can raise; it
    closes the stream then. After a failure every caller gets that failure, and the connection is
    of no more use.
    """

    def __init__(
        self,
        stream: Stream,
        timeout_seconds: float,
        windows: Windows | None = None,
        lost_seconds: float = 0.0,
    ) -> None:
        """`windows` are shared with the other connections to this server. `lost_seconds` count
        towards the limit for its greeting."""
        self._stream = stream
        self._timeout_seconds = timeout_seconds
        self.number = next(_numbers)
        """No other connection of this process has, or had, the same."""
        self.windows = windows or Windows()
        self.round_trip_seconds = math.inf
        """How long the server's answer to a first small question took, if there was one."""
        self._sending = threading.Lock()
        """Held while bytes go out; comes before the other lock."""
        self._lock = threading.Lock()
        # The lock guards everything below.
        self._failure: SyncerError | None = None
        self._outgoing: list[Data] = []
        self._next_number = 1
        self._asked: dict[int, _Asked] = {}
        """The requests without an answer yet."""
        self._all_answered = threading.Condition(self._lock)
        self._progress_at = 0.0
        # Of the thread that receives: what it has received ahead of need, and where.
        self._room = memoryview(bytearray(ROOM_BYTES))
        self._ahead = self._room[:0]
        self._receiver = threading.Thread(target=self._receive_all, name="syncer-sftp", daemon=True)
        try:
            self.server = Server(self._greet(lost_seconds))
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        return self._stream.name

    def _greet(self, lost_seconds: float) -> frozenset[bytes]:
        inbox = self.inbox(lost_seconds)
        self._outgoing.append(struct.pack(">IBI", 5, packets.INIT, 3))
        self._asked[GREETING] = _Asked(inbox, 0, None)
        self._receiver.start()
        kind, body = self.answer(inbox, GREETING)
        if kind != packets.VERSION:
            raise OfflineError(f"{self.name}: the server does not speak SFTP")
        fields = Fields(body)
        fields.number()
        names = []
        while fields.left:
            names.append(bytes(fields.string()))
            fields.string()
        return frozenset(names)

    def inbox(self, lost_seconds: float = 0.0) -> Inbox:
        """For a new caller. Answers that come after it was let go of are lost with it."""
        return Inbox(self._lock, lost_seconds)

    @property
    def heard_at(self) -> float:
        """When the server was last heard, by the monotonic clock."""
        return self._progress_at

    def send(
        self,
        inbox: Inbox,
        kind: int,
        body: bytes,
        payload: Sequence[Data],
        asked_bytes: int = 0,
    ) -> int:
        """Queue a request and return its number; see `Session.send` and `Session.read`."""
        size_bytes = len(body) + sum(len(part) for part in payload)
        up, down = self.windows.up, self.windows.down
        with self._lock:
            number = self._next_number
            self._next_number = number % 0xFFFFFFFF + 1
            self._outgoing.append(struct.pack(">IBI", 5 + size_bytes, kind, number) + body)
            self._outgoing.extend(payload)
            flow = None
            if self._failure is None and payload:
                flow = _Flow(up, up.send(size_bytes), packets.STATUS)
            elif self._failure is None and asked_bytes:
                flow = _Flow(down, down.send(asked_bytes), packets.DATA)
            self._asked[number] = _Asked(inbox, size_bytes, flow)
            inbox.unanswered_bytes += size_bytes
        return number

    def flush(self) -> None:
        """Put what is queued on its way; what another thread is sending already, it does."""
        with self._lock:
            self._raise_failure()
            if not self._outgoing:
                return
        with self._sending:
            with self._lock:
                outgoing, self._outgoing = self._outgoing, []
            if not outgoing:
                return
            try:
                self._stream.send(outgoing, self._timeout_seconds)
            except TimeoutError:
                self.fail(self._stuck(self._timeout_seconds))
            except OSError:
                self.fail(self._stream.ending())

    def answer(self, inbox: Inbox, request: int, limit_seconds: float | None = None) -> Answer:
        """Wait for the answer to one of this caller's requests.

        Raises OfflineError: nothing came from the server for too long, or the connection ended.
        """
        self.wait_for(inbox, request, limit_seconds)
        return inbox.answers.pop(request)

    def wait_for(self, inbox: Inbox, request: int, limit_seconds: float | None = None) -> None:
        """Wait until the answer to one of this caller's requests is there; raises as `answer`."""
        self.flush()
        began = time.monotonic() - inbox.lost_seconds
        with self._lock:
            inbox.wanted = request
            while request not in inbox.answers:
                self._raise_failure()
                patience_seconds = limit_seconds or self._timeout_seconds
                due = max(began, self._progress_at) + patience_seconds
                remaining_seconds = due - time.monotonic()
                if remaining_seconds > 0:
                    inbox.arrived.wait(remaining_seconds)
                else:
                    self._set_failure(self._stuck(patience_seconds))
            inbox.lost_seconds = 0.0

    def _receive_all(self) -> None:
        """The thread that receives, until the connection ends."""
        try:
            kind, packet = self._receive_packet()
            self._deliver(GREETING, kind, packet)
            while True:
                kind, packet = self._receive_packet()
                self._deliver(int.from_bytes(packet[:4], "big"), kind, packet[4:])
        except SyncerError as error:
            self.fail(error)
        except Exception as error:
            # Else all who wait would do so until their time is up.
            log.exception("%s: what it answered can't be received", self.name)
            self.fail(OfflineError(f"{self.name}: receiving failed ({error!r}); see the log"))

    def _deliver(self, number: int, kind: int, body: memoryview) -> None:
        with self._lock:
            if number not in self._asked:
                raise self.garbled()
            asked = self._asked.pop(number)
            inbox = asked.inbox
            inbox.unanswered_bytes -= asked.size_bytes
            inbox.answers[number] = kind, body
            if asked.flow is not None and self._failure is None:
                asked.flow.end(kind, body)
            if inbox.wanted == number:
                inbox.arrived.notify()
            if not self._asked:
                self._all_answered.notify_all()

    def _receive_packet(self) -> Answer:
        head = self._receive(5, self._timeout_seconds)
        length = int.from_bytes(head[:4], "big")
        if not 5 <= length <= packets.LARGEST_PACKET_BYTES:
            raise self.garbled()
        return head[4], self._receive(length - 1, PROGRESS_SECONDS)

    def _receive(self, length: int, limit_seconds: float) -> memoryview:
        """The next so many bytes. `limit_seconds`: how often to look how far they are."""
        whole = memoryview(bytearray(length))
        missing = whole
        while missing:
            if not self._ahead and len(missing) >= len(self._room):
                count = self._receive_into(missing, limit_seconds, whole=True)
            else:
                if not self._ahead:
                    count = self._receive_into(self._room, limit_seconds, whole=False)
                    self._ahead = self._room[:count]
                part = self._ahead[: len(missing)]
                count = len(part)
                missing[:count] = part
                self._ahead = self._ahead[count:]
            missing = missing[count:]
        return whole

    def _receive_into(self, view: memoryview, limit_seconds: float, *, whole: bool) -> int:
        while True:
            try:
                count = self._stream.receive_into(view, limit_seconds, whole=whole)
            except TimeoutError:
                continue  # who waits for an answer knows how long that may take
            except OSError as error:
                raise self._stream.ending() from error
            if not count:
                raise self._stream.ending()
            self._progress_at = time.monotonic()
            return count

    def _stuck(self, limit_seconds: float) -> OfflineError:
        return OfflineError(f"{self.name} made no progress for {limit_seconds:.0f} s")

    def garbled(self) -> OfflineError:
        """The error for an answer that makes no sense."""
        return OfflineError(
            f"{self.name}: the server's answer is not SFTP: does a login script print something?"
        )

    def fail(self, error: SyncerError) -> None:
        """Let all calls fail by the first such error, those under way and those to come."""
        with self._lock:
            self._set_failure(error)

    def _set_failure(self, error: SyncerError) -> None:
        if self._failure is None:
            self._failure = error
            for asked in self._asked.values():
                if asked.flow is not None:
                    asked.flow.window.lost(asked.flow.sent)
        for asked in self._asked.values():
            asked.inbox.arrived.notify()
        self._all_answered.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            # Their own copy: tracebacks of several threads must not mix.
            raise type(self._failure)(str(self._failure))

    def wait_for_room(self, window: Window, size_bytes: int) -> None:
        """Wait until the link has carried enough of what is under way; see `window`."""
        self.flush()
        if not window.wait_for_room(size_bytes, self._timeout_seconds):
            # Others may be what is stuck; then they fail as well, and what they had is forgotten.
            self.fail(self._stuck(self._timeout_seconds))

    def ping(self, limit_seconds: float) -> None:
        """Make sure that the server still answers, after a time in which nobody asked it."""
        inbox = self.inbox()
        request = self.send(inbox, packets.REALPATH, packets.pack(b"."), ())
        # The rest of the time is for what comes after it.
        self.answer(inbox, request, min(limit_seconds, self._timeout_seconds / 2))

    def settle(self, limit_seconds: float) -> None:
        """Wait for the answers that nobody waits for, such as those to CLOSE, but not for long."""
        with self._lock:
            self._all_answered.wait_for(
                lambda: not self._asked or self._failure is not None, limit_seconds
            )

    @property
    def has_failed(self) -> bool:
        """Whether somebody has noticed that it is of no more use."""
        return self._failure is not None

    def is_alive(self) -> bool:
        return not self.has_failed and self._stream.is_alive()

    def close(self) -> None:
        """Close it, under the hands of those who wait for answers as well."""
        self._stream.close()
        self.fail(DroppedError(f"the connection to {self.name} was closed"))
        self._receiver.join(CLOSE_SECONDS)
