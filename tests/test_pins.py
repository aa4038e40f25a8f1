"""Pins: what is pinned stays local, fits, and leaves room for work. Without a mount."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncer.codec import BLOCK_BYTES
from syncer.config import Config
from syncer.errors import LocalFullError, UsageError
from syncer.maintain.findings import Report
from syncer.maintain.fsck import Options
from syncer.metadata import schema
from syncer.metadata.node import Node
from syncer.metadata.tree import Tree
from syncer.metadata.walk import files_below
from syncer.process.checking import check_alone
from syncer.process.engine import Engine
from syncer.process.folder import DataFolder
from syncer.process.repository import clone_repository, create_repository
from syncer.vfs.caller import Caller
from tests.block_rig import content
from tests.damage import halve

ME = Caller(1000, 1000)
MB = 1_000_000
_COMES_WITHIN_SECONDS = 30.0


def nothing(state: dict[str, Any]) -> None:
    pass


class Rig:
    """A data directory at work without a mount, over a remote in a folder."""

    def __init__(self, folder: Path, limit_bytes: int = 100 * MB, name: str = "data") -> None:
        self.remote = folder / "remote"
        self.data = folder / name
        # The contents of these tests, of 20 kB, are blocks.
        self.config = Config(
            str(self.remote), limit_bytes, min_free_bytes=0, timeout_seconds=2.0,
            inline_limit_bytes=4096,
        )  # fmt: skip
        make = clone_repository if self.remote.exists() else create_repository
        make(self.data, self.config, socket.gethostname())
        self.start()

    def start(self) -> None:
        self.engine = Engine(self.data, self.config)
        self.engine.start()
        self.vfs = self.engine.vfs
        self.keeping = self.engine.keeping
        self.db = self.engine._db

    def reopen(self) -> None:
        self.engine.stop()
        self.start()

    def write(self, path: bytes, data: bytes) -> None:
        try:
            self.vfs.mknod(path, stat.S_IFREG | 0o644, 0, ME)
        except FileExistsError:
            pass
        handle = self.vfs.open(path, os.O_WRONLY | os.O_TRUNC)
        for start in range(0, len(data), BLOCK_BYTES):
            self.vfs.write(handle, memoryview(data)[start : start + BLOCK_BYTES], start)
        self.vfs.files.flush(handle)
        self.vfs.release(handle)

    def read(self, path: bytes) -> bytes:
        handle = self.vfs.open(path, os.O_RDONLY)
        buffer = bytearray(self.vfs.getattr(handle).size)
        self.vfs.files.read_into(handle, memoryview(buffer), 0)
        self.vfs.release(handle)
        return bytes(buffer)

    def state(self, path: bytes) -> str:
        return self.vfs.getxattr(path, b"user.syncer.state").decode()

    def flush(self) -> None:
        self.engine.flush(60, nothing)

    def evict(self, *paths: bytes) -> dict[str, Any]:
        self.flush()
        return self.keeping.evict(list(paths) or None)

    def pin(self, *paths: bytes) -> dict[str, Any]:
        return self.keeping.pin(paths, nothing)

    def pinned_bytes(self) -> int:
        return self.engine._blocks.pinned.used_bytes()

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _COMES_WITHIN_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.02)

    def wait_settled(self) -> None:
        """Until the keeper has seen to all that was noted."""

        def is_settled() -> bool:
            self.engine._keeper.hurry()
            return not self.db.get_meta("pins_stale", 0)

        self.wait(is_settled)

    def go_offline(self) -> None:
        self.remote.rename(self.remote.with_name("away"))

    def go_online(self) -> None:
        self.remote.with_name("away").rename(self.remote)

    def check(self) -> None:
        """The sums are those of the rows, and no more is pinned than may be."""
        rows = self.db.query("SELECT size FROM block WHERE pinned = 1")
        total = sum(-(-row[0] // 4096) * 4096 for row in rows)
        assert [(len(rows), total)] == self.db.query(
            "SELECT pinned_blocks, pinned_bytes FROM usage"
        )
        assert total <= self.engine._blocks.pinned.allowance_bytes()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.vfs.mkdir(b"/thumbs", 0o755, ME)
    rig.vfs.mkdir(b"/other", 0o755, ME)
    for number in range(3):
        rig.write(b"/thumbs/%d" % number, content(number))
        rig.write(b"/other/%d" % number, content(100 + number))
    yield rig
    rig.check()
    rig.engine.stop()


def test_what_is_pinned_is_fetched_and_not_evicted(rig: Rig) -> None:
    rig.evict()
    assert rig.state(b"/thumbs/0") == "remote"
    done = rig.pin(b"/thumbs")
    assert (done["files"], done["bytes"], done["blocks"]) == (3, 60_000, 3)
    kept = rig.evict()
    assert (kept["blocks"], kept["pinned_bytes"]) == (0, 3 * 20_480)
    kept = rig.evict(b"/thumbs")
    assert (kept["files"], kept["pinned_bytes"]) == (0, 60_000)
    rig.go_offline()
    assert [rig.read(b"/thumbs/%d" % number) for number in range(3)] == [
        content(number) for number in range(3)
    ]
    rig.go_online()


def test_what_is_written_in_a_pinned_folder_is_pinned_at_once(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    rig.vfs.mkdir(b"/thumbs/below", 0o755, ME)
    # No thread's work: the marks are there with the file's own rows.
    rig.engine._keeper.stop()
    rig.write(b"/thumbs/below/new", content(7))
    rig.write(b"/thumbs/0", content(8, BLOCK_BYTES + 5))
    rig.evict()
    assert rig.state(b"/thumbs/below/new") == rig.state(b"/thumbs/0") == "local"
    assert rig.state(b"/other/0") == "remote"


def test_a_pin_stays_through_renames_and_restarts(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    rig.vfs.rename(b"/thumbs", b"/other/moved")
    rig.reopen()
    rig.write(b"/other/moved/new", content(9))
    rig.evict()
    assert rig.state(b"/other/moved/new") == rig.state(b"/other/moved/1") == "local"
    (pin,) = rig.keeping.pins(nothing)["pins"]
    assert (pin["path"], pin["files"], pin["local_files"]) == ("/other/moved", 4, 4)


def test_a_file_that_an_editor_saves_by_renaming_keeps_its_pin(rig: Rig) -> None:
    rig.pin(b"/other/0")
    rig.write(b"/other/.0.new", content(50))
    rig.vfs.rename(b"/other/.0.new", b"/other/0")
    handle = rig.vfs.open(b"/other/0", os.O_RDONLY)
    rig.write(b"/other/.0.new", content(51))
    # As libfuse does it while the file is open.
    rig.vfs.rename(b"/other/0", b"/other/.fuse_hidden0123456789abcdef")
    rig.vfs.rename(b"/other/.0.new", b"/other/0")
    rig.vfs.release(handle)
    rig.wait_settled()
    rig.evict()
    assert (rig.state(b"/other/0"), rig.state(b"/other/1")) == ("local", "remote")


def test_a_rename_that_fails_leaves_the_pin_where_it_was(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.pin(b"/other/0")
    handle = rig.vfs.create(b"/other/new", 0o644, os.O_WRONLY, ME)

    def fail(*_: object) -> None:
        raise LocalFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.vfs.files, "fsync", fail)
        with pytest.raises(LocalFullError):
            rig.vfs.rename(b"/other/new", b"/other/0")
    rig.vfs.release(handle)
    (pin,) = rig.keeping.pins(nothing)["pins"]
    assert pin["path"] == "/other/0"


def test_what_moves_into_a_pinned_folder_is_fetched(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    rig.evict()
    rig.vfs.rename(b"/other/0", b"/thumbs/moved")
    rig.vfs.link(b"/other/1", b"/thumbs/linked")
    rig.vfs.mkdir(b"/deep", 0o755, ME)
    rig.vfs.rename(b"/other/2", b"/deep/file")
    rig.vfs.rename(b"/deep", b"/thumbs/deep")
    paths = (b"/thumbs/moved", b"/other/1", b"/thumbs/deep/file")
    rig.flush()
    rig.wait(lambda: all(rig.state(path) == "local" for path in paths))
    rig.wait_settled()
    assert rig.evict(*paths)["blocks"] == 0


def test_what_moves_out_of_a_pinned_folder_may_go(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    rig.vfs.rename(b"/thumbs/0", b"/other/out")
    rig.vfs.unlink(b"/thumbs/1")
    rig.wait_settled()
    assert rig.pinned_bytes() == 20_480
    rig.evict()
    assert (rig.state(b"/other/out"), rig.state(b"/thumbs/2")) == ("remote", "local")


def test_content_that_a_pinned_and_another_file_share_stays_for_the_pinned_one(rig: Rig) -> None:
    rig.write(b"/other/same", content(0))
    rig.pin(b"/thumbs", b"/other/same")
    rig.keeping.unpin([b"/other/same"])
    rig.wait_settled()
    rig.evict()
    assert rig.state(b"/thumbs/0") == "local"
    rig.keeping.unpin([b"/thumbs"])
    rig.wait_settled()
    rig.evict()
    assert (rig.state(b"/thumbs/0"), rig.pinned_bytes()) == ("remote", 0)


def test_a_pin_of_what_is_pinned_from_above_is_not_taken_away_alone(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    with pytest.raises(UsageError, match="is pinned by /thumbs; unpin that"):
        rig.keeping.unpin([b"/thumbs/0"])
    with pytest.raises(UsageError, match="/other/0 is not pinned"):
        rig.keeping.unpin([b"/other/0"])


def test_a_pin_that_does_not_fit_is_refused_with_the_figures(rig: Rig) -> None:
    for number in range(60):
        rig.write(b"/other/big%d" % number, content(1000 + number, 1_000_000))
    rig.pin(b"/thumbs")
    figures = r"it needs 61 MB more, but of the limit of 100 MB pins may take 50 MB, of which 1 MB"
    with pytest.raises(LocalFullError, match=figures):
        rig.pin(b"/other")
    assert [pin["path"] for pin in rig.keeping.pins(nothing)["pins"]] == ["/thumbs"]
    with pytest.raises(LocalFullError):
        rig.vfs.setxattr(b"/other", b"user.syncer.pinned", b"1", 0)
    rig.engine.set_config("max_size", "200")
    rig.pin(b"/other")
    # A limit that is lowered later lets go of what no longer fits.
    rig.engine.set_config("max_size", "100")
    rig.wait(lambda: rig.pinned_bytes() <= 50 * MB)


def test_pins_leave_room_for_work(rig: Rig) -> None:
    """Writers of much more than the limit get on, be it into the pinned folder itself."""
    rig.pin(b"/thumbs")
    for number in range(150):
        rig.write(b"/thumbs/big%d" % number, content(2000 + number, 1_000_000))
    for number in range(100):
        rig.write(b"/other/big%d" % number, content(3000 + number, 1_000_000))
    rig.flush()
    assert 40 * MB < rig.pinned_bytes() <= 50 * MB
    assert rig.state(b"/thumbs/0") == "local"
    used = rig.engine.status()["cache_bytes"]
    assert used <= 100 * MB
    assert rig.read(b"/thumbs/big149") == content(2149, 1_000_000)


def test_room_that_becomes_free_is_used_by_what_did_not_fit(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    for number in range(60):
        rig.write(b"/thumbs/big%d" % number, content(2000 + number, 1_000_000))
    rig.evict()
    rig.wait_settled()
    for number in range(40):
        rig.vfs.unlink(b"/thumbs/big%d" % number)
    rig.wait(
        lambda: all(rig.state(b"/thumbs/big%d" % number) != "remote" for number in range(40, 60))
    )
    rig.wait_settled()
    rig.evict()
    assert all(rig.state(b"/thumbs/big%d" % number) == "local" for number in range(40, 60))


def test_what_could_not_be_fetched_comes_when_the_server_is_back(rig: Rig) -> None:
    rig.evict()
    rig.go_offline()
    with pytest.raises(Exception, match="pinned, but not all of it is local yet"):
        rig.pin(b"/thumbs")
    rig.reopen()
    assert rig.state(b"/thumbs/0") == "remote"
    rig.go_online()
    rig.wait(lambda: rig.state(b"/thumbs/2") == "local")
    rig.wait_settled()


@pytest.mark.parametrize("harm", [halve, Path.unlink])
@pytest.mark.parametrize("is_mounted", [True, False])
def test_a_pinned_copy_that_a_repair_drops_is_fetched_again(
    rig: Rig, is_mounted: bool, harm: Callable[[Path], None]
) -> None:
    rig.pin(b"/thumbs")
    rig.flush()
    rig.wait_settled()
    for path in (rig.data / "blocks").glob("[0-9a-f][0-9a-f]/*"):
        harm(path)
    options = Options(repair=True)
    if is_mounted:
        rig.engine.fsck(options, Report(), nothing)
    else:
        rig.engine.stop()
        check_alone(DataFolder(rig.data), options, nothing)
        rig.start()
    rig.wait(lambda: all(rig.state(b"/thumbs/%d" % number) == "local" for number in range(3)))
    rig.wait_settled()
    rig.go_offline()
    assert [rig.read(b"/thumbs/%d" % number) for number in range(3)] == [*map(content, range(3))]
    rig.go_online()


def test_a_pinned_copy_that_a_sweep_finds_gone_is_fetched_again(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    rig.flush()
    # As when the pins have been gone through before the sweep gets to what is gone.
    rig.wait_settled()
    for path in (rig.data / "blocks").glob("[0-9a-f][0-9a-f]/*"):
        path.unlink()
    rig.engine._is_swept = False
    rig.engine._sweep()
    rig.engine._keeper.hurry()
    rig.wait(lambda: all(rig.state(b"/thumbs/%d" % number) == "local" for number in range(3)))
    rig.wait_settled()


def test_nothing_is_gone_through_at_a_start_without_need(rig: Rig) -> None:
    rig.pin(b"/thumbs")
    rig.wait_settled()
    rig.reopen()
    passes = threading.Event()
    rig.engine._keeper._pass = passes.set  # type: ignore[method-assign]
    assert not passes.wait(2.5)


def test_a_follower_fetches_what_the_writer_puts_into_a_pinned_folder(
    rig: Rig, tmp_path: Path
) -> None:
    rig.flush()
    clone = Rig(tmp_path, name="clone")
    try:
        clone.pin(b"/thumbs")
        rig.write(b"/thumbs/new", content(70))
        rig.vfs.rename(b"/other/0", b"/thumbs/moved")
        rig.flush()

        def is_there() -> bool:
            try:
                return clone.state(b"/thumbs/new") == clone.state(b"/thumbs/moved") == "local"
            except FileNotFoundError:
                return False

        clone.wait(is_there)
        clone.wait_settled()
        assert clone.evict(b"/thumbs")["blocks"] == 0
        clone.vfs.setxattr(b"/thumbs", b"user.syncer.pinned", b"0", 0)
        clone.check()
    finally:
        clone.engine.stop()


def test_a_restored_folder_within_a_pinned_one_is_fetched(rig: Rig) -> None:
    rig.flush()
    epoch = rig.engine.past.snapshot("before")["epoch"]
    rig.vfs.unlink(b"/other/0")
    rig.evict()
    rig.pin(b"/thumbs")
    done = rig.engine.past.restore(b"/other", str(epoch), b"/thumbs/other", nothing)
    rig.vfs.rename(done["made"].encode(), b"/thumbs/other")
    rig.flush()
    rig.wait(lambda: rig.state(b"/thumbs/other/0") == "local")


def test_fetch_and_evict_tell_what_they_did_and_what_not(rig: Rig) -> None:
    rig.evict()
    done = rig.keeping.fetch([b"/other"], nothing)
    assert (done["files"], done["blocks"], done["bytes"]) == (3, 3, 60_000)
    assert rig.keeping.fetch([b"/other"], nothing)["blocks"] == 0
    for number in range(120):
        rig.write(b"/other/big%d" % number, content(1000 + number, 1_000_000))
    rig.evict()
    done = rig.keeping.fetch([b"/other"], nothing)
    assert done["skipped_files"] > 20 and done["bytes"] <= 100 * MB
    assert done["skipped_bytes"] + done["bytes"] == 120 * MB + 60_000
    rig.go_offline()
    rig.write(b"/other/dirty", content(5))
    assert rig.keeping.evict([b"/other/dirty"])["dirty_bytes"] == 20_000
    assert rig.state(b"/other/dirty") == "dirty"
    rig.go_online()


def test_states_are_told_by_name_and_not_listed(rig: Rig) -> None:
    get = rig.vfs.getxattr
    assert rig.state(b"/other/0") == "dirty" or rig.state(b"/other/0") == "local"
    rig.write(b"/other/three", content(1, 3 * BLOCK_BYTES))
    rig.write(b"/other/tiny", b"tiny")
    rig.vfs.mknod(b"/other/empty", stat.S_IFREG | 0o644, 0, ME)
    rig.evict()
    assert rig.state(b"/other/three") == "remote"
    assert rig.state(b"/other/tiny") == rig.state(b"/other/empty") == "local"
    number = rig.vfs.getattr(b"/other/three").id
    rig.engine._blocks.prefetch(rig.engine._contents.ids(number)[1])
    assert rig.state(b"/other/three") == "partial"
    assert get(b"/other/three", b"user.syncer.cached_bytes") == b"%d" % BLOCK_BYTES
    assert get(b"/other/tiny", b"user.syncer.cached_bytes") == b"4"
    assert get(b"/other/three", b"user.syncer.versions") == b"1"
    rig.write(b"/other/new", content(2))
    rig.vfs.rename(b"/other/new", b"/other/three")
    rig.flush()
    assert get(b"/other/three", b"user.syncer.versions") == b"%d" % len(
        rig.engine.past.versions(b"/other/three")["versions"]
    )
    assert get(b"/other", b"user.syncer.pinned") == b"0"
    for path, name in ((b"/other", b"state"), (b"/other/0", b"else"), (b"/other", b"cached_bytes")):
        with pytest.raises(OSError, match="No data available"):
            get(path, b"user.syncer." + name)
    for name, value, error in (
        (b"state", b"local", "not permitted"),
        (b"else", b"1", "not supported"),
        (b"pinned", b"yes", "Invalid"),
    ):
        with pytest.raises(OSError, match=error):
            rig.vfs.setxattr(b"/other", b"user.syncer." + name, value, 0)
    rig.vfs.setxattr(b"/other", b"user.syncer.pinned", b"1", 0)
    assert get(b"/other/three", b"user.syncer.pinned") == b"1"
    assert rig.vfs.listxattr(b"/other") == rig.vfs.listxattr(b"/other/three") == []
    with pytest.raises(OSError, match="busy"):
        rig.vfs.setxattr(b"/other/three", b"user.syncer.pinned", b"0", 0)
    rig.vfs.removexattr(b"/other", b"user.syncer.pinned")
    assert get(b"/other/three", b"user.syncer.pinned") == b"0"


def test_renames_within_a_pinned_folder_during_passes_lose_no_mark(rig: Rig) -> None:
    for number in range(300):
        rig.write(b"/thumbs/n%03d" % number, content(number, 9000))
    rig.pin(b"/thumbs")
    rig.vfs.mkdir(b"/thumbs/a", 0o755, ME)
    rig.vfs.mkdir(b"/thumbs/z", 0o755, ME)
    rig.flush()
    ended = threading.Event()

    def shuffle() -> None:
        while not ended.is_set():
            for number in range(300):
                rig.vfs.rename(b"/thumbs/n%03d" % number, b"/thumbs/a/n%03d" % number)
            rig.vfs.rename(b"/thumbs/a", b"/thumbs/zz")
            rig.vfs.rename(b"/thumbs/zz", b"/thumbs/a")
            for number in range(300):
                rig.vfs.rename(b"/thumbs/a/n%03d" % number, b"/thumbs/n%03d" % number)

    thread = threading.Thread(target=shuffle)
    thread.start()
    try:
        for _ in range(5):
            ended_at = rig.engine._keeper._ended_at
            rig.engine._tree.pins.loosen()
            rig.engine._keeper.hurry()
            rig.wait(lambda before=ended_at: rig.engine._keeper._ended_at != before)
            row = rig.db.query_one("SELECT count(*) FROM block WHERE pinned = 0 AND size = 9000")
            assert row == (0,)
    finally:
        ended.set()
        thread.join()
    rig.wait_settled()


def test_a_file_that_moves_behind_a_passes_back_keeps_its_mark(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where the pass has not been yet to where it has been already."""
    rig.pin(b"/other", b"/thumbs")
    rig.wait_settled()
    marked: list[int] = []
    pinned, end_pass = rig.engine._blocks.pinned, rig.engine._blocks.pinned.end_pass

    def moving(tree: Tree, top: Node) -> Iterator[Node]:
        yield from files_below(tree, top)
        if not marked and tree.path_of(top.id) == b"/other":
            rig.vfs.rename(b"/thumbs/0", b"/other/moved")

    def end() -> None:
        marked.append(pinned.used_bytes())
        end_pass()

    monkeypatch.setattr("syncer.transfer.keeper.files_below", moving)
    monkeypatch.setattr(pinned, "end_pass", end)
    rig.engine._tree.pins.loosen()
    rig.wait_settled()
    assert marked[0] == 6 * 20_480


def test_a_database_of_before_pins_is_brought_up_to_date() -> None:
    """The tables that the upgrade touches, as they were in version 1."""
    old = sqlite3.connect(":memory:", isolation_level=None)
    old.executescript(
        "CREATE TABLE block(id BLOB PRIMARY KEY, size INTEGER NOT NULL, dirty INTEGER,"
        " refs INTEGER NOT NULL, synced INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE INDEX block_clean ON block(used) WHERE dirty IS NULL;"
        "CREATE TABLE usage(local_bytes INTEGER NOT NULL);"
        "INSERT INTO usage VALUES(20480);"
        "INSERT INTO block VALUES(x'01', 20000, NULL, 0, 1, 1);"
    )
    old.executescript(schema.UPGRADES[1])
    marked = "SELECT pinned_blocks, pinned_bytes FROM usage"
    assert old.execute(marked).fetchall() == [(0, 0)]
    old.execute("UPDATE block SET pinned = 1")
    assert old.execute(marked).fetchall() == [(1, 20480)]
    old.execute("DELETE FROM block")
    assert old.execute(marked).fetchall() == [(0, 0)]
    plan = old.execute(
        "EXPLAIN QUERY PLAN SELECT id FROM block WHERE dirty IS NULL AND pinned = 0 ORDER BY used"
    ).fetchall()
    assert "block_clean" in str(plan) and "TEMP B-TREE" not in str(plan)
    old.close()
