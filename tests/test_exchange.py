"""Publishing, recovering, following and taking over, on a real tree and a remote in memory."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncer.codec import HOLE, split_ids
from syncer.errors import (
    AccessError,
    CorruptError,
    DisplacedError,
    ExistsError,
    ForeignError,
    FormatError,
    MissingError,
    OfflineError,
    RemoteFullError,
    SyncerError,
    TemporaryError,
    UsageError,
)
from syncer.exchange import checkpoint, outgoing, publish, recover, writers
from syncer.exchange.incoming import Touched
from syncer.exchange.loop import ExchangeLoop
from syncer.exchange.publish import Publisher
from syncer.exchange.recover import clone
from syncer.exchange.roles import Exchange
from syncer.exchange.wire import (
    decode_json,
    decode_segment,
    encode_json,
    encode_segment,
    parse_span,
    segment_key,
)
from syncer.exchange.writers import (
    Writers,
    init_repository,
    new_machine,
    read_repository,
    set_up_database,
)
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.node import ROOT, Node
from syncer.metadata.outbox import Outbox
from syncer.metadata.tree import Tree
from syncer.remote import open_remote
from syncer.remote.base import Payload
from tests.memory_remote import ERRORS, MemoryRemote


class Machine:
    """A data directory with a real tree, and the exchange on top of it."""

    def __init__(self, path: Path, remote: MemoryRemote, name: str) -> None:
        self.path = path
        self.remote = remote
        self.name = name
        self.applied: list[Touched | None] = []
        self.open()

    def open(self) -> None:
        self.db = Database(self.path)
        self.epochs = Epochs(self.db)
        self.contents = Contents(self.db, self.epochs)
        self.tree = Tree(self.db, self.epochs, self.contents)
        self.exchange = Exchange(self.db, self.epochs, self.remote, self.name, self.on_applied)

    def on_applied(self, touched: Touched | None) -> None:
        self.tree.forget()
        self.applied.append(touched)

    def reopen(self) -> None:
        self.db.close()
        self.open()

    def node(self, number: int) -> Node:
        node = self.tree.node(number)
        assert node is not None
        return node

    def create(self, name: bytes, parent: int = ROOT, mode: int = stat.S_IFREG | 0o644) -> Node:
        return self.tree.create(self.node(parent), name, mode, 1000, 1000)

    def mkdir(self, name: bytes, parent: int = ROOT) -> Node:
        return self.create(name, parent, stat.S_IFDIR | 0o755)

    def epoch(self, *names: bytes) -> int:
        """One closed epoch in which files of these names came to be."""
        for name in names:
            self.create(name)
        return self.epochs.close()

    def publish(self) -> None:
        self.epochs.close()
        while self.exchange.publish_once():
            pass

    def names(self) -> set[bytes]:
        return {row[0] for row in self.db.query("SELECT name FROM name WHERE parent = 1")}

    def meta(self, key: str) -> Any:
        return self.db.get_meta(key)


@pytest.fixture
def remote() -> MemoryRemote:
    return MemoryRemote()


@pytest.fixture
def machines(tmp_path: Path, remote: MemoryRemote) -> Iterator[Callable[[str], Machine]]:
    """Makes machines by name: the first is the repository's writer, the others are clones."""
    made: list[Machine] = []

    def make(name: str) -> Machine:
        path = tmp_path / f"{name}.db"
        if made:
            clone(remote, path, name)
            machine = Machine(path, remote, name)
        else:
            number = new_machine()
            info = init_repository(remote, number, name)
            with closing(Database(path)) as db:
                set_up_database(db, info, number)
            machine = Machine(path, remote, name)
            machine.tree.make_root(1000, 1000)
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.db.close()


@pytest.fixture
def laptop(machines: Callable[[str], Machine]) -> Machine:
    return machines("laptop")


def state_at(db: Database, epoch: int) -> dict[str, list[Any]]:
    """What was true at an epoch, straight from the tables; atime left out, it has no history."""
    state: dict[str, list[Any]] = {}
    columns = {
        "node": "id, mode, uid, gid, rdev, nlink, size, mtime_ns, ctime_ns, btime_ns, target",
        "name": "parent, name, node",
        "content": "node, run, data",
        "xattr": "node, name, value",
    }
    for table, wanted in columns.items():
        state[table] = db.query(
            f"SELECT {wanted} FROM {table} WHERE born <= ?1 UNION ALL"
            f" SELECT {wanted} FROM {table}_past WHERE born <= ?1 AND died > ?1 ORDER BY 1, 2",
            (epoch,),
        )
    # Without a name, a file is nobody else's business.
    state["node"] = [row for row in state["node"] if row[5]]
    there = {row[0] for row in state["node"]}
    for table in ("content", "xattr"):
        state[table] = [row for row in state[table] if row[0] in there]
    return state


def assert_same_history(one: Machine, other: Machine) -> None:
    last = one.meta("published")
    assert other.meta("published") == last
    for epoch in range(1, last + 1):
        assert state_at(one.db, epoch) == state_at(other.db, epoch), f"epoch {epoch} differs"
    rows = "SELECT seq, machine, counter, time_ns FROM epoch WHERE seq <= ? ORDER BY seq"
    assert one.db.query(rows, (last,)) == other.db.query(rows, (last,))


def assert_usage_is_right(machine: Machine) -> None:
    (usage,) = machine.db.query("SELECT nodes, file_bytes, inline_bytes FROM usage")
    (nodes,) = machine.db.query("SELECT count(*), total(size * (mode & 61440 = 32768)) FROM node")
    (inline,) = machine.db.query(
        "SELECT total(length(data)) FROM (SELECT run, data FROM content UNION ALL"
        " SELECT run, data FROM content_past) WHERE run = -1"
    )
    assert usage == (*nodes, *inline)
    blocks: dict[int, int] = {}
    for node, run, data in machine.db.query("SELECT node, run, data FROM content"):
        filled = [data] if run < 0 else [key for key in split_ids(data) if key != HOLE]
        blocks[node] = blocks.get(node, 0) + sum(map(bool, filled))
    found = machine.db.query("SELECT id, blocks FROM node WHERE blocks")
    assert dict(found) == {node: count for node, count in blocks.items() if count}


def set_dirty(machine: Machine, block_id: bytes) -> None:
    with machine.db.transaction():
        machine.db.execute("INSERT INTO block VALUES(?, 9, 1, 1, 1, 1, 0)", (block_id,))


def set_clean(machine: Machine) -> None:
    with machine.db.transaction():
        machine.db.execute("UPDATE block SET dirty = NULL, refs = 0")


# The repository's description


def test_a_repository_is_described_once(remote: MemoryRemote) -> None:
    info = init_repository(remote, new_machine(), "laptop")
    assert read_repository(remote) == info
    with pytest.raises(ExistsError, match="clone"):
        init_repository(remote, new_machine(), "laptop")


def test_a_new_repository_has_the_place_of_its_writers_segments(tmp_path: Path) -> None:
    """Else the first publication would wait for it to be made."""
    machine = new_machine()
    remote = open_remote(str(tmp_path / "repository"))
    init_repository(remote, machine, "laptop")
    assert (tmp_path / "repository" / segment_key(machine, 1, 2)).parent.is_dir()
    remote.close()


@pytest.mark.parametrize("method", ["put", "create"])
def test_an_init_that_was_cut_off_goes_on(
    remote: MemoryRemote, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    calls = 0
    original = getattr(remote, method)

    def cut_off(key: str, data: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Crash
        original(key, data)

    with monkeypatch.context() as patched:
        patched.setattr(remote, method, cut_off)
        with pytest.raises(Crash):
            init_repository(remote, 5, "laptop")
    info = init_repository(remote, 6, "laptop")
    chain = Writers(remote, info).look()
    assert [(link.machine, link.after, link.end) for link in chain.links] == [(6, 0, None)]
    assert not chain.is_changing_hands


def test_there_is_nothing_to_clone_before_the_first_publication(
    laptop: Machine, tmp_path: Path
) -> None:
    with pytest.raises(MissingError, match="nothing was uploaded"):
        clone(laptop.remote, tmp_path / "clone.db", "clone")
    assert not list(tmp_path.glob("clone.db*"))


def test_a_folder_with_something_else_is_left_alone(remote: MemoryRemote) -> None:
    remote.put("holiday.jpg", b"jpeg")
    with pytest.raises(ForeignError):
        init_repository(remote, new_machine(), "laptop")
    with pytest.raises(ForeignError):
        read_repository(remote)
    assert remote.objects == {"holiday.jpg": b"jpeg"}


def test_an_empty_folder_holds_no_repository(remote: MemoryRemote) -> None:
    with pytest.raises(MissingError):
        read_repository(remote)


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        (b'"version": 1', b'"version": 2', FormatError),
        (b'"block_bytes": 1048576', b'"block_bytes": 4194304', FormatError),
        (b"xxh3-128", b"blake3", FormatError),
        (b'"version": 1', b'"version": "1"', CorruptError),
        (b'"seed": ', b'"seed": -', CorruptError),
        (b'"uuid": "', b'"uuid": "x', CorruptError),
        (b"{", b"", CorruptError),
        (b"{", b"[" * 60_000, CorruptError),
    ],
)
def test_a_description_that_can_not_be_is_refused(
    remote: MemoryRemote, before: bytes, after: bytes, error: type[Exception]
) -> None:
    init_repository(remote, new_machine(), "laptop")
    remote.damage("syncer.json", remote.objects["syncer.json"].replace(before, after, 1))
    with pytest.raises(error):
        read_repository(remote)


def test_machines_have_numbers_of_their_own(
    remote: MemoryRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_repository(remote, 5, "laptop")
    # The first draw has the same tag as the machine that is there.
    draws = iter([5 + (1 << 22) - 1, 6])
    monkeypatch.setattr(writers.secrets, "randbits", lambda bits: next(draws))
    assert new_machine(remote) == 6


# Publishing


def test_what_is_published_is_cloned(laptop: Machine, machines: Callable[[str], Machine]) -> None:
    folder = laptop.mkdir(b"photos")
    laptop.create(b"\xff\n odd", folder.id)
    laptop.epoch(b"a")
    laptop.tree.set_xattr(folder.id, b"user.comment", b"summer")
    laptop.publish()
    desktop = machines("desktop")
    assert desktop.exchange.role == "follower"
    assert_same_history(laptop, desktop)
    assert_usage_is_right(desktop)
    assert laptop.db.query("SELECT * FROM outbox") == []


def test_nothing_new_is_cheap(laptop: Machine, machines: Callable[[str], Machine]) -> None:
    laptop.publish()
    desktop = machines("desktop")
    desktop.exchange.follow()
    laptop.remote.calls.clear()
    assert not laptop.exchange.publish_once()
    assert not desktop.exchange.follow()
    assert laptop.remote.calls == {"list": 2}


def test_an_epoch_waits_for_its_blocks(laptop: Machine, machines: Callable[[str], Machine]) -> None:
    laptop.epoch(b"first")
    file = laptop.create(b"second")
    block = bytes(range(16))
    laptop.contents.set_blocks(file.id, {0: HOLE, 1: block})
    set_dirty(laptop, block)
    laptop.epochs.close()
    laptop.epoch(b"third")
    laptop.publish()
    assert machines("early").names() == {b"first"}
    set_clean(laptop)
    laptop.publish()
    late = machines("late")
    assert late.names() == {b"first", b"second", b"third"}
    assert_same_history(laptop, late)


def a_file_with_a_dirty_block(machine: Machine) -> None:
    file = machine.create(b"second")
    block = bytes(range(16))
    machine.contents.set_blocks(file.id, {0: block})
    set_dirty(machine, block)
    machine.epochs.close()


def test_who_waits_for_the_last_blocks_has_a_segment_that_waits_for_its_name(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.epoch(b"first")
    laptop.publish()
    a_file_with_a_dirty_block(laptop)
    logged = [key for key in laptop.remote.objects if key.startswith("log/")]
    waits: list[str] = []

    def wait() -> bool:
        assert [key for key in laptop.remote.objects if key.startswith("log/")] == logged
        waits.append("waits")
        set_clean(laptop)
        return True

    monkeypatch.setattr(laptop.exchange._publisher, "_wait_uploaded", wait)
    assert not laptop.exchange.step()
    assert not waits
    assert laptop.exchange.step(is_ahead=True)
    assert waits and laptop.exchange.status().unpublished == 0
    clone = machines("clone")
    assert clone.names() == {b"first", b"second"}
    assert_same_history(laptop, clone)


@pytest.mark.parametrize("what", ["takes too long", "is not enough"])
def test_a_segment_whose_blocks_do_not_come_gets_no_name(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    laptop.epoch(b"first")
    laptop.publish()
    a_file_with_a_dirty_block(laptop)
    before = dict(laptop.remote.objects)
    publisher = laptop.exchange._publisher
    monkeypatch.setattr(publisher, "_wait_uploaded", lambda: what == "is not enough")
    assert not laptop.exchange.step(is_ahead=True)
    assert laptop.remote.objects == before
    assert not laptop.exchange.status().error
    set_clean(laptop)
    assert laptop.exchange.step()
    assert laptop.exchange.status().unpublished == 0


def test_what_is_not_power_safe_here_is_not_published(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    """Or a power cut could take a file back behind what others have seen."""
    laptop.epoch(b"first")
    laptop.db.set_meta("durable", laptop.epochs.open - 1)
    laptop.epoch(b"second")
    laptop.publish()
    assert machines("early").names() == {b"first"}
    laptop.db.set_meta("durable", laptop.epochs.open - 1)
    laptop.publish()
    assert machines("late").names() == {b"first", b"second"}


def test_an_open_file_without_a_name_holds_up_nobody(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    """Its block is not uploaded as long as it need not be, and it is not published."""
    file = laptop.create(b"temporary")
    laptop.contents.set_blocks(file.id, {0: b"x" * 16})
    laptop.tree.unlink(ROOT, b"temporary", keep=True)
    set_dirty(laptop, b"x" * 16)
    laptop.epoch(b"other")
    laptop.publish()
    desktop = machines("desktop")
    assert desktop.db.query("SELECT id FROM node WHERE id = ?", (file.id,)) == []
    assert desktop.db.query("SELECT * FROM content") == []
    assert laptop.meta("published") == laptop.epochs.open - 1
    assert_same_history(laptop, desktop)


def test_an_orphan_that_gets_its_name_back_is_whole_again(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    file = laptop.create(b"kept")
    laptop.contents.set_blocks(file.id, {0: b"x" * 16})
    laptop.tree.set_xattr(file.id, b"user.a", b"1")
    laptop.publish()
    desktop = machines("desktop")
    laptop.tree.unlink(ROOT, b"kept", keep=True)
    laptop.publish()
    desktop.exchange.follow()
    assert desktop.names() == set()
    laptop.tree.restore_name(ROOT, b"kept", file.id)
    laptop.publish()
    desktop.exchange.follow()
    for machine in (desktop, machines("clone")):
        assert_same_history(laptop, machine)
        assert machine.contents.run(file.id, 0) == b"x" * 16


def test_a_large_epoch_is_seen_as_a_whole_or_not_at_all(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "TARGET_BYTES", 2000)
    laptop.publish()
    desktop = machines("desktop")
    laptop.epoch(*(b"%d" % number for number in range(100)))
    puts = 0
    put = laptop.remote.put

    def failing(key: str, data: Any) -> None:
        nonlocal puts
        puts += 1
        if puts == 5:
            raise OfflineError("cut")
        put(key, data)

    monkeypatch.setattr(laptop.remote, "put", failing)
    with pytest.raises(OfflineError):
        laptop.exchange.publish_once()
    assert not desktop.exchange.follow()
    # More has happened before the next attempt, so it has another range.
    laptop.epoch(b"more")
    laptop.publish()
    assert desktop.exchange.follow()
    assert_same_history(laptop, desktop)
    assert_same_history(laptop, machines("clone"))


def test_the_parts_of_a_segment_travel_together_and_its_head_behind_them(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "TARGET_BYTES", 2000)
    laptop.publish()
    laptop.epoch(*(b"%d" % number for number in range(100)))
    # Passed by two that are under way at the same time.
    together = threading.Barrier(2)
    begun = itertools.count()
    put, done = laptop.remote.put, []

    def waiting(key: str, data: Any) -> bool:
        if next(begun) < 2:
            together.wait(10)
        is_safe = put(key, data)
        done.append(key)
        return is_safe

    monkeypatch.setattr(laptop.remote, "put", waiting)
    assert laptop.exchange.publish_once()
    *parts, head = done
    assert len(parts) > 2
    assert {part.rpartition(".")[0] for part in parts} == {head}


def test_what_has_been_made_of_epochs_before_is_published_as_it_is(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.publish()
    laptop.epoch(b"new")
    publisher = laptop.exchange._publisher
    publication = publisher._prepare(is_ahead=False)
    assert publication is not None
    monkeypatch.setattr(publisher, "_ready_objects", lambda *_: publication.objects)
    monkeypatch.setattr(publish, "segment_objects", lambda *_: pytest.fail("made once more"))
    laptop.publish()
    assert laptop.remote.objects[publication.key] == publication.objects[-1][1]


def test_epochs_are_gathered_and_parted(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.publish()
    monkeypatch.setattr(publish, "_SEGMENT_KEYS", 10)
    for number in range(20):
        laptop.epoch(b"%d" % number)
    laptop.publish()
    segments = [key for key in laptop.remote.objects if key.startswith("log/")]
    assert 3 < len(segments) < 15
    assert_same_history(laptop, machines("clone"))


@pytest.mark.parametrize("step", ["after the segment", "before the segment"])
def test_a_crash_while_publishing_does_no_harm(
    laptop: Machine,
    machines: Callable[[str], Machine],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    laptop.publish()
    desktop = machines("desktop")
    laptop.epoch(b"a")
    with monkeypatch.context() as patched:
        if step == "after the segment":
            patched.setattr(Publisher, "_commit", _crash)
        else:
            patched.setattr(laptop.remote, "put", _crash)
        with pytest.raises(Crash):
            laptop.exchange.publish_once()
    laptop.reopen()
    laptop.epoch(b"b")
    laptop.publish()
    desktop.exchange.follow()
    assert desktop.names() == {b"a", b"b"}
    assert_same_history(laptop, desktop)
    spans = sorted(
        span for key in laptop.remote.objects if (span := parse_span(key.rpartition("/")[2]))
    )
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(spans))


def test_a_segment_whose_answer_was_lost_is_published_once(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is cut after the server has stored it, and before this machine learns of it."""
    put = laptop.remote.put

    def put_and_lose_the_answer(key: str, data: Payload) -> None:
        put(key, data)
        if key.startswith("log/"):
            raise OfflineError("cut")

    laptop.epoch(b"a")
    monkeypatch.setattr(laptop.remote, "put", put_and_lose_the_answer)
    with pytest.raises(OfflineError):
        laptop.exchange.publish_once()
    monkeypatch.undo()
    # By the next attempt there is more to publish.
    laptop.epoch(b"b")
    laptop.publish()
    segments = [key for key in laptop.remote.objects if key.startswith("log/")]
    spans = sorted(filter(None, (parse_span(key.rpartition("/")[2]) for key in segments)))
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(spans))
    assert machines("clone").names() == {b"a", b"b"}


class Crash(BaseException):
    """The process ended here."""


def _crash(*_args: Any, **_kwargs: Any) -> None:
    raise Crash


@pytest.mark.parametrize("loss", ["segment", "content", "chunk"])
def test_what_a_server_lost_that_can_not_sync_is_made_up_for(
    laptop: Machine, machines: Callable[[str], Machine], loss: str
) -> None:
    laptop.remote.is_durable = False
    laptop.epoch(b"first")
    laptop.publish()
    log = sorted(key for key in laptop.remote.objects if key.startswith("log/"))
    if loss == "content":
        laptop.remote.damage(log[-1], b"")
    else:
        laptop.remote.delete(log[-1])
    if loss == "chunk":
        laptop.exchange.checkpoint()
        laptop.remote.delete(min(key for key in laptop.remote.objects if "/chunks/" in key))
    laptop.exchange.step()
    assert not laptop.exchange._publisher.backlog.is_void, "nothing has had its time yet"
    now = time.monotonic()
    laptop.exchange._publisher._settling._clock = lambda: now + 60
    while laptop.exchange.step():
        pass
    assert_same_history(laptop, machines("clone"))


def test_what_is_published_is_power_safe_first(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, put = laptop.db.sync, laptop.remote.put
    monkeypatch.setattr(laptop.db, "sync", lambda: (calls.append("sync"), sync()))
    monkeypatch.setattr(
        laptop.remote, "put", lambda key, data: (calls.append(key.split("/")[0]), put(key, data))
    )
    laptop.publish()
    assert calls == ["sync", "writers", "machines", "sync", "log"]
    # Also where the blocks are still on their way.
    a_file_with_a_dirty_block(laptop)
    monkeypatch.setattr(
        laptop.exchange._publisher, "_wait_uploaded", lambda: (set_clean(laptop), True)[1]
    )
    calls.clear()
    assert laptop.exchange.publish_once(is_ahead=True)
    assert calls == ["sync", "log"]


def copy_of(machine: Machine, path: Path) -> Machine:
    """The data directory as it is on the disk, under another path."""
    machine.db.close()
    path.write_bytes(machine.path.read_bytes())
    machine.open()
    return Machine(path, machine.remote, "copy")


def test_a_copied_data_directory_gets_a_machine_id_of_its_own(
    laptop: Machine, tmp_path: Path
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    copy = copy_of(laptop, tmp_path / "copy.db")
    laptop.epoch(b"b")
    laptop.publish()
    copy.epoch(b"c")
    logged = {key for key in laptop.remote.objects if key.startswith("log/")}
    with closing(copy.db):
        with pytest.raises(DisplacedError, match="copy"):
            copy.exchange.publish_once()
        assert copy.exchange.role == "displaced"
        assert Outbox(copy.db).count().changes
        assert copy.meta("machine") != laptop.meta("machine")
        copy.reopen()
        assert copy.exchange.role == "displaced", "what it has of its own is kept"
        assert b"c" in copy.names()
        # It can neither publish nor delete.
        for call in (copy.exchange.step, copy.exchange.publish_once, copy.exchange.checkpoint):
            with pytest.raises(DisplacedError):
                call()
    assert {key for key in laptop.remote.objects if key.startswith("log/")} == logged
    laptop.epoch(b"d")
    laptop.publish()
    assert laptop.exchange.role == "writer"


def test_a_writer_whose_copy_began_later_is_the_one_that_goes(
    laptop: Machine, tmp_path: Path
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    copy = copy_of(laptop, tmp_path / "copy.db")
    with closing(copy.db):
        # As after a restart, so it is taken for the machine itself.
        copy.epoch(b"c")
        copy.publish()
        laptop.epoch(b"b")
        with pytest.raises(DisplacedError, match="copy"):
            laptop.publish()
        copy.epoch(b"d")
        copy.publish()
        assert copy.exchange.role == "writer"
    assert laptop.exchange.role == "displaced"


def test_a_writer_whose_copy_begins_before_its_segment_has_a_name_counts_it_not(
    laptop: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has not seen that segment, and has written one with the same name."""
    laptop.epoch(b"a")
    laptop.publish()
    laptop.db.sync()
    for end in ("", "-wal"):
        # Another process: who closes a file loses this one's locks of it.
        subprocess.run(["cp", f"{laptop.path}{end}", tmp_path / f"copy.db{end}"], check=True)
    copy = Machine(tmp_path / "copy.db", laptop.remote, "copy")
    laptop.epoch(b"b")
    put = laptop.remote.put

    def put_after_the_copys(key: str, data: Any) -> bool:
        monkeypatch.setattr(laptop.remote, "put", put)
        copy.epoch(b"c")
        copy.publish()
        return put(key, data)

    with closing(copy.db):
        monkeypatch.setattr(laptop.remote, "put", put_after_the_copys)
        with pytest.raises(DisplacedError, match="copy"):
            laptop.exchange.publish_once()
        assert laptop.exchange.role == "displaced"
        assert laptop.exchange.status().unpublished == 1
        assert copy.exchange.role == "writer"


def test_a_mark_that_is_gone_by_itself_displaces_nobody(laptop: Machine) -> None:
    laptop.publish()
    for key in [key for key in laptop.remote.objects if "." in key and key.startswith("writers/")]:
        if not key.endswith(".start"):
            laptop.remote.delete(key)
    laptop.epoch(b"a")
    laptop.publish()
    assert (laptop.exchange.role, laptop.exchange.status().unpublished) == ("writer", 0)


def test_a_copy_without_changes_of_its_own_follows(laptop: Machine, tmp_path: Path) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    copy = copy_of(laptop, tmp_path / "copy.db")
    laptop.epoch(b"b")
    laptop.publish()
    with closing(copy.db):
        with pytest.raises(DisplacedError):
            copy.exchange.step()
        copy.reopen()
        copy.exchange.step()
        assert copy.exchange.role == "follower"
        assert copy.names() == {b"a", b"b"}
        copy.exchange.take_over()
        copy.reopen()
        copy.epoch(b"e")
        copy.publish()
        with pytest.raises(DisplacedError):
            laptop.exchange.check_writer()


def test_a_copied_follower_gets_a_machine_id_of_its_own(
    laptop: Machine, machines: Callable[[str], Machine], tmp_path: Path
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    clone = machines("clone")
    clone.exchange.step()
    copy = copy_of(clone, tmp_path / "copy.db")
    with closing(copy.db):
        copy.exchange.step()
        clone.exchange.step()
        laptop.epoch(b"b")
        laptop.publish()
        for each in (copy, clone):
            each.exchange.step()
            assert each.exchange.role == "follower"
            assert each.names() == {b"a", b"b"}
        assert copy.meta("machine") != clone.meta("machine")


@pytest.mark.parametrize("call", ["list", "put", "delete"])
def test_a_crash_while_a_mark_is_left_makes_no_copy_of_anyone(laptop: Machine, call: str) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    for times in range(1, 4):
        laptop.reopen()
        laptop.remote.fail(call, OfflineError("cut"), times)
        for _ in range(times):
            with contextlib.suppress(OfflineError):
                laptop.exchange.publish_once()
            laptop.remote.check()
        laptop.reopen()
        laptop.publish()
        assert laptop.exchange.role == "writer"


def test_a_remote_that_was_restored_makes_no_copy_of_anyone(laptop: Machine) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    backup = laptop.remote.objects
    laptop.reopen()
    laptop.epoch(b"b")
    laptop.publish()
    for key in laptop.remote.objects.keys() - backup.keys():
        laptop.remote.delete(key)
    for key, content in backup.items():
        laptop.remote.put(key, content)
    laptop.reopen()
    laptop.epoch(b"c")
    laptop.publish()
    assert laptop.exchange.role == "writer"


def test_a_remote_that_lost_its_log_gets_a_checkpoint(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    for key in laptop.remote.objects:
        if key.startswith("log/"):
            laptop.remote.delete(key)
    laptop.reopen()
    laptop.epoch(b"b")
    while laptop.exchange.step():
        pass
    assert_same_history(laptop, machines("clone"))


def test_a_segment_that_goes_on_from_one_that_is_gone_gets_a_checkpoint(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    laptop.epoch(b"b")
    laptop.publish()
    laptop.remote.delete(laptop.meta("parent_segment"))
    laptop.epoch(b"c")
    assert laptop.exchange.publish_once()
    assert laptop.exchange.setback
    while laptop.exchange.step():
        pass
    assert not laptop.exchange.setback
    assert_same_history(laptop, machines("clone"))


def test_a_remote_that_was_away_is_looked_at_before_more_is_published(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.exchange.roles._LOOK_SECONDS", 0.0)
    laptop.epoch(b"a")
    laptop.publish()
    laptop.epoch(b"b")
    laptop.publish()
    newest = laptop.meta("parent_segment")
    laptop.remote.go_offline()
    with pytest.raises(OfflineError):
        laptop.exchange.step()
    laptop.remote.go_online()
    laptop.remote.check()
    laptop.remote.delete(newest)
    laptop.epoch(b"c")
    laptop.exchange.publish_once()
    assert laptop.meta("parent_segment") == newest
    while laptop.exchange.step():
        pass
    assert laptop.meta("parent_segment") != newest
    assert_same_history(laptop, machines("clone"))


def test_a_mark_that_is_gone_has_the_remote_looked_at(laptop: Machine) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    (mark,) = (key for key in laptop.remote.objects if re.search(r"\.[0-9a-f]{32}$", key))
    laptop.remote.delete(mark)
    listed: list[int] = []
    laptop.exchange._setback._redo_blocks = lambda first_byte, sizes: listed.append(first_byte)
    laptop.exchange.check_writer()
    while laptop.exchange.step():
        pass
    assert listed == list(range(256))
    assert laptop.exchange.role == "writer"
    assert sum(bool(re.search(r"\.[0-9a-f]{32}$", key)) for key in laptop.remote.objects) == 1


@pytest.mark.parametrize("is_claimed_again", [False, True])
def test_a_writer_whose_claim_is_gone_writes_no_more(
    laptop: Machine, machines: Callable[[str], Machine], is_claimed_again: bool
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    before = laptop.remote.objects
    desktop.exchange.take_over()
    desktop.epoch(b"b")
    desktop.publish()
    for key in laptop.remote.objects.keys() - before.keys():
        laptop.remote.delete(key)
    if is_claimed_again:
        phone.exchange.take_over()
    there = laptop.remote.objects.keys()
    desktop.epoch(b"c")
    with pytest.raises(CorruptError, match="has lost who"):
        desktop.publish()
    assert laptop.remote.objects.keys() == there
    assert desktop.exchange.setback
    # What it has published itself is not forgotten over what the remote has.
    desktop.reopen()
    with pytest.raises(CorruptError, match="has lost who"):
        desktop.exchange.step()
    assert b"b" in desktop.names()


# Following


def test_a_follower_tells_what_was_touched(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.publish()
    desktop = machines("desktop")
    file = laptop.create(b"a")
    laptop.publish()
    assert desktop.exchange.follow()
    (touched,) = desktop.applied
    assert touched is not None
    assert (ROOT, b"a") in touched.entries
    assert touched.nodes == {ROOT, file.id}
    assert desktop.tree.lookup(ROOT, b"a") == file.id


def test_a_follower_that_was_away_for_long_reloads(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_GRACE_SECONDS", -1.0)
    laptop.publish()
    desktop = machines("desktop")
    for name in (b"a", b"b", b"c"):
        laptop.epoch(name)
        laptop.publish()
        laptop.exchange.checkpoint()
    laptop.tree.unlink(ROOT, b"a", keep=False)
    laptop.publish()
    assert desktop.exchange.follow()
    assert None in desktop.applied
    assert_same_history(laptop, desktop)
    assert_usage_is_right(desktop)
    assert sorted(path.name for path in desktop.path.parent.glob("desktop.db*")) == [
        "desktop.db",
        "desktop.db-redo",
        "desktop.db-shm",
        "desktop.db-wal",
    ]
    laptop.epoch(b"d")
    laptop.publish()
    assert desktop.exchange.follow()
    assert desktop.names() == {b"b", b"c", b"d"}


def test_a_damaged_segment_changes_nothing(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.publish()
    desktop = machines("desktop")
    laptop.epoch(b"a")
    laptop.publish()
    key = str(laptop.meta("parent_segment"))
    good = laptop.remote.objects[key]
    laptop.remote.damage(key, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptError, match=key):
        desktop.exchange.follow()
    assert desktop.names() == set()
    laptop.remote.damage(key, good)
    assert desktop.exchange.follow()


def _cycle(rows: Any) -> None:
    """photos/ and old/ lie in each other."""
    names = rows.versions["name"]
    names[:] = [(names[1][4], *names[0][1:]), (names[0][4], *names[1][1:])]


def _second_name(rows: Any) -> None:
    names = rows.versions["name"]
    names.append((ROOT, b"again", *names[0][2:]))


def _in_a_file(rows: Any) -> None:
    node = rows.versions["node"][-1]
    rows.versions["node"][-1] = (*node[:3], stat.S_IFREG | 0o644, *node[4:])
    names = rows.versions["name"]
    names.append((node[0], b"below", names[0][2], 0, node[0] - 1))


def _to_nothing(rows: Any) -> None:
    rows.versions["node"].pop()


def _end_of_nothing(rows: Any) -> None:
    rows.ends["name"].append((ROOT, b"nothing", rows.versions["name"][0][2]))


def _twice(rows: Any) -> None:
    rows.versions["name"].append(rows.versions["name"][0])


def _root_goes(rows: Any) -> None:
    rows.versions["node"] = [row for row in rows.versions["node"] if row[0] != ROOT]


@pytest.mark.parametrize(
    "spoil",
    [_cycle, _second_name, _in_a_file, _to_nothing, _end_of_nothing, _twice, _root_goes],
)
def test_rows_that_make_no_tree_are_refused(
    laptop: Machine,
    machines: Callable[[str], Machine],
    tmp_path: Path,
    spoil: Callable[[Any], None],
) -> None:
    laptop.publish()
    desktop = machines("desktop")
    laptop.mkdir(b"photos")
    laptop.mkdir(b"old")
    laptop.publish()
    seed = laptop.meta("seed")
    key = str(laptop.meta("parent_segment"))
    segment = decode_segment(laptop.remote.objects[key], seed, key)
    spoil(segment.rows)
    laptop.remote.damage(key, encode_segment(segment, seed))
    before = state_at(desktop.db, 1000)
    with pytest.raises(CorruptError):
        desktop.exchange.follow()
    assert state_at(desktop.db, 1000) == before
    with pytest.raises(CorruptError):
        clone(laptop.remote, tmp_path / "clone.db", "clone")
    assert not list(tmp_path.glob("clone.db*"))


@pytest.mark.parametrize("change", [{"parent": "log/x"}, {"generation": 7}, {"uuid": "other"}])
def test_a_segment_of_another_chain_is_refused(
    laptop: Machine, machines: Callable[[str], Machine], change: dict[str, Any]
) -> None:
    laptop.publish()
    desktop = machines("desktop")
    laptop.epoch(b"a")
    laptop.publish()
    seed = laptop.meta("seed")
    key = str(laptop.meta("parent_segment"))
    segment = replace(decode_segment(laptop.remote.objects[key], seed, key), **change)
    laptop.remote.damage(key, encode_segment(segment, seed))
    with pytest.raises(CorruptError, match=key):
        desktop.exchange.follow()
    assert desktop.names() == set()


# Taking over


def test_taking_over_displaces_the_writer(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    laptop.epoch(b"published before")
    laptop.publish()
    desktop.exchange.take_over()
    assert desktop.exchange.role == "writer"
    laptop.epoch(b"stranded")
    with pytest.raises(DisplacedError, match="desktop has become"):
        laptop.exchange.publish_once()
    status = laptop.exchange.status()
    assert (status.role, status.unpublished, status.writer) == ("displaced", 1, "desktop")
    # The file, its name, and the directory's times.
    assert Outbox(laptop.db).count().changes == 3
    assert laptop.names() == {b"a", b"published before", b"stranded"}
    file = desktop.create(b"by desktop")
    desktop.publish()
    assert file.id == desktop.meta("next_node") - 1024
    phone.exchange.follow()
    assert phone.names() == {b"a", b"published before", b"by desktop"}
    assert_same_history(desktop, phone)
    assert_same_history(desktop, machines("tablet"))
    with pytest.raises(UsageError, match="syncer export"):
        laptop.exchange.take_over()
    laptop.reopen()
    assert laptop.exchange.role == "displaced"
    with pytest.raises(DisplacedError):
        laptop.exchange.publish_once()


@pytest.mark.parametrize("is_written", [False, True])
def test_a_displaced_writer_with_nothing_but_a_removed_file_follows(
    laptop: Machine, machines: Callable[[str], Machine], is_written: bool
) -> None:
    laptop.epoch(b"a", b"open")
    laptop.publish()
    laptop.tree.unlink(ROOT, b"open", keep=True)
    laptop.publish()
    (orphan,) = laptop.tree.orphans()
    if is_written:
        laptop.contents.set_blocks(orphan, {0: b"x" * 16})
        laptop.epochs.close()
    desktop = machines("desktop")
    desktop.exchange.take_over()
    desktop.epoch(b"b")
    desktop.publish()
    with pytest.raises(DisplacedError):
        laptop.exchange.check_writer()
    # While a program has it open, or the next start has not removed it yet, nothing happens to it.
    assert not laptop.exchange.step()
    laptop.reopen()
    assert laptop.exchange.role == "displaced"
    laptop.tree.remove_orphan(orphan)
    laptop.epochs.close()
    with pytest.raises(DisplacedError):
        laptop.exchange.step()
    assert laptop.exchange.step()
    status = laptop.exchange.status()
    assert (status.role, status.error) == ("follower", "")
    assert not laptop.db.query("SELECT * FROM outbox")
    assert laptop.names() == {b"a", b"b"}
    desktop.epoch(b"c")
    desktop.publish()
    laptop.reopen()
    assert laptop.exchange.step()
    assert_same_history(desktop, laptop)
    assert_usage_is_right(laptop)


def test_a_segment_in_flight_during_the_claim_is_counted_by_both_or_by_none(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    laptop.epoch(b"in time")
    put = laptop.remote.put

    def put_after_claim(key: str, data: Any) -> None:
        if key.startswith("log/"):
            Writers(laptop.remote, read_repository(laptop.remote)).claim(
                desktop.meta("machine"), "desktop"
            )
        put(key, data)

    with monkeypatch.context() as patched:
        patched.setattr(laptop.remote, "put", put_after_claim)
        with pytest.raises(DisplacedError):
            laptop.exchange.publish_once()
    assert laptop.exchange.status().unpublished
    # As long as the claim has no start, nobody can know whether the segment counts.
    assert not phone.exchange.follow()
    desktop.exchange.take_over()
    assert desktop.names() == {b"in time"}
    with pytest.raises(DisplacedError):
        laptop.exchange.step()
    assert not laptop.exchange.status().unpublished
    phone.exchange.follow()
    assert phone.names() == {b"in time"}


def test_a_segment_that_comes_too_late_is_a_branch(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    laptop.epoch(b"too late")
    put = laptop.remote.put

    def put_after_start(key: str, data: Any) -> None:
        if key.startswith("log/"):
            with monkeypatch.context() as inner:
                inner.setattr(laptop.remote, "put", put)
                desktop.exchange.take_over()
        put(key, data)

    with monkeypatch.context() as patched:
        patched.setattr(laptop.remote, "put", put_after_start)
        with pytest.raises(DisplacedError):
            laptop.exchange.publish_once()
    assert laptop.exchange.status().unpublished == 1
    desktop.epoch(b"by desktop")
    desktop.publish()
    phone.exchange.follow()
    assert phone.names() == {b"by desktop"}
    tablet = machines("tablet")
    assert tablet.names() == {b"by desktop"}
    tablet.exchange.follow()
    assert_same_history(desktop, tablet)


def looks_and_puts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on: "look" for each whole look who the writer is, "put" for each object of the log,
    "claim", "mark" and "newest" for each look for these, the last for the segment before."""
    done: list[str] = []
    list_objects, put, stat_object = machine.remote.list, machine.remote.put, machine.remote.stat

    def noting_list(prefix: str) -> Any:
        if prefix == "writers":
            done.append("look")
        return list_objects(prefix)

    def noting_put(key: str, data: Any) -> bool:
        if key.startswith("log/"):
            done.append("put")
        return put(key, data)

    def noting_stat(key: str) -> Any:
        done.append("newest" if key.startswith("log/") else "mark" if "." in key else "claim")
        return stat_object(key)

    monkeypatch.setattr(machine.remote, "list", noting_list)
    monkeypatch.setattr(machine.remote, "put", noting_put)
    monkeypatch.setattr(machine.remote, "stat", noting_stat)
    return done


def test_a_look_ahead_counts_for_a_moment_and_once(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    now = time.monotonic()
    monkeypatch.setattr("syncer.exchange.roles.time.monotonic", lambda: now)
    done = looks_and_puts(laptop, monkeypatch)
    # There is nothing to publish yet; who asks for it again and again looks once a second.
    for _ in range(5):
        assert not laptop.exchange.step(looks_ahead=True)
    assert done == ["look"]
    laptop.epoch(b"b")
    assert laptop.exchange.step()
    assert done == ["look", "put", "claim", "mark", "newest"]
    done.clear()
    laptop.epoch(b"c")
    assert laptop.exchange.step()
    assert done == ["look", "put", "claim", "mark", "newest"]
    done.clear()
    laptop.exchange.step(looks_ahead=True)
    now += 1.5
    laptop.epoch(b"d")
    assert laptop.exchange.step()
    assert done == ["look", "look", "put", "claim", "mark", "newest"]


def test_who_is_displaced_behind_a_look_ahead_counts_nothing_as_published(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    assert not laptop.exchange.step(looks_ahead=True)
    desktop.exchange.take_over()
    laptop.epoch(b"too late")
    with pytest.raises(DisplacedError):
        laptop.exchange.step()
    assert (laptop.exchange.role, laptop.exchange.status().unpublished) == ("displaced", 1)
    desktop.epoch(b"by desktop")
    desktop.publish()
    phone.exchange.follow()
    assert phone.names() == {b"a", b"by desktop"}
    assert_same_history(desktop, machines("tablet"))


def test_a_displaced_writer_learns_of_it_by_a_look_ahead_and_writes_nothing(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    machines("desktop").exchange.take_over()
    laptop.epoch(b"stranded")
    done = looks_and_puts(laptop, monkeypatch)
    with pytest.raises(DisplacedError):
        laptop.exchange.step(looks_ahead=True)
    assert "put" not in done
    assert "desktop" in laptop.exchange.status().error


def test_a_change_of_hands_between_two_looks_mixes_nothing(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower looks twice, at the log and at the writers; all of it happens in between."""
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    laptop.epoch(b"too late")
    late: list[tuple[str, bytes]] = []
    with monkeypatch.context() as patched:
        patched.setattr(laptop.remote, "put", lambda key, data: late.append((key, data)))
        laptop.exchange.publish_once()
    phone.exchange.follow()
    looks = 0
    list_objects = laptop.remote.list

    def list_and_change_hands(prefix: str) -> Any:
        nonlocal looks
        looks += 1
        found = list(list_objects(prefix))
        if looks == 1:
            with monkeypatch.context() as inner:
                inner.setattr(laptop.remote, "list", list_objects)
                desktop.exchange.take_over()
            for key, data in late:
                laptop.remote.put(key, data)
        return iter(found)

    with monkeypatch.context() as patched:
        patched.setattr(laptop.remote, "list", list_and_change_hands)
        phone.exchange.follow()
    assert looks >= 2
    assert phone.names() == set()
    desktop.epoch(b"by desktop")
    desktop.publish()
    phone.exchange.follow()
    assert phone.names() == {b"by desktop"}


def test_of_two_that_take_over_at_once_one_wins(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    create = laptop.remote.create

    def second(key: str, data: Any) -> None:
        with monkeypatch.context() as inner:
            inner.setattr(laptop.remote, "create", create)
            phone.exchange.take_over()
        create(key, data)

    with monkeypatch.context() as patched:
        patched.setattr(laptop.remote, "create", second)
        with pytest.raises(DisplacedError, match="phone"):
            desktop.exchange.take_over()
    assert (desktop.exchange.role, phone.exchange.role) == ("follower", "writer")
    phone.epoch(b"a")
    phone.publish()
    desktop.exchange.follow()
    assert_same_history(phone, desktop)


@pytest.mark.parametrize("step", ["claim", "start"])
def test_a_crash_while_taking_over_is_repaired_by_the_next_attempt(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    settle = Writers.settle

    def crash(self: Writers, *args: Any) -> None:
        if step == "start":
            settle(self, *args)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(Writers, "settle", crash)
        with pytest.raises(Crash):
            desktop.exchange.take_over()
    desktop.reopen()
    assert desktop.exchange.role == "follower"
    desktop.exchange.take_over()
    desktop.epoch(b"b")
    desktop.publish()
    assert desktop.meta("generation") == 2
    phone.exchange.follow()
    assert phone.names() == {b"a", b"b"}


def take_over_third(desktop: Machine, phone: Machine) -> None:
    """`desktop` takes over after a second claim that came to nothing, and `phone` sees that."""
    desktop.exchange.take_over()
    desktop.epoch(b"b")
    desktop.publish()
    phone.exchange.follow()
    assert phone.names() == {b"a", b"b"}
    assert phone.meta("generation") == 3


def test_a_claim_that_its_machine_left_behind_is_passed_over(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    Writers(laptop.remote, read_repository(laptop.remote)).claim(99, "lost")
    with pytest.raises(DisplacedError, match="lost"):
        laptop.exchange.check_writer()
    take_over_third(desktop, phone)


def test_an_empty_claim_is_passed_over_and_its_maker_displaced_should_it_live(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that has neither hard links nor a rename that does not replace."""
    laptop.epoch(b"a")
    laptop.publish()
    desktop, phone, slow = machines("desktop"), machines("phone"), machines("slow")
    laptop.remote.create("writers/00000002", b"")
    with pytest.raises(DisplacedError, match="another computer"):
        laptop.exchange.check_writer()
    follow = Exchange.follow

    def wake_up(exchange: Exchange) -> object:
        # What it had begun is done now: the claim has its content.
        monkeypatch.undo()
        body = encode_json(uuid=slow.meta("uuid"), machine=slow.meta("machine"), name="slow")
        laptop.remote.put("writers/00000002", body)
        return follow(exchange)

    monkeypatch.setattr(Exchange, "follow", wake_up)
    take_over_third(desktop, phone)
    with pytest.raises(DisplacedError):
        Writers(laptop.remote, read_repository(laptop.remote)).settle(2, 1, 1, "")


@pytest.mark.parametrize("key", ["writers/00000001", "writers/00000002"])
def test_a_claim_that_counts_and_is_empty_is_damage(
    laptop: Machine, machines: Callable[[str], Machine], key: str
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    desktop, phone = machines("desktop"), machines("phone")
    desktop.exchange.take_over()
    desktop.epoch(b"b")
    desktop.publish()
    laptop.remote.put(key, b"")
    with pytest.raises(CorruptError, match=key):
        phone.exchange.take_over()


def test_a_machine_whose_numbers_are_taken_gets_others(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.publish()
    desktop = machines("desktop")
    desktop.db.set_meta("machine", laptop.meta("machine") + (1 << 22) - 1)
    desktop.exchange.take_over()
    file = desktop.create(b"a")
    assert file.id >> 40 != laptop.meta("next_node") >> 40
    desktop.publish()
    assert_same_history(desktop, machines("phone"))


# Checkpoints


def test_a_checkpoint_and_what_came_after_are_everything(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    folder = laptop.mkdir(b"photos")
    laptop.epoch(b"a", b"b")
    laptop.publish()
    laptop.tree.unlink(ROOT, b"a", keep=False)
    laptop.contents.set_inline(laptop.create(b"c").id, b"tiny")
    # Not published yet, so not in the checkpoint, though the tables have it.
    laptop.epochs.close()
    laptop.exchange.checkpoint()
    laptop.create(b"d", folder.id)
    laptop.publish()
    desktop = machines("desktop")
    assert_same_history(laptop, desktop)
    assert_usage_is_right(desktop)


def test_a_checkpoint_costs_what_changed(laptop: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_STEP_RANGES", 2)
    folders = [laptop.mkdir(b"%d" % number) for number in range(9)]
    laptop.epochs.close()
    for number, folder in enumerate(folders):
        # Far enough apart to be in ranges of their own.
        laptop.tree._node_numbers = iter(range(0))
        laptop.db.set_meta("next_node", folders[-1].id + (number + 1) * 4096)
        laptop.create(b"file", folder.id)
    laptop.publish()
    laptop.exchange.checkpoint()
    before = set(laptop.remote.objects)
    file = laptop.tree.lookup(folders[3].id, b"file")
    assert file is not None
    laptop.tree.set_xattr(file, b"user.a", b"1")
    laptop.publish()
    laptop.exchange.checkpoint()
    new = [key for key in laptop.remote.objects if key not in before]
    # The range of the file, that of the epochs, the manifest, and the segment.
    assert len([key for key in new if "/chunks/" in key]) == 2
    assert len(new) == 4


def test_who_waits_for_a_publication_does_not_wait_for_a_checkpoint(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_DUE_SEGMENTS", 1)
    laptop.epoch(b"a")

    def checkpoints() -> list[str]:
        return [key for key in laptop.remote.objects if key.startswith("checkpoint/")]

    assert laptop.exchange.step()
    assert not laptop.exchange.status().unpublished
    assert not checkpoints()
    assert laptop.exchange.step()
    assert checkpoints()
    assert not laptop.exchange.step()


def test_old_checkpoints_and_segments_go(
    laptop: Machine, machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_GRACE_SECONDS", -1.0)
    for number in range(5):
        laptop.epoch(b"%d" % number)
        laptop.publish()
        laptop.exchange.checkpoint()
    keys = list(laptop.remote.objects)
    assert len([key for key in keys if key.startswith("log/")]) == 1
    assert len([key for key in keys if key.startswith("checkpoint/") and "chunks" not in key]) == 2
    # Two ranges at each of two epochs, and the epochs themselves.
    assert len([key for key in keys if "/chunks/" in key]) == 6
    assert_same_history(laptop, machines("clone"))


def test_checkpoints_that_are_being_read_stay(laptop: Machine) -> None:
    for number in range(5):
        laptop.epoch(b"%d" % number)
        laptop.publish()
        laptop.exchange.checkpoint()
    manifests = [key for key in laptop.remote.objects if key.startswith("checkpoint/")]
    assert len([key for key in manifests if "chunks" not in key]) == 5


def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    laptop: Machine, machines: Callable[[str], Machine], tmp_path: Path
) -> None:
    for name in (b"a", b"b"):
        laptop.epoch(name)
        laptop.publish()
        laptop.exchange.checkpoint()
    manifests = sorted(
        key
        for key in laptop.remote.objects
        if key.startswith("checkpoint/") and "chunks" not in key
    )
    laptop.remote.damage(manifests[-1], b"ruin")
    assert_same_history(laptop, machines("one"))
    laptop.remote.damage(manifests[0], b"ruin")
    # All of the log is there as well.
    assert_same_history(laptop, machines("two"))
    for key in laptop.remote.objects:
        if key.startswith("log/"):
            laptop.remote.delete(key)
    with pytest.raises(CorruptError, match=manifests[-1]):
        clone(laptop.remote, tmp_path / "three.db", "three")
    assert not list(tmp_path.glob("three.db*"))


def test_a_new_writer_makes_checkpoints_of_its_own(
    laptop: Machine, machines: Callable[[str], Machine]
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    laptop.exchange.checkpoint()
    desktop = machines("desktop")
    desktop.exchange.take_over()
    desktop.epoch(b"b")
    desktop.publish()
    desktop.exchange.checkpoint()
    for key in laptop.remote.objects:
        if f"/{laptop.meta('machine'):016x}/" in key:
            laptop.remote.delete(key)
    assert_same_history(desktop, machines("phone"))


def test_a_clone_that_is_cut_off_leaves_nothing(
    laptop: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    path = tmp_path / "clone.db"
    with monkeypatch.context() as patched:
        patched.setattr(recover, "check_tree", _crash)
        with pytest.raises(Crash):
            clone(laptop.remote, path, "clone")
    assert not path.exists()
    clone(laptop.remote, path, "clone")
    with pytest.raises(ExistsError):
        clone(laptop.remote, path, "clone")


# A remote that holds anything at all


def _spoil(objects: dict[str, bytes], made: random.Random) -> dict[str, bytes]:
    """The objects of a remote, some of them damaged, swapped, gone or under odd names."""
    spoilt = dict(objects)
    for _ in range(made.randrange(1, 4)):
        key = made.choice([key for key in spoilt if not key.startswith("blocks/")])
        content = spoilt[key]
        number = made.choice([b"0", b"-1", b"9" * 30, b"1e400", b'"x"', b"null", b"[[]]"])
        folder = key.rpartition("/")[0]
        changes: list[tuple[str, bytes | None]] = [
            (key, None),
            (key, b""),
            (key, content[: made.randrange(len(content) + 1)]),
            (key, content + made.randbytes(9)),
            (key, made.choice(list(spoilt.values()))),
            (key, re.sub(rb": \d+", b": " + number, content, count=1)),
            (key, b"[" * 50_000),
            (f"{folder}/{made.choice(_ODD_NAMES)}", content),
        ]
        if content:
            place = made.randrange(len(content))
            flipped = content[:place] + made.randbytes(1) + content[place + 1 :]
            changes += [(key, flipped)] * 4
        where, what = made.choice(changes)
        if what is None:
            del spoilt[where]
        else:
            spoilt[where.lstrip("/")] = what
    return spoilt


_ODD_NAMES = (
    "0000000000000001-ffffffffffffffff", "0000000000000001-0000000000000001", "99999999",
    "99999999.start", "00000000", "ffffffffffffffff", "ffffffffffffffff.json", "\n", "a" * 300,
)  # fmt: skip


def try_spoilt_remotes(
    laptop: Machine, follower: Machine, folder: Path, seeds: Iterable[int]
) -> int:
    """How many clones could be made all the same."""
    laptop.epoch(b"more")
    laptop.publish()
    objects = laptop.remote.objects
    made = 0
    for seed in seeds:
        remote = MemoryRemote()
        for key, content in _spoil(objects, random.Random(seed)).items():
            remote.damage(key, content)
        with contextlib.suppress(SyncerError):
            clone(remote, folder / "spoilt.db", "clone")
            made += 1
        (folder / "spoilt.db").unlink(missing_ok=True)
        # The names that it knows it keeps, whatever the remote says.
        path = folder / "follower.db"
        path.write_bytes(follower.path.read_bytes())
        other = Machine(path, remote, "other")
        with closing(other.db):
            with contextlib.suppress(SyncerError):
                other.exchange.step()
            assert other.names() >= {b"first"}
    return made


@pytest.mark.parametrize(
    "count", [60, pytest.param(10_000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])]
)
def test_whatever_a_remote_holds_only_our_errors_come_out(
    laptop: Machine, machines: Callable[[str], Machine], tmp_path: Path, count: int
) -> None:
    laptop.epoch(b"first")
    laptop.publish()
    laptop.exchange.checkpoint()
    follower = machines("follower")
    follower.exchange.step()
    follower.db.close()
    try:
        made = try_spoilt_remotes(laptop, follower, tmp_path, range(count))
    finally:
        follower.open()
    assert 0 < made < count


# A remote that fails at each call in each way


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["list", "get", "put", "create", "delete", "stat"])
def test_a_remote_that_fails_at_any_call_loses_nothing(
    laptop: Machine,
    machines: Callable[[str], Machine],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: SyncerError,
) -> None:
    """Publishing, checkpoints, following and taking over; and `status` tells what is wrong."""
    monkeypatch.setattr(checkpoint, "_GRACE_SECONDS", -1.0)
    laptop.epoch(b"first")
    laptop.publish()
    follower = machines("follower")
    remote = laptop.remote
    for after in range(4):
        laptop.epoch(b"%d" % after)
        for machine, work in (
            (laptop, laptop.exchange.step),
            (laptop, laptop.exchange.checkpoint),
            (follower, follower.exchange.step),
        ):
            before = remote.calls[method]
            remote.fail(method, error, after=after)
            with contextlib.suppress(SyncerError):
                work()
            if work == machine.exchange.step and remote.calls[method] > before + after:
                told = machine.exchange.status().error
                # A follower need not put anything.
                is_passed = machine is follower and isinstance(error, TemporaryError)
                is_passed = is_passed and method == "put"
                is_passed = is_passed or isinstance(error, (MissingError, AccessError))
                assert str(error) in told or is_passed
            remote.work_again()
            work()
            assert not machine.exchange.status().error
    assert laptop.exchange.role == "writer"
    laptop.publish()
    follower.exchange.step()
    assert_same_history(laptop, follower)
    remote.fail(method, error)
    with contextlib.suppress(SyncerError):
        follower.exchange.take_over()
    remote.work_again()
    follower.exchange.take_over()
    follower.epoch(b"last")
    follower.publish()
    assert_same_history(follower, machines("clone"))


@pytest.mark.parametrize("error", [RemoteFullError("it is full"), TemporaryError("not now")])
def test_a_server_that_takes_nothing_is_still_cloned_and_followed(
    laptop: Machine, machines: Callable[[str], Machine], error: SyncerError
) -> None:
    laptop.epoch(b"a")
    laptop.publish()
    laptop.remote.fail("put", error, 100)
    follower = machines("follower")
    follower.exchange.step()
    laptop.remote.work_again()
    laptop.epoch(b"b")
    laptop.publish()
    laptop.remote.fail("put", error, 100)
    follower.reopen()
    assert follower.exchange.step()
    assert follower.names() == {b"a", b"b"}
    # The writer has a mark, whatever it could leave while it only read.
    with pytest.raises(type(error)):
        follower.exchange.take_over()
    assert follower.exchange.role == "follower"
    laptop.remote.work_again()
    follower.exchange.take_over()
    assert follower.exchange._identity.mark() in laptop.remote.objects
    follower.epoch(b"c")
    follower.publish()
    assert_same_history(follower, machines("tablet"))


# Everything at random


@contextmanager
def _small_objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(outgoing, "TARGET_BYTES", 3000)
        patched.setattr(publish, "_SEGMENT_KEYS", 60)
        patched.setattr(checkpoint, "_GRACE_SECONDS", -1.0)
        yield


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_is_recovered(
    laptop: Machine,
    machines: Callable[[str], Machine],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Random operations, published at random moments, against a follower and fresh clones."""
    draw = random.Random(seed)
    actor = Actor(laptop, draw)
    laptop.publish()
    follower = machines("follower")
    with _small_objects(monkeypatch):
        for round_number in range(25):
            for _ in range(draw.randrange(1, 40)):
                actor.act()
                if draw.random() < 0.2:
                    laptop.epochs.close()
            laptop.publish()
            if draw.random() < 0.2:
                laptop.exchange.checkpoint()
            if draw.random() < 0.3:
                follower.exchange.follow()
                assert_same_history(laptop, follower)
                assert_usage_is_right(follower)
            if round_number % 12 == 11:
                fresh = machines(f"clone{round_number}")
                assert_same_history(laptop, fresh)
                assert_usage_is_right(fresh)


class Actor:
    """Changes a tree at random."""

    def __init__(self, machine: Machine, draw: random.Random) -> None:
        self.machine = machine
        self.draw = draw
        self.directories = [ROOT]
        self.actions = [
            self.make_file,
            self.make_file,
            self.make_directory,
            self.write,
            self.write,
            self.cut,
            self.inline,
            self.rename,
            self.link,
            self.unlink,
            self.unlink,
            self.keep,
            self.drop_orphan,
            self.restore_orphan,
            self.set_xattr,
            self.remove_directory,
        ]

    def act(self) -> None:
        with self.machine.tree.transaction():
            self.draw.choice(self.actions)()

    def _entry(self, *, is_dir: bool) -> tuple[int, bytes, int] | None:
        rows = self.machine.db.query(
            "SELECT parent, name, node FROM name JOIN node ON id = node"
            " WHERE (mode & 61440 = 16384) = ? ORDER BY 1, 2",
            (is_dir,),
        )
        return self.draw.choice(rows) if rows else None

    def _free(self) -> tuple[int, bytes]:
        while True:
            place = self.draw.choice(self.directories), b"%d" % self.draw.randrange(200)
            if self.machine.tree.lookup(*place) is None:
                return place

    def make_file(self) -> None:
        parent, name = self._free()
        self.machine.create(name, parent)

    def make_directory(self) -> None:
        parent, name = self._free()
        self.directories.append(self.machine.mkdir(name, parent).id)

    def write(self) -> None:
        if entry := self._entry(is_dir=False):
            block = self.draw.randbytes(16) if self.draw.random() < 0.8 else HOLE
            index = self.draw.randrange(600)
            self.machine.contents.set_blocks(entry[2], {index: block})
            node = self.machine.node(entry[2])
            size = max(node.size, (index + 1) << 20)
            self.machine.tree.save(node.changed(size=size))

    def cut(self) -> None:
        if entry := self._entry(is_dir=False):
            count = self.draw.randrange(300)
            self.machine.contents.cut(entry[2], count)
            self.machine.tree.save(self.machine.node(entry[2]).changed(size=count << 20))

    def inline(self) -> None:
        if entry := self._entry(is_dir=False):
            self.machine.contents.set_inline(entry[2], self.draw.randbytes(30))
            self.machine.tree.save(self.machine.node(entry[2]).changed(size=30))

    def rename(self) -> None:
        if entry := self._entry(is_dir=self.draw.random() < 0.3):
            parent, name = self._free()
            above: int | None = parent
            while above is not None and above != ROOT:
                if above == entry[2]:
                    return
                above = self.machine.tree.names_of(above)[0][0]
            self.machine.tree.rename(entry[0], entry[1], parent, name)

    def link(self) -> None:
        if entry := self._entry(is_dir=False):
            self.machine.tree.link(entry[2], *self._free())

    def unlink(self) -> None:
        if entry := self._entry(is_dir=False):
            self.machine.tree.unlink(entry[0], entry[1], keep=False)

    def keep(self) -> None:
        if entry := self._entry(is_dir=False):
            self.machine.tree.unlink(entry[0], entry[1], keep=True)

    def _orphan(self) -> int | None:
        orphans = self.machine.tree.orphans()
        return self.draw.choice(orphans) if orphans else None

    def drop_orphan(self) -> None:
        if orphan := self._orphan():
            self.machine.tree.remove_orphan(orphan)

    def restore_orphan(self) -> None:
        if orphan := self._orphan():
            if self.draw.random() < 0.5:
                self.machine.contents.set_blocks(orphan, {3: self.draw.randbytes(16)})
            self.machine.tree.restore_name(*self._free(), orphan)

    def set_xattr(self) -> None:
        if entry := self._entry(is_dir=self.draw.random() < 0.3):
            name = b"user.%d" % self.draw.randrange(3)
            value = self.draw.randbytes(5) if self.draw.random() < 0.7 else None
            self.machine.tree.set_xattr(entry[2], name, value)

    def remove_directory(self) -> None:
        entry = self._entry(is_dir=True)
        if entry and self.machine.tree.is_empty(entry[2]):
            self.directories.remove(entry[2])
            self.machine.tree.unlink(entry[0], entry[1], keep=False)


# The thread


def test_the_thread_publishes_and_ends(laptop: Machine) -> None:
    loop = ExchangeLoop(laptop.exchange, interval_seconds=30.0)
    loop.start()
    try:
        last = laptop.epoch(b"a")
        loop.kick()
        published = threading.Event()
        for _ in range(200):
            if laptop.meta("published") == last:
                published.set()
                break
            published.wait(0.05)
        assert published.is_set()
    finally:
        loop.stop()
    assert "syncer-publisher" not in {thread.name for thread in threading.enumerate()}


def test_the_thread_leaves_who_has_just_mounted_alone_unless_somebody_asks(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.exchange.loop.STARTS_AFTER_SECONDS", 3600.0)
    stepped = threading.Event()
    monkeypatch.setattr(laptop.exchange, "step", lambda **words: stepped.set() or False)
    loop = ExchangeLoop(laptop.exchange, interval_seconds=30.0)
    loop.start()
    try:
        assert not stepped.wait(0.1)
        loop.wait_for(loop.begin_step(), 10.0)
        assert stepped.is_set()
    finally:
        loop.stop()


def test_the_thread_outlives_a_remote_that_is_away(laptop: Machine) -> None:
    laptop.publish()
    laptop.remote.go_offline()
    laptop.exchange._looked_at = 0.0
    loop = ExchangeLoop(laptop.exchange, interval_seconds=0.01)
    loop.start()
    try:
        last = laptop.epoch(b"a")
        waiting = threading.Event()
        for _ in range(200):
            if "away" in laptop.exchange.status().error:
                waiting.set()
                break
            waiting.wait(0.05)
        assert waiting.is_set()
        laptop.remote.go_online()
        laptop.remote.check()
        for _ in range(200):
            if laptop.meta("published") == last:
                break
            threading.Event().wait(0.05)
        assert laptop.meta("published") == last
        assert laptop.exchange.status().error == ""
    finally:
        loop.stop()


@pytest.mark.expects_warnings
@pytest.mark.parametrize("place", ["after a step", "before a step"])
@pytest.mark.parametrize("error", [SyncerError("the database is locked"), ZeroDivisionError()])
def test_the_thread_outlives_an_error_wherever_it_comes(
    laptop: Machine, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    failures = 2

    def fail_at(here: str) -> None:
        nonlocal failures
        if here == place and failures:
            failures -= 1
            raise error

    def step(**words: bool) -> bool:
        fail_at("before a step")
        return False

    monkeypatch.setattr(laptop.exchange, "step", step)
    loop = ExchangeLoop(
        laptop.exchange, interval_seconds=30.0, after_step=lambda: fail_at("after a step")
    )
    loop.start()
    try:
        for is_failing in (True, True, False):
            # Who waits for a step learns of its end however it ends.
            loop.wait_for(loop.begin_step(), 30.0)
            assert loop._steps_ended == loop._steps_begun
            assert bool(loop.error) == (is_failing and not isinstance(error, SyncerError))
        assert not failures
    finally:
        loop.stop()


def test_machines_tell_that_they_exist(laptop: Machine, machines: Callable[[str], Machine]) -> None:
    laptop.publish()
    machines("desktop").exchange.follow()
    names = [
        decode_json(data, key, ("epoch",), ("name",))
        for key, data in laptop.remote.objects.items()
        if key.startswith("machines/")
    ]
    assert sorted(names) == [[0, "laptop"], [1, "desktop"]]


def test_a_writer_name_can_not_garble_a_terminal(remote: MemoryRemote) -> None:
    init_repository(remote, new_machine(), "evil\x1b[2J")
    key = "writers/00000001"
    assert b"evil?[2J" in remote.objects[key]
    remote.damage(key, encode_json(uuid="x", machine=1, name="\x1b"))
    with pytest.raises(CorruptError):
        Writers(remote, read_repository(remote)).look()


def test_a_damaged_segment_that_a_crash_let_it_forget_is_put_anew(
    machines: Callable[[str], Machine], remote: MemoryRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = machines("laptop")
    laptop.epoch(b"first")
    laptop.publish()
    laptop.epoch(b"second")

    class CrashError(Exception):
        pass

    def crash(publisher: Publisher, key: str, last: int) -> None:
        raise CrashError(key)

    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "_commit", crash)
        with pytest.raises(CrashError) as caught:
            laptop.exchange.publish_once()
    key = str(caught.value)
    remote.damage(key, remote.objects[key][:-7])
    laptop.reopen()
    laptop.epoch(b"third")
    with pytest.raises(CorruptError):
        laptop.exchange.publish_once()
    laptop.exchange.renew_checkpoint()
    laptop.publish()
    assert_same_history(laptop, machines("desktop"))
