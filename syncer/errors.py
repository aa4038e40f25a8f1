"""The one tree of exceptions, split by what the caller can do about them.

    SyncerError                 any error of ours; ``str()`` is one line for the user
    |-- MissingError            the thing asked for does not exist
    |-- TemporaryError          the same call may succeed later; retry with back-off
    |   |-- OfflineError        the remote can't be reached, or made no progress in time
    |   |-- RemoteFullError     the remote has no room
    |   |-- LocalFullError      the local limit or the disk's floor leaves no room
    |   `-- AbandonedError      nobody waits for it any more
    |-- PermanentError          repeating the call changes nothing; a person must act
    |   |-- UsageError          wrong arguments or settings
    |   |-- AccessError         the remote or the disk refuses (permission, read-only)
    |   |-- LoginError          no key or password was accepted
    |   |-- HostKeyError        the host's key is unknown or has changed
    |   |-- ForeignError        a folder that holds something else than what was expected
    |   |-- FormatError         written by a newer version of syncer
    |   |-- BusyError           another process uses it
    |   |-- ExistsError         what was to be created exclusively is there already
    |   |-- MountError          the mount point or FUSE is not usable
    |   `-- DisplacedError      another machine has become the repository's writer
    `-- CorruptError            bytes that do not match their digest or their format

Foreign exceptions (OSError, paramiko's, apsw's) are translated to these where they enter. Each
class carries the exit status of a command that ends with it: see docs/commands.md.
"""

from __future__ import annotations


class SyncerError(Exception):
    """Base of all errors of syncer. The text is one line: what happened, to what, what to do."""

    exit_code = 1


class MissingError(SyncerError):
    exit_code = 3


class TemporaryError(SyncerError):
    exit_code = 4


class OfflineError(TemporaryError):
    exit_code = 4


class RemoteFullError(TemporaryError):
    exit_code = 5


class LocalFullError(TemporaryError):
    exit_code = 6


class AbandonedError(TemporaryError):
    exit_code = 4


class PermanentError(SyncerError):
    exit_code = 1


class UsageError(PermanentError):
    exit_code = 2


class AccessError(PermanentError):
    exit_code = 7


class LoginError(PermanentError):
    exit_code = 8


class HostKeyError(PermanentError):
    exit_code = 9


class ForeignError(PermanentError):
    exit_code = 10


class FormatError(PermanentError):
    exit_code = 11


class BusyError(PermanentError):
    exit_code = 12


class MountError(PermanentError):
    exit_code = 13


class DisplacedError(PermanentError):
    exit_code = 14


class ExistsError(PermanentError):
    exit_code = 16


class CorruptError(SyncerError):
    exit_code = 15
