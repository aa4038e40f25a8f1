"""Syncs on a server: of the object, then of its folder, and without a round trip more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.errors import TemporaryError
from syncer.remote import Location
from syncer.remote import packets as sftp
from syncer.remote.server import SftpRemote
from tests.odd_sftp import OddServer
from tests.remote_contract import eventually
from tests.sftp_program import SftpProgram


@pytest.fixture
def program() -> Iterator[SftpProgram]:
    with SftpProgram() as program:
        yield program


@pytest.fixture
def remote(program: SftpProgram, tmp_path: Path) -> Iterator[SftpRemote]:
    """On OpenSSH's server."""
    remote = SftpRemote(Location(str(tmp_path / "repository"), "program"), program.connect, 1, 30.0)
    remote.make_folders()
    yield remote
    remote.close()


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[OddServer]:
    server = OddServer(tmp_path, extensions=[b"fsync@openssh.com"])
    yield server
    server.close()


@pytest.fixture
def odd_remote(odd: OddServer) -> Iterator[SftpRemote]:
    remote = SftpRemote(Location("repository", "odd"), odd.connect, 1, 30.0)
    remote.make_folders()
    odd.steps.clear()
    yield remote
    remote.close()


def test_the_syncs_of_folders_cost_no_round_trip(program: SftpProgram, remote: SftpRemote) -> None:
    # Without content: how much of it goes out at once depends on how fast the link was.
    for key in ("blocks/ab/1", "blocks/ab/2", "blocks/ac/3", "trash/4"):
        before = program.sends
        assert remote.put(key, b"")
        # Three that are waited for, and then the files are closed.
        assert program.sends - before == 4


def test_a_look_for_others_costs_no_round_trip(program: SftpProgram, remote: SftpRemote) -> None:
    assert remote.put("writers/1", b"")
    before = program.sends
    placed = remote.place("blocks/ab/1", b"", lambda: True, ["writers/1", "writers/2"])
    assert placed is not None and placed.is_safe and placed.there == {"writers/1"}
    assert program.sends - before == 4


def test_others_are_looked_for_with_the_name_given(odd: OddServer, odd_remote: SftpRemote) -> None:
    """On a server that need not do things in their order."""
    odd_remote.put("writers/1", b"")
    odd.steps.clear()
    placed = odd_remote.place("blocks/ab/1", b"", lambda: True, ["writers/1", "writers/2"])
    assert placed is not None and placed.there == {"writers/1"}
    kinds = [kind for kind, _about in odd.steps]
    assert kinds.index(sftp.STAT) > kinds.index(sftp.RENAME)


def test_what_a_server_like_openssh_stores_is_safe(remote: SftpRemote) -> None:
    assert remote.put("blocks/ab/abcd", b"content")
    assert remote.put("blocks/ab/abcd", b"replaced")
    assert remote.put("checkpoint/a new machine/chunks/7", b"rows")
    remote.create("writers/00000001", b"claim")
    assert remote.get("writers/00000001") == b"claim"


def test_the_object_is_synced_before_the_rename_and_its_folders_after_it(
    odd: OddServer, odd_remote: SftpRemote
) -> None:
    assert odd_remote.put("blocks/ab/abcd", b"content")
    before, after = _syncs_around_the_rename(odd)
    assert before == {"repository/tmp/*"}
    # Whoever made the folders may have died before their names were safe.
    assert after == {"repository", "repository/blocks", "repository/blocks/ab"}
    odd.steps.clear()
    assert odd_remote.put("blocks/ab/abce", b"content")
    assert _syncs_around_the_rename(odd) == ({"repository/tmp/*"}, {"repository/blocks/ab"})


def test_new_folders_are_synced_with_those_that_hold_them(
    odd: OddServer, odd_remote: SftpRemote
) -> None:
    odd_remote.put("log/a/1", b"")
    odd_remote.delete("log/a/1")
    (odd.root / "repository/log/a").rmdir()
    odd.steps.clear()
    # It is known to be safe, and not there any more.
    assert odd_remote.put("log/a/2", b"")
    before, after = _syncs_around_the_rename(odd)
    assert "repository/log" in before and "repository/log/a" in after


def test_where_folders_can_not_be_opened_nothing_counts_as_safe(
    odd: OddServer, odd_remote: SftpRemote
) -> None:
    odd.opens_folders = False
    assert not odd_remote.put("blocks/ab/abcd", b"content")
    assert not odd_remote.put("log/machine/1-2", b"content")
    assert odd_remote.get("log/machine/1-2") == b"content"
    # The next best is done all the same.
    assert _syncs_around_the_rename(odd)[1] == {"repository/tmp/*"}


def test_where_only_files_can_be_synced_nothing_counts_as_safe(
    odd: OddServer, odd_remote: SftpRemote
) -> None:
    odd.statuses[sftp.EXTENDED] = [sftp.OK, sftp.BAD_MESSAGE]
    assert not odd_remote.put("blocks/ab/abcd", b"content")
    assert odd_remote.put("blocks/ab/abcd", b"content")


def test_what_failed_half_way_leaves_nothing_open(odd: OddServer, odd_remote: SftpRemote) -> None:
    odd.statuses[sftp.WRITE] = [sftp.FAILURE]
    with pytest.raises(TemporaryError):
        odd_remote.put("blocks/ab/abcd", b"content")
    odd_remote.put("blocks/ab/abcd", b"content")
    eventually(lambda: not odd.open_handles)


def _syncs_around_the_rename(server: OddServer) -> tuple[set[str], set[str]]:
    """What was synced before the last rename, and after it."""
    before: set[str] = set()
    after: set[str] = set()
    for kind, about in server.steps:
        if kind == sftp.EXTENDED:
            after.add("repository/tmp/*" if "/tmp/" in about else about)
        elif kind == sftp.RENAME:
            before, after = before | after, set()
    return before, after
