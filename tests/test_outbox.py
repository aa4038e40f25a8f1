"""What the remote does not know yet: how `status` and a flush ask for it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from syncer.config import Config
from syncer.errors import CorruptError
from syncer.metadata import outbox
from syncer.metadata.db import Database
from syncer.metadata.outbox import Outbox, Unpublished
from syncer.process.engine import Engine
from syncer.process.repository import create_repository
from tests.vfs_rig import VfsRig


def steps_under_the_lock(db: Database, call: Callable[[], Any]) -> int:
    """How many steps SQLite takes for a call on the connection that everybody shares."""
    steps = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

    db._connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, count)
    try:
        call()
    finally:
        db._connection.trace_v2(0)
    return steps


@pytest.mark.parametrize("role", ["writer", "displaced"])
def test_status_holds_up_nobody_however_much_is_not_published(tmp_path: Path, role: str) -> None:
    config = Config(str(tmp_path / "remote"), 10**9)
    create_repository(tmp_path / "data", config, socket.gethostname())
    engine = Engine(tmp_path / "data", config)
    try:
        db = engine._db
        db.set_meta("role", role)
        few = steps_under_the_lock(db, engine.status)
        with db.transaction():
            db.execute_many(
                "INSERT INTO outbox VALUES(2, ?, ?)",
                [(number, name) for number in range(1000, 2000) for name in (b"", b"name")],
            )
        many = steps_under_the_lock(db, engine.status)
        assert engine.status()["safe"] is False
    finally:
        engine.stop()
    assert many < few + 200


def test_what_changed_is_counted_until_it_is_published(rig: VfsRig) -> None:
    asked = Outbox(rig.db)
    rig.round()
    with rig.db.transaction():
        rig.db.execute("DELETE FROM outbox")
    assert (asked.oldest(), asked.count()) == (None, Unpublished(0, 0))
    first = rig.epochs.open
    rig.make(b"/one", b"content")
    rig.round()
    rig.make(b"/two", b"content")
    number = rig.make(b"/one", b"changed again")
    assert asked.count().files == 2
    assert asked.oldest() == first
    assert not asked.is_empty_up_to(first) and asked.is_empty_up_to(first - 1)
    keys = list(asked.changed_keys())
    assert (number, b"") in keys and (1, b"two") in keys
    assert len(set(keys)) == len(keys) < asked.count().changes
    with rig.db.transaction():
        rig.db.execute("DELETE FROM outbox WHERE epoch <= ?", (first,))
    assert asked.is_empty_up_to(first) and not asked.is_empty_up_to(first + 1)


def test_very_many_changes_are_not_counted_at_each_question(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.make(b"/one")
    # Each change has a count stand for a day.
    monkeypatch.setattr(outbox, "_CHANGES_PER_SECOND", 1 / 86400)
    asked = Outbox(rig.db)
    before = asked.count()
    rig.make(b"/two")
    assert asked.count() == before != Outbox(rig.db).count()
    with rig.db.transaction():
        rig.db.execute("DELETE FROM outbox")
    assert asked.count() == Unpublished(0, 0)


def test_where_nothing_can_be_counted_the_last_count_stands(rig: VfsRig) -> None:
    asked = Outbox(rig.db)
    rig.make(b"/one")
    before = asked.count()
    rig.make(b"/two")
    rig.db.standstill.reason = CorruptError("its pages are in disorder")
    try:
        assert asked.count() == before
    finally:
        rig.db.standstill.reason = None
    assert asked.count().files == 2
