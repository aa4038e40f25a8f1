"""Each call of a remote, and each kind of error that it may end with.

First what becomes of the errors of a disk and of an SFTP server. Then what pruning and `fsck` make
of a remote that fails at each call in each way; `test_transfer.py`, `test_blocks.py` and
`test_exchange.py` do the same for uploads, fetches, publishing, following and taking over.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncer.errors import (
    AccessError,
    MissingError,
    OfflineError,
    RemoteFullError,
    SyncerError,
    TemporaryError,
)
from syncer.maintain.findings import Report
from syncer.maintain.fsck import Fsck, Options, Parts
from syncer.remote import Location, Remote, State, local, open_remote
from syncer.remote import packets as sftp
from syncer.remote.server import SftpRemote
from tests.block_rig import content
from tests.memory_remote import ERRORS
from tests.odd_sftp import OddServer
from tests.prune_rig import NEWEST, PruneRig
from tests.vfs_rig import fast_folder

KEY = "blocks/ab/abcd"
CALLS: dict[str, Callable[[Remote], object]] = {
    "get": lambda remote: remote.get(KEY),
    "put": lambda remote: remote.put(KEY, b"content"),
    "create": lambda remote: remote.create(KEY, b"content"),
    "delete": lambda remote: remote.delete(KEY),
    "move": lambda remote: remote.move(KEY, "trash/abcd"),
    "list": lambda remote: list(remote.list("blocks/ab")),
    "stat": lambda remote: remote.stat(KEY),
    "make_root": lambda remote: remote.make_root(),
    "make_folders": lambda remote: remote.make_folders(),
    "usage": lambda remote: remote.usage(),
    "check": lambda remote: remote.check(),
    "is_empty": lambda remote: remote.is_empty(),
}
STORING = ("put", "create", "make_root", "make_folders")


def test_the_calls_of_the_contract_are_all_here() -> None:
    assert Remote.__abstractmethods__ - {"name", "durable", "close"} == CALLS.keys()


class BrokenDisk:
    """Every primitive fails as the system says it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fail(*_: object) -> None:
            with local._translated(Path("disk")):
                raise OSError(self._number, os.strerror(self._number))

        return fail


#: What is not there: the folder itself is away, except for those who look whether there is one.
MISSING = {
    "usage": MissingError,
    "make_root": MissingError,
    "make_folders": MissingError,
    "check": None,
    "is_empty": None,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, OfflineError),
        (errno.EACCES, AccessError),
        (errno.EROFS, AccessError),
        (errno.ENOSPC, RemoteFullError),
        (errno.EDQUOT, RemoteFullError),
        (errno.EIO, OfflineError),
        (errno.ESTALE, OfflineError),
        (errno.ETIMEDOUT, OfflineError),
        (errno.E2BIG, TemporaryError),
    ],
)
def test_what_a_disk_says_at_any_call(
    tmp_path: Path, call: str, number: int, kind: type[SyncerError]
) -> None:
    with contextlib.closing(open_remote(str(tmp_path / "repository"))) as remote:
        remote._files = BrokenDisk(number)  # type: ignore[attr-defined]
        expected = MISSING.get(call, kind) if number == errno.ENOENT else kind
        if expected is None:
            CALLS[call](remote)
        else:
            with pytest.raises(expected) as raised:
                CALLS[call](remote)
            assert type(raised.value) is expected
        report = remote.health.report()
        refusals = (AccessError, RemoteFullError) if call in STORING else ()
        if expected is OfflineError:
            assert report.state is State.OFFLINE
        elif expected in refusals:
            assert report.state is State.ERROR
            assert report.is_reached
        else:
            assert report.state is State.ONLINE


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OddServer]:
    server = OddServer(tmp_path)
    yield server
    server.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sftp.PERMISSION_DENIED, AccessError),
        (sftp.FAILURE, TemporaryError),
        (sftp.CONNECTION_LOST, OfflineError),
        (14, RemoteFullError),
    ],
)
def test_what_a_server_says_at_any_call(
    server: OddServer, call: str, code: int, kind: type[SyncerError]
) -> None:
    with contextlib.closing(
        SftpRemote(Location("repository", "odd"), server.connect, 1, 5.0)
    ) as remote:
        remote.make_folders()
        remote.put(KEY, b"before")
        every = (
            sftp.OPEN, sftp.STAT, sftp.OPENDIR, sftp.REMOVE, sftp.MKDIR, sftp.RENAME, sftp.EXTENDED,
        )  # fmt: skip
        server.statuses = {request: [code] * 600 for request in every}
        if call == "usage" or call.startswith("make_"):
            # Without statvfs nobody knows; and the folders are there.
            with contextlib.suppress(kind):
                CALLS[call](remote)
        else:
            with pytest.raises(kind):
                CALLS[call](remote)
        server.statuses = {}
        remote.check()
        assert remote.get(KEY) == b"before"


#: All of them, of which one is enough for a quick look.
errors = pytest.mark.parametrize(
    "error",
    [
        pytest.param(
            error,
            id=type(error).__name__,
            marks=() if type(error) is TemporaryError else pytest.mark.torture,
        )
        for error in ERRORS
    ],
)


def garbage(rig: PruneRig) -> None:
    """Something that stays, something that goes and something that went into the trash."""
    rig.make(b"/stays", content(1))
    rig.make(b"/trashed", content(2))
    rig.advance()
    rig.vfs.unlink(b"/trashed")
    rig.grace_seconds = 100
    rig.prune()
    rig.make(b"/goes", content(3))
    rig.advance()
    rig.vfs.unlink(b"/goes")
    rig.publish()
    rig.now_ns += 200 * 10**9


@errors
@pytest.mark.parametrize("method", ["list", "move", "delete", "put", "get"])
def test_a_prune_whose_remote_fails_goes_on_with_the_next(method: str, error: SyncerError) -> None:
    with fast_folder() as folder, contextlib.closing(PruneRig(folder)) as rig:
        garbage(rig)
        rig.pruner._decide(NEWEST)
        for after in (0, 1):
            rig.remote.fail(method, error, after=after)
            with contextlib.suppress(SyncerError):
                rig.publish()
            with contextlib.suppress(SyncerError):
                rig.pruner._work()
            rig.remote.work_again()
            rig.check_kept()
        rig.settle()
        # What was told to be missing, and was not, the next sweep finds.
        rig.sweep()
        rig.now_ns += 200 * 10**9
        rig.settle()
        rig.check_kept()
        assert rig.stored() == rig.named()
        assert rig.stored("trash") == set()
        assert rig.read(b"/stays") == content(1)


@errors
@pytest.mark.parametrize("method", ["list", "get", "stat", "put"])
def test_an_fsck_whose_remote_fails_harms_nothing(method: str, error: SyncerError) -> None:
    with fast_folder() as folder, contextlib.closing(PruneRig(folder)) as rig:
        for number in range(3):
            rig.make(b"/%d" % number, content(number))
        rig.publish()
        for after in (0, 2, 5):
            rig.remote.fail(method, error, after=after)
            with contextlib.suppress(SyncerError):
                fsck(rig)
            rig.remote.work_again()
        rig.publish()
        fsck(rig)
        assert fsck(rig)["state"] == "clean"
        rig.forget_locally()
        assert [rig.read(b"/%d" % number) for number in range(3)] == [content(n) for n in range(3)]


def fsck(rig: PruneRig) -> dict[str, Any]:
    report = Report()
    parts = Parts(
        rig.db, rig.epochs, rig.contents, rig.tree, rig.blocks, rig.remote, rig.exchange,
        close_epoch=lambda: rig.round(seal=True), is_mounted=False,
    )  # fmt: skip
    options = Options(repair=True, remote=True, read_data=True)
    Fsck(parts, options, report, lambda *told: None).check()
    return report.result()
