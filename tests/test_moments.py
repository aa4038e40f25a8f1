"""What moments are called: snapshots, times and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.errors import CorruptError, ExistsError, MissingError, UsageError
from syncer.metadata.moments import Moments
from syncer.metadata.node import ROOT
from syncer.metadata.tree import OWN_XATTRS
from tests.test_history import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "meta.db")
    rig.close_epoch()
    yield rig
    rig.db.close()


@pytest.fixture
def moments(rig: Rig) -> Moments:
    return Moments(rig.db, rig.epochs, rig.tree, rig.history, lambda: rig.now_ns)


def test_a_snapshot_names_the_newest_closed_epoch(rig: Rig, moments: Moments) -> None:
    rig.make(b"closed")
    epoch = rig.close_epoch()
    rig.make(b"open")
    assert moments.take("mine").epoch == epoch
    rig.close_epoch()
    assert moments.find("mine") == epoch
    assert rig.history.find(b"/open", epoch) is None
    assert [found.name for found in moments.named()] == ["mine"]


def test_a_snapshot_is_no_attribute_of_the_file_system(rig: Rig, moments: Moments) -> None:
    moments.take("mine")
    epoch = rig.close_epoch()
    assert rig.tree.xattrs(ROOT) == []
    assert rig.history.xattrs(ROOT, epoch) == {}


def test_names_are_taken_once_and_sorted_by_age(rig: Rig, moments: Moments) -> None:
    for name in ("b", "a", "ümläut ok"):
        moments.take(name)
        rig.make(name.encode())
        rig.close_epoch()
    assert [found.name for found in moments.named()] == ["b", "a", "ümläut ok"]
    with pytest.raises(ExistsError):
        moments.take("a")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".x",
        "a/b",
        " a",
        "a ",
        "a\n",
        "\0",
        "x" * 201,
        "latest",
        "18:00",
        "an hour ago",
    ],
)
def test_what_can_be_no_folder_or_is_a_moment_is_no_name(moments: Moments, name: str) -> None:
    with pytest.raises(UsageError):
        moments.take(name)


def test_a_damaged_snapshot_is_told(rig: Rig, moments: Moments) -> None:
    rig.tree.set_xattr(ROOT, OWN_XATTRS + b"snapshot.bad", b"short")
    with pytest.raises(CorruptError):
        moments.named()


def test_a_written_moment_is_found_again_also_later(rig: Rig, moments: Moments) -> None:
    names = {}
    for number in range(5):
        rig.make(b"%d" % number)
        # Within one second.
        rig.now_ns -= 999_000_000
        epoch = rig.close_epoch()
        names[epoch] = moments.written(epoch)
    rig.now_ns += 10**12
    for epoch, name in names.items():
        assert moments.find(name) == epoch
        assert moments.is_fixed(name)


def test_what_may_still_change_is_not_fixed(rig: Rig, moments: Moments) -> None:
    epoch = moments.latest()
    assert moments.is_fixed(moments.written(epoch))
    rig.now_ns += 10**9
    rig.make(b"open")
    rig.now_ns += 10**9
    assert not moments.is_fixed("1970-01-01T00-00-03+0000")
    assert moments.find("1970-01-01T00-00-03+0000") == epoch
    assert not moments.is_fixed("2999-01-01T00-00-00+0000")
    for text in ("latest", str(epoch), "a second ago"):
        assert moments.find(text) == epoch
        assert not moments.is_fixed(text)


def test_there_is_no_history_before_the_first_epoch_and_none_yet_to_come(moments: Moments) -> None:
    for text in ("0", "2", "an hour ago"):
        with pytest.raises(MissingError):
            moments.find(text)
