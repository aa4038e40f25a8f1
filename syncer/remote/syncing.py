"""Syncs on an SFTP server: of files, by OpenSSH's extension, and by the same of folders.

The protocol has no word for the sync of a folder, without which a power cut may take the names in
it. OpenSSH opens folders for reading as it opens files, and syncs what is open. Most others refuse;
then what was stored is not known to be safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ..errors import OfflineError, SyncerError
from . import packets as sftp
from .session import Session, StatusError


class FolderSyncs:
    """Folders that are to be synced, opened ahead; on a server that can't sync, none are.

    Used by the thread of its session.
    """

    def __init__(self, session: Session, paths: Sequence[bytes]) -> None:
        self._session = session
        self._paths = list(paths)
        """Those that are not open yet."""
        self._asked: list[int] = []
        self._handles: list[bytes] = []
        self._ask()

    def _ask(self) -> None:
        if self._session.server.can_sync:
            self._asked = [
                self._session.send(sftp.OPEN, path, sftp.OPEN_READ, 0) for path in self._paths
            ]

    @property
    def are_open(self) -> bool:
        """Whether all of them are, so that their syncs will count."""
        return not self._paths

    def open(self) -> None:
        """Wait until they are open. Another call tries again what may be there by then."""
        if not self._asked:
            self._ask()
        asked, self._asked = self._asked, []
        for path, request in zip(tuple(self._paths), asked, strict=False):
            try:
                self._handles.append(self._session.handle(request))
                self._paths.remove(path)
            except OfflineError:
                raise
            except SyncerError:
                continue

    def send_syncs(self) -> list[int]:
        """Queue a sync of each that is open."""
        syncs = (send_sync(self._session, handle) for handle in self._handles)
        return [sync for sync in syncs if sync is not None]

    def close(self) -> None:
        """Close those that are open; nobody waits for that."""
        if self._asked:
            with suppress(SyncerError):
                self.open()
        for handle in self._handles:
            self._session.send(sftp.CLOSE, handle)
        self._handles = []


def send_sync(session: Session, handle: bytes) -> int | None:
    """Queue the sync of what is open; None where the server has no such thing."""
    if not session.server.can_sync:
        return None
    return session.send(sftp.EXTENDED, b"fsync@openssh.com", handle)


def finish_sync(session: Session, request: int | None) -> bool:
    """Whether what was opened there is on the server's disk; raises if its sync has failed."""
    if request is None:
        return False
    try:
        session.succeed(request)
    except StatusError as error:
        # What fsync says where the file system has no such thing; else it has failed.
        if error.code not in (sftp.UNSUPPORTED, sftp.BAD_MESSAGE):
            raise
        return False
    return True
