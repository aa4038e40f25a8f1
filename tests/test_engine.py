"""The end of a data directory's parts, when some of it fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from syncer.config import Config
from syncer.errors import CorruptError, LocalFullError
from syncer.metadata.db import Database
from syncer.process.engine import Engine
from tests.damage import Place, noise


def last_boot(place: Place) -> str:
    """ "" if the last process ended in order."""
    db = Database(place.folder.database)
    try:
        return str(db.get_meta("boot"))
    finally:
        db.close()


def break_off(*words: object) -> None:
    raise LocalFullError("the disk is full")


@pytest.mark.expects_warnings
@pytest.mark.parametrize("part", ["vfs.hidden.stop", "_committer._finish", "_keeper.stop"])
def test_an_end_of_which_a_step_fails_goes_on_and_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    place = Place.made_in(tmp_path)
    engine = Engine(place.data, Config.load(place.folder.config))
    engine.start()
    place.write(engine, b"/late", noise(7, 100_000))
    *names, name = part.split(".")
    owner: object = engine
    for step in names:
        owner = getattr(owner, step)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, break_off)
        with pytest.raises(LocalFullError, match="the disk is full"):
            engine.stop()
    # The threads are gone, and another one may begin.
    engine._keeper.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "syncer-publisher"]
    assert last_boot(place)
    with place.engine() as engine:
        assert engine.vfs.getattr(b"/late").size == 100_000
        engine._sweeper.join()
    assert not last_boot(place)


@pytest.mark.expects_warnings
def test_the_end_of_what_is_damaged_says_what_to_do(tmp_path: Path) -> None:
    place = Place.made_in(tmp_path)
    engine = Engine(place.data, Config.load(place.folder.config))
    engine.start()
    engine._db.standstill.begin(CorruptError("the database is damaged"))
    with pytest.raises(CorruptError, match=r"the database is damaged; .*fsck"):
        engine.stop()
