"""Another repository comes to be where the repository was: nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncer.commands.report import status_lines
from syncer.config import Config
from syncer.errors import ForeignError
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


def test_a_repository_without_a_readable_description_is_only_read(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with place.engine() as engine:
        (place.remote / "syncer.json").write_bytes(b"{")
        place.write(engine, b"/two", noise(9, 100_000))
        eventually(lambda: "whose repository" in engine.status()["remote"]["error"])
        engine._blocks.evict(10**9)
        assert engine.status()["dirty_blocks"] == 1
        assert read(engine, b"/album/photo") == place.files[b"/album/photo"]
    caplog.clear()
