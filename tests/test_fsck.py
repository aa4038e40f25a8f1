"""`syncer fsck`: each kind of damage is found, repaired, and not found a second time."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from syncer.codec import BLOCK_BYTES
from syncer.config import Config
from syncer.errors import SyncerError
from syncer.maintain.findings import Report
from syncer.maintain.fsck import REBUILT_KINDS, Options
from syncer.maintain.invariants import HISTORY, LEFTOVERS
from syncer.maintain.localfiles import LocalFiles, Outcome
from syncer.metadata.node import ROOT
from syncer.process.engine import Engine
from syncer.process.repository import clone_repository
from tests.damage import HARM, Place, flip, halve, noise, read
from tests.mounted import BINDINGS, CommandError, mounted
from tests.mounted import ROOT as SOURCES
from tests.prune_rig import NEWEST

_NODE = "(SELECT node FROM name WHERE name = CAST('{}' AS BLOB) LIMIT 1)"
_PHOTO, _ISLAND, _SMALL = (_NODE.format(name) for name in ("photo", "island", "small"))
_ALBUM, _YEAR, _NEW, _LARGE = (_NODE.format(name) for name in ("album", "2024", "new", "large"))

#: What breaks each invariant of the rows that clones have as well.
HISTORY_DAMAGE = {
    "no root": [f"UPDATE node SET mode = 33188 WHERE id = {ROOT}"],
    "name of nothing": [f"DELETE FROM node WHERE id = {_SMALL}"],
    "name in nothing": [f"DELETE FROM node WHERE id = {_YEAR}"],
    "node without a name": ["DELETE FROM name WHERE name = CAST('album' AS BLOB)"],
    "directory with names": [f"INSERT INTO name VALUES({ROOT}, x'74776963', {_YEAR}, 1)"],
    "cycle": [f"UPDATE name SET parent = {_YEAR} WHERE name = CAST('album' AS BLOB)"],
    "content of nothing": [f"INSERT INTO content VALUES({_ALBUM}, 0, 1, randomblob(16))"],
    "attribute of nothing": ["INSERT INTO xattr VALUES(77, x'75', 1, x'00')"],
    "impossible node": [f"UPDATE node SET mode = 5, size = -1 WHERE id = {_ISLAND}"],
    "impossible name": ["UPDATE name SET name = x'612f62' WHERE name = CAST('photo' AS BLOB)"],
    "impossible content": [
        f"UPDATE content SET data = substr(data, 1, 25) WHERE node = {_ISLAND} AND run = 0"
    ],
    "content beyond the end": [f"UPDATE node SET size = 5000 WHERE id = {_ISLAND}"],
    "tiny file of another size": [f"UPDATE node SET size = 6 WHERE id = {_SMALL}"],
    "wrong link count": [
        f"UPDATE node SET nlink = 7 WHERE id = {_PHOTO}",
        f"UPDATE node SET nlink = 9 WHERE id = {_ALBUM}",
    ],
    "impossible past": [
        "UPDATE node_past SET born = died + 5 WHERE id = 1",
        "UPDATE name_past SET died = 900",
        "UPDATE epoch SET time_ns = 1 WHERE seq > 1",
    ],
}
LOCAL_DAMAGE = {
    "wrong total": ["UPDATE usage SET nodes = 1, local_bytes = 5, dirty_blocks = 77"],
    "wrong orphan": [f"INSERT INTO orphan(node) VALUES({_PHOTO})"],
    "name to put back of nothing": ["INSERT INTO provisional VALUES(1, x'61', 77)"],
    "patch of nothing": ["INSERT INTO patch VALUES(77, 1, 0, x'00', 1, 1)"],
    "leftover of an undone change": ["INSERT INTO undo_file VALUES(77, 1, 0, 0)"],
    "wrong count of blocks": [f"UPDATE node SET blocks = 7 WHERE id = {_ISLAND}"],
    "wrong count of past blocks": ["UPDATE node_past SET blocks = 7"],
    "named garbage": ["INSERT INTO garbage SELECT id, 1 FROM block WHERE dirty IS NULL LIMIT 1"],
    "pin of nothing": ["INSERT INTO pin(node) VALUES(77)"],
    "published change in the outbox": ["INSERT INTO outbox VALUES(1, 1, x'')"],
    "damaged note of a checkpoint": ["INSERT INTO chunk VALUES(5, x'0102')"],
    "change outside the outbox": [f"DELETE FROM outbox WHERE node = {_SMALL}"],
    "node number twice": ["UPDATE meta SET value = 5 WHERE key = 'next_node'"],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.made_in(tmp_path_factory.mktemp("original"))


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    return original.copied_to(tmp_path)


def _harm(place: Place, statements: list[str]) -> None:
    with place.sql() as connection:
        for statement in statements:
            connection.execute(statement)
        assert connection.total_changes >= len(statements), "the test does no harm"


def _fsck(engine: Engine, *, repair: bool = True, remote: bool = False) -> dict[str, Any]:
    """A check, or a repair, within a process that goes on."""
    report = Report()
    engine.fsck(Options(repair=repair, remote=remote, read_data=True), report, lambda state: None)
    return report.result()


def test_a_sound_collection_has_no_damage(place: Place) -> None:
    found = place.fsck(remote=True, read_data=True)
    assert found.state == "clean", found
    assert place.fsck(repair=True, remote=True, read_data=True).state == "clean"
    assert place.read_all() == place.files


def test_there_is_a_test_of_each_kind_of_damage_of_the_metadata() -> None:
    assert {check.kind for check in HISTORY} == HISTORY_DAMAGE.keys()
    assert {leftover.kind for leftover in LEFTOVERS} <= LOCAL_DAMAGE.keys()


@pytest.mark.parametrize("kind", HISTORY_DAMAGE)
def test_damaged_rows_are_those_of_the_history_again(place: Place, kind: str) -> None:
    _harm(place, HISTORY_DAMAGE[kind])
    assert kind in place.fsck().kinds
    assert place.fsck().state == "damaged", "looking repairs nothing"
    found = place.fsck(repair=True)
    assert found.state == "repaired", found
    assert any("built anew" in note for note in found.notes) == (kind in REBUILT_KINDS)
    assert place.fsck(remote=True, read_data=True).state == "clean"
    assert place.read_all() == place.files


@pytest.mark.parametrize("kind", HISTORY_DAMAGE)
def test_what_the_history_has_wrong_is_mended_in_it(place: Place, kind: str) -> None:
    # Without local segment files nothing proves that a new database would be this machine's.
    shutil.rmtree(place.folder.segments)
    _harm(place, HISTORY_DAMAGE[kind])
    found = place.fsck(repair=True)
    assert found.state == "repaired", found
    again = place.fsck()
    assert again.state == "clean", again
    _check_nothing_is_lost(place, kind)


def _check_nothing_is_lost(place: Place, kind: str) -> None:
    """Each content is there, under whatever name, but for what was destroyed."""
    destroyed = {
        # The file's size went with its row.
        "name of nothing": {b"/new/small"},
        "impossible content": {b"/album/2024/island"},
        "impossible node": {b"/album/2024/island"},
        "content beyond the end": {b"/album/2024/island"},
    }.get(kind, set())
    found: list[bytes] = []
    with place.engine() as engine:
        for number, mode in engine._db.query("SELECT id, mode FROM node"):
            if mode & 0o170000 == 0o100000:
                handle = engine.vfs.files.open(engine._tree.node(number))
                buffer = bytearray(engine._tree.node(number).size)
                try:
                    engine.vfs.files.read_into(handle, memoryview(buffer), 0)
                    found.append(bytes(buffer))
                except SyncerError:
                    assert kind == "impossible content"
                finally:
                    engine.vfs.files.release(handle)
    for path, content in place.files.items():
        if path not in destroyed:
            assert content in found, path
        elif kind != "impossible content":
            assert any(one.rstrip(b"\0")[: len(content)] == content for one in found), path


@pytest.mark.parametrize("kind", LOCAL_DAMAGE)
def test_wrong_counts_and_notes_are_set_right(place: Place, kind: str) -> None:
    _harm(place, LOCAL_DAMAGE[kind])
    found = place.fsck()
    assert list(found.kinds) == [kind] and found.state == "damaged"
    # What an unclean end leaves is no damage: every start sees to it, as a repair does first.
    seen_to = kind in ("wrong orphan", "name to put back of nothing")
    assert place.fsck(repair=True).state == ("clean" if seen_to else "repaired")
    assert place.fsck(remote=True).state == "clean"
    assert place.read_all() == place.files
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
    assert place.cloned_names() >= {b"small", b"large", b"tiny"}


def test_a_pruned_history_is_sound(place: Place) -> None:
    with place.engine() as engine:
        for number in range(4):
            place.write(engine, b"/album/photo2", noise(number, 50_000))
            engine._committer.round()
        engine.flush(60, lambda state: None)
        moments = [row[0] for row in engine._db.query("SELECT seq FROM epoch ORDER BY seq")]
        with engine._db.transaction():
            engine._db.execute("DELETE FROM epoch WHERE seq = ?", (moments[2],))
    assert place.fsck(remote=True).state == "clean"


def test_a_cycle_in_the_history_is_cut_for_clones_as_well(place: Place) -> None:
    with place.engine() as engine:
        tree = engine._tree
        album = tree.lookup(ROOT, b"album")
        assert album is not None
        year = tree.lookup(album, b"2024")
        assert year is not None
        tree.rename(ROOT, b"album", year, b"album")
        engine.flush(60, lambda state: None)
    with pytest.raises(SyncerError, match="not below the root"):
        place.cloned_names()
    assert place.fsck().kinds.keys() >= {"cycle"}
    assert place.fsck(repair=True).state == "repaired"
    assert place.fsck(remote=True).state == "clean"
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
    found = place.read_all()
    photo = place.files[b"/album/photo"]
    (path,) = [path for path, content in found.items() if path.endswith(b"/photo")]
    assert path.startswith(b"/lost+found/#") and found[path] == photo
    assert b"lost+found" in place.cloned_names()


def test_after_a_repair_the_same_process_counts_blocks_rightly(place: Place) -> None:
    with place.engine() as engine:
        for _ in range(2):
            _fsck(engine)
            place.write(engine, b"/fresh", noise(5, 3_000_000))
            assert engine.vfs.getattr(b"/fresh").blocks == 3
            # In the next epoch the row is copied to the past, and just once.
            engine._committer.round()
            place.write(engine, b"/fresh", noise(6, 4_000_000))
            assert engine.vfs.getattr(b"/fresh").blocks == 4
            engine.vfs.unlink(b"/fresh")
    assert place.fsck(remote=True).state == "clean"


def test_after_blocks_were_kept_the_same_process_counts_blocks_rightly(place: Place) -> None:
    shutil.rmtree(place.folder.segments)
    (block,) = _dirty(place)
    # The history is mended, and a block without a name gets one.
    _harm(place, HISTORY_DAMAGE["wrong link count"])
    _harm(place, [f"DELETE FROM content WHERE node = {_LARGE}"])
    with place.folder.lock():
        engine = Engine(place.data, Config.load(place.folder.config))
        try:
            assert _fsck(engine)["kinds"].keys() >= {"wrong link count", "unnamed block"}
            engine.start()
            assert read(engine, b"/lost+found/block-" + block.name.encode()) == block.read_bytes()
            for number, path in enumerate((b"/album/photo", b"/fresh")):
                place.write(engine, path, noise(number, 1_500_000))
                assert engine.vfs.getattr(path).blocks == 2
        finally:
            engine.stop()
    assert place.fsck(remote=True).state == "clean"


# Local block files


def _dirty(place: Place) -> list[Path]:
    with place.sql() as connection:
        rows = connection.execute("SELECT hex(id) FROM block WHERE dirty IS NOT NULL").fetchall()
    return [path for path in place.blocks() if (path.name.upper(),) in rows]


def _clean(place: Place) -> list[Path]:
    dirty = _dirty(place)
    return [path for path in place.blocks() if path not in dirty]


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_bad_local_copies_of_what_the_server_has_are_fetched_again(
    place: Place, harm: Callable[[Path], None]
) -> None:
    for path in _clean(place):
        harm(path)
    assert set(place.fsck(read_data=True).kinds) == {"bad local copy"}
    assert place.fsck(repair=True, read_data=True).state == "repaired"
    assert place.fsck(read_data=True).state == "clean"
    assert place.read_all() == place.files


@pytest.mark.expects_warnings
@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_block_that_only_this_computer_had_is_lost_and_named(
    place: Place, harm: Callable[[Path], None]
) -> None:
    (path,) = _dirty(place)
    harm(path)
    found = place.fsck(read_data=True)
    assert found.state == "damaged"
    assert any("/new/large" in one["text"] for one in found.findings)
    assert place.fsck(repair=True, read_data=True).state == "repaired"
    again = place.fsck(read_data=True)
    assert again.state == "clean" and any("lost" in note for note in again.notes)
    content = place.files.pop(b"/new/large")
    with place.engine() as engine:
        # An error, and not zeros; and the rest gets to the server.
        with pytest.raises(SyncerError):
            read(engine, b"/new/large")
        engine.flush(60, lambda state: None)
    assert place.fsck(remote=True).state == "clean"
    with place.engine() as engine:
        place.write(engine, b"/once more", content)
        assert read(engine, b"/new/large") == content
        engine.flush(60, lambda state: None)
    assert place.fsck(remote=True, repair=True).state == "clean"
    assert not place.fsck(remote=True).notes, "what turned up is not lost any more"


@pytest.mark.expects_warnings
@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
@pytest.mark.parametrize("repair", [True, False])
def test_what_is_written_again_meanwhile_is_not_given_up(
    place: Place, harm: Callable[[Path], None], repair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what a person does whom `status` tells of the damage."""
    (path,) = _dirty(place)
    content = place.files[b"/new/large"]
    harm(path)
    with place.folder.lock():
        engine = Engine(place.data, Config.load(place.folder.config))
        look = LocalFiles.check

        def look_and_write(files: LocalFiles, *rest: Any) -> Outcome:
            outcome = look(files, *rest)
            assert outcome.lost, "it was not found"
            place.write(engine, b"/once more", content)
            return outcome

        monkeypatch.setattr(LocalFiles, "check", look_and_write)
        try:
            found = _fsck(engine, repair=repair)
            assert found["state"] == "clean", found
            engine.start()
            assert read(engine, b"/new/large") == read(engine, b"/once more") == content
            engine.flush(60, lambda state: None)
        finally:
            engine.stop()
        monkeypatch.undo()
    found_later = place.fsck(remote=True, read_data=True)
    assert found_later.state == "clean" and not found_later.notes
    assert place.read_all() == place.files


@pytest.mark.expects_warnings
@pytest.mark.parametrize("moment", ["before it is set aside", "after it was"])
def test_what_is_being_written_is_not_given_up(
    place: Place, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is there, and is about to be named."""
    (path,) = _dirty(place)
    content = place.files[b"/new/large"]
    flip(path)
    with place.folder.lock():
        engine = Engine(place.data, Config.load(place.folder.config))
        blocks, set_aside = engine._blocks, engine._blocks.set_aside

        def put_meanwhile(block_id: bytes, *, is_lost: bool = False) -> None:
            if moment == "before it is set aside":
                blocks.put(content)
            set_aside(block_id, is_lost=is_lost)
            if moment == "after it was":
                blocks.put(content)

        monkeypatch.setattr(blocks, "set_aside", put_meanwhile)
        try:
            assert _fsck(engine)["state"] == "clean"
            blocks.unhold([bytes.fromhex(path.name)])
            engine.start()
            assert read(engine, b"/new/large") == content
            engine.flush(60, lambda state: None)
        finally:
            engine.stop()
    assert place.fsck(remote=True, read_data=True).state == "clean"


def test_a_dirty_block_that_the_server_has_all_the_same_is_not_lost(place: Place) -> None:
    """As after a power cut, which took the note that it was uploaded."""
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
    with place.sql() as connection:
        connection.execute("UPDATE block SET dirty = 1 + rowid_of, refs = 1 FROM (SELECT id AS key,"
            " row_number() OVER () AS rowid_of FROM block) WHERE key = id")  # fmt: skip
        connection.execute(
            "UPDATE usage SET dirty_blocks = local_blocks,"
            " dirty_bytes = (SELECT sum(size) FROM block)"
        )
    for path in place.blocks():
        flip(path)
    assert place.fsck(repair=True, read_data=True).state == "repaired"
    assert place.fsck(read_data=True, remote=True).state == "clean"
    assert place.read_all() == place.files


def test_rows_and_files_of_blocks_are_made_to_match(place: Place) -> None:
    with place.sql() as connection:
        # A file of content without a row, a row with a wrong size, one with wrong references.
        connection.execute("DELETE FROM block WHERE dirty IS NOT NULL")
        connection.execute("UPDATE block SET size = 5 WHERE used = (SELECT min(used) FROM block)")
        connection.execute("UPDATE block SET refs = 3 WHERE used = (SELECT max(used) FROM block)")
    stray = place.folder.blocks / "ab" / ("ab" + "0" * 30)
    stray.write_bytes(b"belongs to nothing")
    other = place.folder.blocks / "ab" / "notes.txt"
    other.write_bytes(b"a person's")
    found = place.fsck()
    assert found.kinds.keys() >= {"block without a row", "wrong block row", "leftover file"}
    assert place.fsck(repair=True).state == "repaired"
    again = place.fsck(read_data=True)
    assert again.state == "clean", again
    assert not stray.exists()
    assert other.exists() and any("notes.txt" in note for note in again.notes)
    assert place.read_all() == place.files


def test_the_litter_of_a_crash_is_no_damage(place: Place) -> None:
    with place.sql() as connection:
        connection.execute("UPDATE meta SET value = 'another boot' WHERE key = 'boot'")
    stray = place.folder.blocks / "ab" / ("ab" + "0" * 30)
    stray.write_bytes(b"belongs to nothing")
    found = place.fsck()
    assert found.state == "clean" and any("next mount" in note for note in found.notes)
    assert place.read_all() == place.files


# While others work


@pytest.mark.parametrize("repair", [True, False])
def test_a_block_that_loses_its_name_meanwhile_is_no_damage(
    place: Place, repair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is gone at once, its file with the committer's next round, and nobody uploads it."""
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
    objects = place.objects()
    with place.folder.lock():
        engine = Engine(place.data, Config.load(place.folder.config))
        place.write(engine, b"/short-lived", noise(9, 2_000_000))
        del place.files[b"/short-lived"]
        look = LocalFiles.check

        def remove_and_look(files: LocalFiles, *rest: Any) -> Outcome:
            engine.vfs.unlink(b"/short-lived")
            return look(files, *rest)

        monkeypatch.setattr(LocalFiles, "check", remove_and_look)
        try:
            found = _fsck(engine, repair=repair, remote=True)
            assert found["state"] == "clean", found
            engine._blocks.collect()
        finally:
            engine.stop()
        monkeypatch.undo()
    assert place.objects() == objects
    assert place.fsck(remote=True, read_data=True).state == "clean"
    assert place.read_all() == place.files


def test_a_block_that_is_evicted_meanwhile_is_no_damage(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _clean(place)[0]
    found: list[dict[str, Any]] = []
    with place.engine() as engine:
        remove = engine._cache.remove

        def look_and_remove(block_ids: Iterable[bytes]) -> None:
            found.append(_fsck(engine, repair=False))
            remove(block_ids)

        monkeypatch.setattr(engine._cache, "remove", look_and_remove)
        assert engine._blocks.evict_these([bytes.fromhex(path.name)])[0] == 1
        monkeypatch.undo()
    assert found[0]["state"] == "clean", found
    assert not path.exists()


def test_a_follower_does_not_miss_what_the_writer_has_pruned(place: Place, tmp_path: Path) -> None:
    clone = Place(tmp_path / "clone")
    clone.remote = place.remote
    clone_repository(clone.data, Config.load(place.folder.config), "desktop")
    with place.engine() as engine:
        engine.vfs.unlink(b"/album/2024/island")
        engine.flush(60, lambda state: None)
        engine.pruner.prune(NEWEST, is_dry=False, progress=lambda state: None)
        engine.flush(60, lambda state: None)
        # It learns in time of each step; only this one is behind.
        pruned = {path.name for path in place.remote.glob("trash/*")}
    assert pruned, "nothing was pruned"
    found = clone.fsck(remote=True)
    assert found.state == "clean", found
    with clone.engine() as engine:
        assert engine._tree.lookup(ROOT, b"new") is not None
    assert clone.fsck(remote=True, repair=True).state == "clean"


# The server


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_the_server_heals_from_local_copies(place: Place, harm: Callable[[Path], None]) -> None:
    for path in place.objects():
        harm(path)
    assert place.fsck(read_data=True).state == "clean", "without --remote nobody asks the server"
    assert set(place.fsck(remote=True, read_data=True).kinds) == {"bad block on the server"}
    assert place.fsck(remote=True, read_data=True, repair=True).state == "repaired"
    assert place.fsck(remote=True, read_data=True).state == "clean"
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
        engine._blocks.evict(10**9)
    assert not place.blocks()
    assert place.read_all() == place.files


def test_a_length_alone_shows_most_damage_of_the_server(place: Place) -> None:
    for path in place.objects():
        halve(path)
    assert set(place.fsck(remote=True).kinds) == {"bad block on the server"}


def test_a_block_in_the_trash_that_is_named_all_the_same_comes_back(place: Place) -> None:
    for path in place.objects():
        trash = place.remote / "trash" / path.name
        trash.parent.mkdir(exist_ok=True)
        path.rename(trash)
    for path in _clean(place):
        path.unlink()
    assert place.fsck(repair=True, remote=True).state == "repaired"
    assert place.fsck(remote=True, read_data=True).state == "clean"
    assert place.read_all() == place.files


@pytest.mark.expects_warnings
def test_what_is_good_nowhere_is_lost_and_named(place: Place) -> None:
    (island,) = [path for path in place.objects() if path.stat().st_size > BLOCK_BYTES]
    flip(island)
    (place.folder.blocks / island.name[:2] / island.name).unlink()
    found = place.fsck(remote=True, read_data=True)
    assert any("/album/2024/island" in one["text"] for one in found.findings)
    assert place.fsck(remote=True, read_data=True, repair=True).state == "repaired"
    assert place.fsck(remote=True, read_data=True).state == "clean"
    with place.engine() as engine, pytest.raises(SyncerError):
        read(engine, b"/album/2024/island")
    assert island.exists(), "nothing is deleted"


def test_objects_that_nobody_names_are_left_alone(place: Place) -> None:
    other = place.remote / "blocks" / "ab" / ("ab" + "0" * 30)
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"another computer's")
    found = place.fsck(remote=True, repair=True)
    assert found.state == "clean" and any("left alone" in note for note in found.notes)
    assert other.exists()


@pytest.mark.parametrize("folder", ["log", "checkpoint"])
@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_damaged_history_on_the_server_gets_a_new_checkpoint(
    place: Place, folder: str, harm: Callable[[Path], None]
) -> None:
    with place.engine() as engine:
        if folder == "checkpoint":
            engine.flush(60, lambda state: None)
            engine._exchange.checkpoint()
    found = [path for path in place.remote.glob(f"{folder}/*/*") if path.is_file()]
    assert found
    for path in found:
        harm(path)
    state = place.fsck(remote=True).state
    assert state == "damaged" or (folder, harm) == ("checkpoint", HARM["missing"])
    assert place.fsck(remote=True, repair=True).left == 0
    assert place.fsck(remote=True, read_data=True).state == "clean"
    assert place.cloned_names() >= {b"photo", b"island"}


# The command


def test_a_repair_that_is_killed_is_done_by_the_next(place: Place) -> None:
    shutil.rmtree(place.folder.segments)
    for kind in ("wrong link count", "content beyond the end", "node without a name"):
        _harm(place, HISTORY_DAMAGE[kind])
    bad, *good = _clean(place)
    flip(bad)
    for path in good:
        halve(place.remote / "blocks" / path.name[:2] / path.name)
    calls = 0
    while True:
        calls += 2
        code = (
            "import os, signal\n"
            "from syncer.metadata.db import Database\n"
            f"begin, left = Database._begin, [{calls**2}]\n"
            "def count(db):\n"
            "    left[0] -= 1\n"
            "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    begin(db)\n"
            "Database._begin = count\n"
            "from syncer.commands.cli import main\n"
            "words = ['fsck', '--repair', '--remote', '--read-data']\n"
            f"raise SystemExit(main([*words, {str(place.data)!r}]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=SOURCES, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode != -signal.SIGKILL:
            break
    assert calls > 4, "it was never killed"
    assert place.fsck(repair=True, read_data=True, remote=True).left == 0
    assert place.fsck(remote=True, read_data=True).state == "clean"
    contents = set(place.read_all().values())
    assert {noise(1, 300_000), noise(3, 200_000)} <= contents


@pytest.mark.fuse
def test_a_mounted_collection_is_checked_and_its_copies_repaired(tmp_path: Path) -> None:
    with mounted(tmp_path, BINDINGS[-1], expects_warnings=True) as mount:
        (mount.path / "photo").write_bytes(noise(1, 300_000))
        mount.flush()
        assert "No damage" in mount.run("fsck", "--remote", "--read-data", mount.path)
        (block,) = (mount.data / "blocks").glob("??/*")
        flip(block)
        with pytest.raises(CommandError) as caught:
            mount.run("fsck", "--read-data", mount.path)
        assert caught.value.status == 17
        with pytest.raises(CommandError) as caught:
            mount.run("fsck", "--read-data", "--repair", mount.path)
        assert caught.value.status == 18
        assert (mount.path / "photo").read_bytes() == noise(1, 300_000)
        (stored,) = (Path(mount.remote) / "blocks").glob("??/*")
        halve(stored)
        with pytest.raises(CommandError) as caught:
            mount.run("fsck", "--remote", "--repair", mount.path)
        assert caught.value.status == 18
        assert "No damage" in mount.run("fsck", "--remote", "--read-data", mount.path)


@pytest.mark.fuse
def test_files_are_stored_as_ever_after_a_repair_of_a_mount(tmp_path: Path) -> None:
    """`tar -S` and `cp` ask for the blocks, and take a file that has none for zeros."""
    with mounted(tmp_path, BINDINGS[-1]) as mount:
        (mount.path / "old").write_bytes(noise(1, 2_000_000))
        assert "No damage" in mount.run("fsck", "--repair", mount.path)
        for path in (mount.path / "photo", mount.path / "old"):
            for number in range(3):
                path.write_bytes(noise(number, 3_000_000))
                assert path.stat().st_blocks * 512 >= 3_000_000
                mount.flush()
        subprocess.run(["tar", "-C", mount.path, "-cSf", tmp_path / "tar", "photo"], check=True)
        subprocess.run(["tar", "-C", tmp_path, "-xf", tmp_path / "tar"], check=True)
        assert (tmp_path / "photo").read_bytes() == noise(2, 3_000_000)
