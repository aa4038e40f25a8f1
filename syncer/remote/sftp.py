"""The file primitives over SFTP: few round trips, and no answer left unread.

On OpenSSH a `get` takes two round trips (OPEN; READs and FSTAT) and a `put` three (OPEN; WRITEs,
FSYNC and FSTAT; rename and FSYNC). Other servers may handle requests out of order, so with them
each step waits for the one before.

OpenSSH opens folders as it opens files, so they can be synced. The folder of a new name is opened
together with the file and synced together with the rename: that takes no round trip of its own.
"""

from __future__ import annotations

import stat as modes
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from ..errors import (
    AccessError,
    ExistsError,
    MissingError,
    RemoteFullError,
    SyncerError,
    TemporaryError,
)
from . import packets as sftp
from .base import Placed, Usage
from .files import ROOT_MODE, Files, FileStatus, NewFile
from .packets import wide
from .session import Session, StatusError
from .syncing import FolderSyncs, finish_sync, send_sync

PIPELINE_BYTES = 4 << 20
"""Under way at once on one connection, each way. OpenSSH's own window is 2 MiB; more than this
would only queue up in memory."""
FIRST_READ_BYTES = (1 << 20) + (64 << 10)
"""Asked for at once where neither caller nor server has told the size: a block and its header."""
READS_AT_ONCE = 64
"""As many as OpenSSH's own client has under way. More may block both sides, each waiting for the
other to read, when a server gives little per READ."""
FOLDER_READS = 8
"""READDIRs under way at once; OpenSSH answers each with up to 100 names."""
MOST_NAMES = 1 << 20
"""In one folder; with as many in each of the folders of blocks there would be 256 TiB of them."""
READ_ONLY_FLAG = 1
"""statvfs@openssh.com's flag for a file system that is mounted read-only."""


class SftpFiles(Files):
    """The primitives below `root` on one SFTP connection."""

    def __init__(self, session: Session, root: bytes) -> None:
        self._session = session
        self._root = root

    def path(self, path: str) -> bytes:
        """The path as the server shall see it; a relative root starts at the login folder."""
        name = path.encode("utf-8", "surrogateescape")
        if not name:
            return self._root or b"."
        return name if not self._root else self._root.rstrip(b"/") + b"/" + name

    @contextmanager
    def told(self, path: str, size_bytes: int = 0) -> Iterator[None]:
        """Complete what the server said: where it happened, and why if that can be found out.

        SFTP calls a full disk, a read-only one and all else just "Failure". `size_bytes` is how
        much room the request needed.
        """
        where = f"{self._session.name}: {path or 'the folder'}"
        try:
            yield
        except StatusError as error:
            room = self._room()
            if room and room.read_only:
                raise AccessError(f"{where}: the disk there is read-only") from error
            if room and (room.usage.free_bytes < size_bytes or room.out_of_inodes):
                raise RemoteFullError(f"{where}: the disk there is full") from error
            raise StatusError(f"{where}: {error}", error.code) from error
        except (MissingError, AccessError, ExistsError, RemoteFullError) as error:
            raise type(error)(f"{where}: {error}") from error

    def place(self) -> Hashable:
        # A disk that goes away shows as an outage, which `FileRemote` takes note of.
        return self._session.connection_number

    def read(self, path: str, offset: int, length: int | None) -> bytes:
        session = self._session
        with self.told(path):
            handle = session.handle(session.send(sftp.OPEN, self.path(path), sftp.OPEN_READ, 0))
            try:
                return b"".join(_read(session, handle, offset, length))
            finally:
                session.send(sftp.CLOSE, handle)

    def write(self, path: str, parts: Sequence[memoryview], folders: Sequence[str] = ()) -> NewFile:
        size_bytes = sum(part.nbytes for part in parts)
        with self.told(path, size_bytes):
            return SftpFile(self, self._session, path, parts, size_bytes, folders)

    def stat(self, path: str) -> FileStatus:
        session = self._session
        with self.told(path):
            found = session.attributes(session.send(sftp.STAT, self.path(path)))
        return _status(path.rpartition("/")[2], found)

    def list(self, path: str) -> list[FileStatus]:
        session = self._session
        found = []
        with self.told(path):
            handle = session.handle(session.send(sftp.OPENDIR, self.path(path)))
            ahead = FOLDER_READS if session.server.in_order else 1
            requests = deque(session.send(sftp.READDIR, handle) for _ in range(ahead))
            try:
                while names := session.names(requests.popleft()):
                    requests.append(session.send(sftp.READDIR, handle))
                    found.extend(names)
                    if len(found) > MOST_NAMES or not all(map(_is_name, names)):
                        raise session.garbled()
            finally:
                session.send(sftp.CLOSE, handle)
        return [
            _status(name.decode("utf-8", "surrogateescape"), attributes)
            for name, attributes in found
            if name not in (b".", b"..")
        ]

    def remove(self, path: str) -> None:
        with self.told(path):
            self._session.succeed(self._session.send(sftp.REMOVE, self.path(path)))

    def move(self, path: str, target: str) -> None:
        names = self.path(path), self.path(target)
        with self.told(path):
            # What would make room for a file that is not there stays.
            self._session.attributes(self._session.send(sftp.STAT, names[0]))
            self.rename_over(*names)

    def rename_over(self, name: bytes, target: bytes) -> None:
        """Rename a file over another, in one step where the server can."""
        session = self._session
        if b"posix-rename@openssh.com" in session.server.extensions:
            session.succeed(session.send(sftp.EXTENDED, b"posix-rename@openssh.com", name, target))
            return
        try:
            session.succeed(session.send(sftp.RENAME, name, target))
        except (StatusError, ExistsError):
            # The plain rename doesn't replace, and there is no other here: the object is gone
            # for a moment, though never half.
            session.succeed(session.send(sftp.REMOVE, target))
            session.succeed(session.send(sftp.RENAME, name, target))

    def make_root(self) -> None:
        try:
            self.stat("")
        except MissingError:
            steps = self._root.split(b"/")
            root = self._root.rstrip(b"/")
            paths = [b"/".join(steps[:end]) for end in range(1, len(steps) + 1)]
            first = b"/" if self._root.startswith(b"/") else b"."
            with self.told(""):
                for path in filter(None, paths):
                    self._make([path], ROOT_MODE if path == root else None)
                self._sync_folders([first, *filter(None, paths[:-1])])

    def make_folders(self, paths: Sequence[str]) -> None:
        levels = defaultdict(list)
        for path in paths:
            levels[path.count("/")].append(self.path(path))
        with self.told("the repository's folders"):
            for level in sorted(levels):
                self._make(levels[level])
            holders = {path.rpartition("/")[0] for path in paths}
            self._sync_folders([self.path(holder) for holder in holders])

    def _sync_folders(self, paths: Sequence[bytes]) -> None:
        with closing(FolderSyncs(self._session, paths)) as folders:
            folders.open()
            for sync in folders.send_syncs():
                finish_sync(self._session, sync)

    def _make(self, paths: Sequence[bytes], mode: int | None = None) -> None:
        """Make folders of which none lies in another, those that are missing.

        Without a mode they get the server's usual one.
        """
        session = self._session
        attributes = (0,) if mode is None else (sftp.HAS_MODE, mode)
        requests = [(path, session.send(sftp.MKDIR, path, *attributes)) for path in paths]
        failed: list[tuple[bytes, AccessError | StatusError | ExistsError]] = []
        for path, request in requests:
            try:
                session.succeed(request)
            except (AccessError, StatusError, ExistsError) as error:
                failed.append((path, error))
        # Most have failed because they are there, for which version 3 has no status.
        checks = [(error, session.send(sftp.STAT, path)) for path, error in failed]
        for refusal, check in checks:
            try:
                found = session.attributes(check)
            except MissingError:
                raise refusal from None
            if not modes.S_ISDIR(found.mode):
                raise refusal

    def exists(self, path: str) -> bool:
        """Whether anything has this name."""
        try:
            self.stat(path)
        except MissingError:
            return False
        return True

    def usage(self) -> Usage | None:
        room = self._room()
        return room.usage if room else None

    def _room(self) -> _Room | None:
        session = self._session
        if b"statvfs@openssh.com" not in session.server.extensions:
            return None
        request = session.send(sftp.EXTENDED, b"statvfs@openssh.com", self.path(""))
        try:
            return _Room(bytes(session.extended(request)))
        except (StatusError, AccessError):
            return None


class SftpFile(NewFile):
    """A new file on the server; see `NewFile`."""

    def __init__(
        self,
        files: SftpFiles,
        session: Session,
        path: str,
        parts: Sequence[memoryview],
        size_bytes: int,
        folders: Sequence[str],
    ) -> None:
        self._files = files
        self._session = session
        self._needed_bytes = size_bytes
        self._temporary: bytes | None = files.path(path)
        flags = sftp.OPEN_WRITE | sftp.OPEN_CREATE | sftp.OPEN_EXCLUSIVE
        opening = session.send(sftp.OPEN, self._temporary, flags, 0)
        self._folders = FolderSyncs(session, [files.path(folder) for folder in folders])
        try:
            self._handle = session.handle(opening)
        except BaseException:
            self._folders.close()
            raise
        try:
            self._write(parts)
        except BaseException:
            self.close()
            raise

    def _write(self, parts: Sequence[memoryview]) -> None:
        session = self._session
        writes: deque[int] = deque()
        try:
            for offset, buffers in _chunks(parts, session.next_write_bytes):
                if session.unanswered_bytes >= PIPELINE_BYTES:
                    session.succeed(writes.popleft())
                fields = (self._handle, *wide(offset))
                writes.append(session.send(sftp.WRITE, *fields, payload=buffers))
            if not session.server.in_order:
                _succeed_all(session, writes)
        except SyncerError:
            # Or the server might come to the CLOSE before the rest of them.
            for request in writes:
                with suppress(SyncerError):
                    session.succeed(request)
            raise
        sync = send_sync(session, self._handle)
        size = session.send(sftp.FSTAT, self._handle)
        session.wait_for(size)
        _succeed_all(session, writes)
        if not finish_sync(session, sync):
            session.server.can_sync = False
        self.size_bytes = session.attributes(size).size_bytes

    def publish(self, path: str, *, replace: bool, look_for: Collection[str] = ()) -> Placed:
        with self._files.told(path, self._needed_bytes):
            self._folders.open()
            if self._temporary is None:
                return self._finish(self._send_syncs(), self._send_looks(look_for))
            if replace:
                return self._rename_over(path, self._temporary, look_for)
            self._move_to_free_name(path, self._temporary)
            return self._finish(self._send_syncs(), self._send_looks(look_for))

    def _send_looks(self, look_for: Collection[str]) -> list[tuple[str, int]]:
        return [(path, self._session.send(sftp.STAT, self._files.path(path))) for path in look_for]

    def _send_syncs(self) -> list[int]:
        syncs = self._folders.send_syncs()
        if not self._folders.are_open and (sync := send_sync(self._session, self._handle)):
            # That takes the name along on many disks, though nobody promises it.
            syncs.append(sync)
        return syncs

    def _finish(self, syncs: Sequence[int], looks: Sequence[tuple[str, int]]) -> Placed:
        are_done = [finish_sync(self._session, sync) for sync in syncs]
        is_safe = all(are_done) and self._session.server.can_sync and self._folders.are_open
        there = set()
        for path, look in looks:
            with suppress(MissingError):
                self._session.attributes(look)
                there.add(path)
        return Placed(is_safe, frozenset(there))

    def _rename_over(self, path: str, temporary: bytes, look_for: Collection[str]) -> Placed:
        session = self._session
        names = temporary, self._files.path(path)
        if b"posix-rename@openssh.com" in session.server.extensions and session.server.in_order:
            rename = session.send(sftp.EXTENDED, b"posix-rename@openssh.com", *names)
            syncs, looks = self._send_syncs(), self._send_looks(look_for)
            session.wait_for([rename, *syncs, *(look for _, look in looks)][-1])
            session.succeed(rename)
            self._temporary = None
            return self._finish(syncs, looks)
        self._files.rename_over(*names)
        self._temporary = None
        return self._finish(self._send_syncs(), self._send_looks(look_for))

    def _move_to_free_name(self, path: str, temporary: bytes) -> None:
        session = self._session
        names = temporary, self._files.path(path)
        linked = False
        if b"hardlink@openssh.com" in session.server.extensions:
            link = session.send(sftp.EXTENDED, b"hardlink@openssh.com", *names)
            # It fails on disks without hard links, for which the rename below is the next best.
            with suppress(StatusError, AccessError, ExistsError):
                session.succeed(link)
                linked = True
        if not linked:
            if self._files.exists(path):
                raise ExistsError("exists already")
            try:
                session.succeed(session.send(sftp.RENAME, *names))
            except StatusError:
                if self._files.exists(path):
                    raise ExistsError("exists already") from None
                raise
            self._temporary = None

    def close(self) -> None:
        # Nobody waits for these: the answers are dropped, and what a lost connection leaves
        # behind is litter under tmp/.
        self._session.send(sftp.CLOSE, self._handle)
        if self._temporary is not None:
            self._session.send(sftp.REMOVE, self._temporary)
        self._folders.close()


class _Room:
    """The answer of statvfs@openssh.com (OpenSSH's PROTOCOL, section 4.4)."""

    def __init__(self, answer: bytes) -> None:
        try:
            fields = struct.unpack(">11Q", answer)
        except struct.error as error:
            raise TemporaryError("the server's statvfs answer has another size") from error
        _, unit_bytes, blocks, _, free_blocks, inodes, _, free_inodes, _, flags, _ = fields
        self.usage = Usage(blocks * unit_bytes, free_blocks * unit_bytes)
        self.out_of_inodes = inodes > 0 and free_inodes == 0
        self.read_only = bool(flags & READ_ONLY_FLAG)


def _is_name(found: tuple[bytes, sftp.Attributes]) -> bool:
    """Whether it is one that a file can have: others lead elsewhere."""
    name = found[0]
    return bool(name) and b"/" not in name and b"\0" not in name


def _read(session: Session, handle: bytes, offset: int, length: int | None) -> Iterator[memoryview]:
    """Yield the bytes from `offset` on, in order, with many READs under way."""
    asked: deque[tuple[int, int, int]] = deque()  # position, length, request
    ask_from = position = offset

    def ask(end: int, *, wait: bool) -> None:
        nonlocal ask_from
        while ask_from < min(end, position + PIPELINE_BYTES) and len(asked) < READS_AT_ONCE:
            # With something under way there is no need to wait for more.
            room_bytes = session.next_read_bytes(wait=wait and not asked)
            if not room_bytes:
                return
            count = min(room_bytes, end - ask_from)
            asked.append((ask_from, count, session.read(handle, ask_from, count)))
            ask_from += count

    ask(offset + (FIRST_READ_BYTES if length is None else length), wait=False)
    size_bytes = session.attributes(session.send(sftp.FSTAT, handle)).size_bytes
    end = size_bytes if length is None else min(size_bytes, offset + length)
    while position < end:
        ask(end, wait=True)
        start, count, request = asked.popleft()
        data = session.data(request)
        if len(data) > count:
            raise session.garbled()
        if start != position:
            continue  # follows a short answer; was asked for again
        if not data:
            return
        yield data
        position += len(data)
        if len(data) < count and position < end:
            # The server gives less at a time than it was asked for: remember that, and go on
            # from where its answer ended.
            session.server.read_bytes = len(data)
            ask_from = position


def _chunks(
    parts: Sequence[memoryview], next_bytes: Callable[[], int]
) -> Iterator[tuple[int, Sequence[memoryview]]]:
    """Split the buffers, taken as one run of bytes, into offsets and runs of `next_bytes()`."""
    offset = 0
    chunk: list[memoryview] = []
    chunk_bytes = room_bytes = 0
    for part in parts:
        while part:
            if not chunk:
                chunk_bytes = room_bytes = next_bytes()
            taken, part = part[:room_bytes], part[room_bytes:]
            chunk.append(taken)
            room_bytes -= len(taken)
            if not room_bytes:
                yield offset, chunk
                offset += chunk_bytes
                chunk = []
    if chunk:
        yield offset, chunk


def _succeed_all(session: Session, requests: deque[int]) -> None:
    while requests:
        session.succeed(requests.popleft())


def _status(name: str, found: sftp.Attributes) -> FileStatus:
    return FileStatus(
        name,
        found.size_bytes,
        float(found.mtime_seconds),
        modes.S_ISREG(found.mode),
        modes.S_ISDIR(found.mode),
    )
