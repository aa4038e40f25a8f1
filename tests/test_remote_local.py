from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncer.errors import (
    AccessError,
    ExistsError,
    ForeignError,
    MissingError,
    OfflineError,
    RemoteFullError,
    TemporaryError,
)
from syncer.remote import Health, State, local, open_remote
from syncer.remote.base import FOLDERS, Remote
from tests.remote_contract import RemoteContract


class TestLocalRemote(RemoteContract):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Iterator[Remote]:
        remote = open_remote(str(tmp_path / "some" / "repository"))
        yield remote
        remote.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def remote(folder: Path) -> Remote:
    remote = open_remote(folder.as_uri())
    remote.make_folders()
    return remote


def test_the_folder_that_it_makes_is_for_its_owner_only(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        open_remote(str(folder)).make_folders()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_object_is_a_plain_file_of_its_key(remote: Remote, folder: Path) -> None:
    remote.put("blocks/ab/abcd", b"content")
    assert (folder / "blocks/ab/abcd").read_bytes() == b"content"
    assert all((folder / name).is_dir() for name in FOLDERS)


def test_it_syncs_and_knows_its_room(remote: Remote, folder: Path) -> None:
    assert remote.put("syncer.json", b"{}")
    room = remote.usage()
    assert room is not None
    assert 0 < room.free_bytes <= room.capacity_bytes


@pytest.fixture
def steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The syncs, each with what was synced, and renames to come."""
    noted: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), folder)
        noted.append("sync tmp/*" if path.startswith("tmp/") else f"sync {path}")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        noted.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return noted


def test_everything_is_synced_before_put_returns(remote: Remote, steps: list[str]) -> None:
    assert remote.put("blocks/ab/abcd", b"content")
    # Whoever made the folders may have died before their names were safe.
    assert steps == ["sync tmp/*", "rename", "sync .", "sync blocks", "sync blocks/ab"]
    steps.clear()
    assert remote.put("blocks/ab/abce", b"content")
    assert steps == ["sync tmp/*", "rename", "sync blocks/ab"]


def test_new_folders_are_synced_with_those_that_hold_them(folder: Path, steps: list[str]) -> None:
    remote = open_remote(str(folder))
    remote.make_folders()
    assert steps[0] == "sync .." and set(steps[1:]) == {"sync .", "sync blocks"}
    remote.put("log/a/1", b"")
    (folder / "log/a/1").unlink()
    (folder / "log/a").rmdir()
    steps.clear()
    # It is known to be safe, and not there any more.
    assert remote.put("log/a/2", b"")
    assert steps.index("sync log") < steps.index("sync log/a")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_without_a_sync_of_folders_nothing_counts_as_safe(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    name = "fsync" if number == errno.EINVAL else "open"
    whole = getattr(os, name)

    def fail_for_folders(what: int | Path, *more: int) -> object:
        if os.path.isdir(f"/proc/self/fd/{what}" if isinstance(what, int) else what):
            raise OSError(number, os.strerror(number))
        return whole(what, *more)

    monkeypatch.setattr(os, name, fail_for_folders)
    assert not remote.put("blocks/ab/abcd", b"content")
    assert remote.get("blocks/ab/abcd") == b"content"


def test_a_disk_that_is_not_mounted_is_offline_and_not_empty(remote: Remote, folder: Path) -> None:
    remote.put("blocks/ab/abcd", b"content")
    remote.delete("blocks/ab/none")
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    calls: list[Callable[[], object]] = [
        lambda: remote.get("blocks/ab/abcd"),
        lambda: remote.put("blocks/ab/abcd", b"content"),
        lambda: list(remote.list("blocks/ab")),
        lambda: remote.delete("blocks/ab/abcd"),
    ]
    for call in calls:
        with pytest.raises(OfflineError):
            call()
    assert remote.health.report().state is State.OFFLINE
    assert list(folder.iterdir()) == []

    folder.rmdir()
    folder.with_name("elsewhere").rename(folder)
    remote.check()
    assert remote.get("blocks/ab/abcd") == b"content"


@pytest.mark.parametrize("step", ["write", "place", "sync"])
def test_a_disk_that_goes_away_while_it_is_written_to_is_offline(
    remote: Remote, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    remote.put("blocks/ab/first", b"content")
    name = "replace" if step == "place" else "open"
    act = getattr(os, name)

    def go_away(path: Path, *others: object) -> object:
        if folder.exists() and (step == "sync") == path.is_dir():
            folder.rename(folder.with_name("elsewhere"))
        return act(path, *others)

    monkeypatch.setattr(os, name, go_away)
    with pytest.raises(OfflineError, match="is its disk mounted"):
        remote.put("blocks/ab/abcd", b"content")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, RemoteFullError),
        (errno.EDQUOT, RemoteFullError),
        (errno.EROFS, AccessError),
        (errno.EIO, OfflineError),
        (errno.E2BIG, TemporaryError),
    ],
)
def test_what_the_disk_says_becomes_our_error_and_nothing_is_stored(
    remote: Remote,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(kind, match=r"tmp/"):
            remote.put("blocks/ab/abcd", b"content")
    remote.check()
    assert list(remote.list("tmp")) == []
    with pytest.raises(MissingError):
        remote.get("blocks/ab/abcd")


def test_a_look_for_others_that_fails_is_our_error_too(remote: Remote) -> None:
    with pytest.raises(TemporaryError, match="too long"):
        remote.place("log/machine/1", b"content", lambda: True, ["writers/" + 300 * "x"])


def test_a_full_disk_shows_in_the_state_until_something_was_stored(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RemoteFullError):
            remote.put("syncer.json", b"{}")
    list(remote.list("machines"))
    assert remote.health.report().state is State.ERROR
    assert "no space" in remote.health.report().error
    remote.put("syncer.json", b"{}")
    assert remote.health.report().state is State.ONLINE


class Killed(BaseException):
    """The process dies here."""


def _refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "not on this disk")


@pytest.mark.parametrize("renames_exclusively", [True, False])
def test_creation_is_exclusive_without_hard_links_too(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, renames_exclusively: bool
) -> None:
    monkeypatch.setattr(os, "link", _refuse)
    if not renames_exclusively:
        monkeypatch.setattr(local, "_rename_to_free_name", lambda *_: False)
    remote.create("writers/000001", b"first")
    with pytest.raises(ExistsError):
        remote.create("writers/000001", b"second")
    assert remote.get("writers/000001") == b"first"
    assert list(remote.list("tmp")) == []


def test_who_dies_in_a_creation_without_hard_links_leaves_it_whole_or_not_at_all(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "link", _refuse)
    with monkeypatch.context() as patch:
        patch.setattr(local, "_rename_to_free_name", die)
        with pytest.raises(Killed):
            remote.create("writers/000001", b"first")
    assert list(remote.list("writers")) == []
    # And with the second best, there is no step between none and all of it.
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        remote.create("writers/000001", b"second")
    assert remote.get("writers/000001") == b"second"


def test_it_is_asked_whether_it_is_the_right_one_before_it_is_used(
    remote: Remote, folder: Path
) -> None:
    asked: list[bytes] = []

    def is_expected(data: bytes) -> bool:
        asked.append(data)
        return data == b"ours"

    remote.put("syncer.json", b"ours")
    remote.put("blocks/ab/abcd", b"content")
    remote.expect(is_expected)
    for _ in range(3):
        remote.put("blocks/ab/abcd", b"content")
        assert remote.get("blocks/ab/abcd") == b"content"
    assert asked == [b"ours"]

    # Of another disk, all that `stat` tells of its folder may be the same.
    (folder / "syncer.json").write_bytes(b"other")
    calls: list[Callable[[], object]] = [
        lambda: remote.put("blocks/ab/other", b"content"),
        lambda: remote.create("blocks/ab/other", b"content"),
        lambda: remote.place("blocks/ab/other", b"content", lambda: True),
        lambda: remote.move("blocks/ab/abcd", "trash/abcd"),
        lambda: remote.delete("blocks/ab/abcd"),
        lambda: list(remote.list("blocks/ab")),
        lambda: remote.get("blocks/ab/other"),
        lambda: remote.stat("blocks/ab/other"),
        lambda: remote.check(),
    ]
    for call in calls:
        with pytest.raises(ForeignError):
            call()
        # Each looks by itself, and not only the first.
        remote.health = Health()
        assert [path.name for path in (folder / "blocks" / "ab").iterdir()] == ["abcd"]

    assert remote.arrivals == 1
    (folder / "syncer.json").write_bytes(b"ours")
    remote.put("blocks/ab/other", b"content")
    assert remote.arrivals == 2
