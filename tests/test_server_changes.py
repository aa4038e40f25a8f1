"""Another repository, or an older state of it, comes to be where the repository was.

Nothing is lost, and nobody is told that all is safe.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from syncer.commands.report import status_lines
from syncer.config import Config
from syncer.errors import CorruptError, ForeignError
from syncer.process.engine import Engine
from syncer.process.repository import create_repository
from tests.damage import Place, noise, read
from tests.remote_contract import eventually


def swap(one: Path, other: Path) -> None:
    """As two disks with one mount point."""
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place.made_in(tmp_path)
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
    return place


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another repository."""
    other = tmp_path / "other"
    create_repository(
        tmp_path / "other data", Config(remote=str(other), limit_bytes=10**8), "other"
    )
    return other


@pytest.mark.parametrize("is_seen_from_the_start", [True, False])
def test_nothing_is_uploaded_into_another_repository(
    place: Place, other: Path, is_seen_from_the_start: bool
) -> None:
    before = names(other)
    if is_seen_from_the_start:
        swap(place.remote, other)
    with place.engine() as engine:
        if not is_seen_from_the_start:
            engine.flush(60, lambda state: None)
            swap(place.remote, other)
        place.write(engine, b"/two", noise(9, 1_300_000))
        eventually(lambda: engine.status()["remote"]["state"] == "foreign")
        with pytest.raises(ForeignError, match="another repository"):
            engine.flush(0, lambda state: None)
        assert not engine.status()["safe"]
        assert engine.status()["dirty_blocks"]
        engine._blocks.evict(10**9)
        assert names(place.remote) == before
        swap(place.remote, other)
        engine.flush(60, lambda state: None)
        assert engine.status()["remote"]["state"] == "online"
        engine._blocks.evict(10**9)
        assert read(engine, b"/two") == noise(9, 1_300_000)
    assert names(other) == before
    assert b"two" in place.cloned_names()


def test_with_another_repository_in_its_place_nobody_says_that_all_is_safe(
    place: Place, other: Path
) -> None:
    with place.engine() as engine:
        eventually(lambda: engine.status()["safe"])
        swap(place.remote, other)
        eventually(lambda: not engine.status()["safe"])
        assert status_lines(engine.status())[0].startswith("NOT known whether")


def test_what_is_missing_in_another_repository_is_not_lost(place: Place, other: Path) -> None:
    with place.engine() as engine:
        engine._blocks.evict(10**9)
        swap(place.remote, other)
        with pytest.raises(ForeignError):
            read(engine, b"/album/photo")
        assert not engine.status()["unreadable_files"]


def test_a_repository_without_a_readable_description_is_only_read(place: Place) -> None:
    with place.engine() as engine:
        (place.remote / "syncer.json").write_bytes(b"{")
        place.write(engine, b"/two", noise(9, 100_000))
        eventually(lambda: "whose repository" in engine.status()["remote"]["error"])
        engine._blocks.evict(10**9)
        assert engine.status()["dirty_blocks"] == 1
        assert read(engine, b"/album/photo") == place.files[b"/album/photo"]


# An older state


LARGE = noise(9, 2_300_000)
LATER = noise(10, 1_300_000)


def go_back(place: Place, backup: Path) -> None:
    """The server's disk is restored from a backup."""
    shutil.rmtree(place.remote)
    backup.rename(place.remote)


def assert_all_is_there(place: Place, engine: Engine) -> None:
    """In the end the server has all that it had before, and what came after."""
    engine.flush(60, lambda state: None)
    assert engine.status()["safe"]
    assert {b"two", b"three"} <= place.cloned_names()
    engine._blocks.evict(10**9)
    assert not place.blocks()
    for path, content in place.files.items():
        assert read(engine, path) == content


def back_up(place: Place, engine: Engine, backup: Path) -> None:
    """A copy of the remote, with all that is written by now."""
    engine.flush(60, lambda state: None)
    shutil.copytree(place.remote, backup)


def test_what_a_server_loses_that_goes_back_is_uploaded_again(place: Place, tmp_path: Path) -> None:
    with place.engine() as engine:
        back_up(place, engine, tmp_path / "backup")
        place.write(engine, b"/two", LARGE)
        engine.flush(60, lambda state: None)
        go_back(place, tmp_path / "backup")
        place.write(engine, b"/three", LATER)
        assert_all_is_there(place, engine)
    assert place.fsck(remote=True).state == "clean"


def test_so_it_is_if_it_goes_back_while_nobody_looks(place: Place, tmp_path: Path) -> None:
    with place.engine() as engine:
        back_up(place, engine, tmp_path / "backup")
        place.write(engine, b"/two", LARGE)
        engine.flush(60, lambda state: None)
    go_back(place, tmp_path / "backup")
    with place.engine() as engine:
        place.write(engine, b"/three", LATER)
        assert_all_is_there(place, engine)


def test_a_mount_that_is_idle_notices_it_too(place: Place, tmp_path: Path) -> None:
    with place.engine() as engine:
        back_up(place, engine, tmp_path / "backup")
        place.write(engine, b"/two", LARGE)
        place.write(engine, b"/three", LATER)
        engine.flush(60, lambda state: None)
        had = {path.name for path in place.objects()}
        go_back(place, tmp_path / "backup")
        eventually(lambda: {path.name for path in place.objects()} == had, 30)
        assert_all_is_there(place, engine)


def test_before_the_server_was_looked_at_nothing_is_evicted(place: Place, tmp_path: Path) -> None:
    with place.engine() as engine:
        back_up(place, engine, tmp_path / "backup")
        place.write(engine, b"/two", LARGE)
        engine.flush(60, lambda state: None)
    # The process ends between the note and the look.
    with place.sql() as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES('doubtful', 1)")
    place.remote_away()
    with place.engine() as engine:
        assert not engine.status()["safe"]
        there = place.blocks()
        assert engine._blocks.evict(10**9) == 0
        assert engine._blocks.evict_these([bytes.fromhex(path.name) for path in there]) == (0, 0)
        assert place.blocks() == there
        # In place of what is away, its older state comes.
        (tmp_path / "backup").rename(place.remote)
        place.write(engine, b"/three", LATER)
        assert_all_is_there(place, engine)


@pytest.mark.expects_warnings
def test_of_two_writers_the_one_whose_take_over_is_undone_keeps_and_exports_what_it_has(
    place: Place, tmp_path: Path
) -> None:
    shutil.copytree(place.remote, tmp_path / "backup")
    with place.taken_over() as second:
        place.write(second, b"/published", LARGE)
        second.flush(60, lambda state: None)
        shutil.copytree(place.remote, tmp_path / "newer")
        go_back(place, tmp_path / "backup")
        place.write(second, b"/waiting", LATER)
        with pytest.raises(CorruptError, match=r"lost who the repository's writer is.*export"):
            second.flush(60, lambda state: None)
        assert not second.status()["safe"]
        assert second._blocks.evict(10**9) == 0
        with place.engine() as first:
            place.write(first, b"/first", noise(11, 100_000))
            first.flush(60, lambda state: None)
            assert first.is_writer
        done = second.stranded.export(tmp_path / "rescued", lambda state: None)
        assert (done["files"], done["failed"]) == (2, [])
        assert (tmp_path / "rescued/published").read_bytes() == LARGE
        assert (tmp_path / "rescued/waiting").read_bytes() == LATER
        # Should it have been a wrong disk for a while, it goes on as if nothing had been.
        go_back(place, tmp_path / "newer")
        second._loop.begin_step()
        second.flush(60, lambda state: None)
        assert second.status()["safe"]
    assert {b"published", b"waiting"} <= place.cloned_names()
