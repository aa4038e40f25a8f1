"""Pruning: what is kept stays, what isn't goes, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncer.blocks.fetch import block_key, trash_key
from syncer.errors import AccessError, DisplacedError, MissingError, OfflineError, UsageError
from syncer.exchange import checkpoint
from syncer.maintain.policy import Policy
from syncer.metadata import pruning
from syncer.metadata.history import PrunedError
from tests.block_rig import content
from tests.prune_rig import NEWEST, SECOND_NS, Effects, Interrupted, PruneRig, ids_of
from tests.vfs_rig import ME, fast_folder

OLD, NEW, OTHER = content(1), content(2), content(3)


@pytest.fixture
def rig() -> Iterator[PruneRig]:
    with fast_folder() as folder:
        rig = PruneRig(folder)
        yield rig
        rig.close()


def test_what_no_kept_moment_saw_goes_and_the_rest_stays(rig: PruneRig) -> None:
    rig.make(b"/stays", OTHER)
    rig.make(b"/file", OLD)
    before = rig.snapshot("before")
    rig.write(b"/file", content(4))
    between = rig.advance()
    rig.write(b"/file", NEW)
    rig.vfs.unlink(b"/stays")
    rig.advance()
    rig.prune()
    assert rig.stored() == rig.named() == ids_of([OLD, NEW, OTHER])
    assert rig.copy_of("before") == before
    assert rig.read(b"/file") == NEW
    with pytest.raises(MissingError, match="pruned"):
        rig.moments.find(str(between))
    rig.check_usage()


def test_a_removed_snapshot_goes_with_the_next_prune(rig: PruneRig) -> None:
    rig.make(b"/file", OLD)
    rig.snapshot("mine")
    rig.vfs.unlink(b"/file")
    rig.prune()
    assert rig.stored() == ids_of([OLD])
    rig.moments.remove("mine")
    rig.prune()
    assert rig.stored() == set()
    with pytest.raises(MissingError):
        rig.moments.remove("mine")


def test_tiny_files_of_pruned_moments_give_their_room_back(rig: PruneRig) -> None:
    rig.make(b"/tiny", b"x" * 1000)
    rig.advance()
    rig.write(b"/tiny", b"y" * 10)
    rig.advance()
    assert rig.contents.inline_bytes() == 1010
    rig.prune()
    assert rig.contents.inline_bytes() == 10
    rig.check_usage()


def test_a_time_that_was_pruned_means_the_kept_moment_before_it(rig: PruneRig) -> None:
    copies = {}
    for number in range(8):
        rig.write(b"/file", content(number))
        if number in (2, 5):
            rig.snapshot(f"s{number}")
        copies[rig.advance(3600)] = rig.copy()
    times = {epoch: rig.history.time_ns(epoch) for epoch in copies}
    rig.prune()
    for epoch, time_ns in times.items():
        found = rig.history.epoch_at(time_ns)
        assert found <= epoch
        assert rig.history.is_kept(found) or not found
        if found in copies:
            assert rig.copy(b"/.snapshots/" + rig.moments.written(found).encode()) == copies[found]
    assert rig.history.epoch_at(rig.now_ns) == rig.moments.latest()


def test_versions_lives_and_removals_name_moments_that_are_there(rig: PruneRig) -> None:
    rig.make(b"/file", OLD)
    rig.advance()
    rig.snapshot("kept")
    rig.vfs.unlink(b"/file")
    for number in range(3):
        rig.write(b"/other", content(number + 10))
        rig.advance()
    rig.prune()
    (gone,) = (found for found in rig.history.removed(1) if found.name == b"file")
    last = rig.history.kept_by(gone.last)
    snapshot = rig.moments.snapshot("kept")
    assert snapshot is not None and last == snapshot.epoch
    assert rig.history.node(gone.node, last) is not None
    (version,) = rig.history.versions(gone.node)
    assert rig.history.kept_from(version.born) < version.died


def test_who_reads_a_moment_while_it_is_pruned_gets_an_error_and_nothing_wrong(
    rig: PruneRig,
) -> None:
    rig.make(b"/file", OLD + NEW)
    rig.make(b"/tiny", b"tiny")
    name = rig.moments.written(rig.advance()).encode()
    file = rig.vfs.open(b"/.snapshots/" + name + b"/file", os.O_RDONLY)
    for path in (b"/file", b"/tiny"):
        rig.write(path, b"other" * 2000)
    rig.advance()
    rig.prune()
    with pytest.raises(PrunedError):
        rig.read(file)
    for path in (b"/file", b"/tiny", b"/none", b""):
        with pytest.raises((PrunedError, OSError)) as error:
            rig.read(b"/.snapshots/" + name + path)
        assert not isinstance(error.value, OSError) or error.value.errno != errno.ENOENT
    rig.vfs.release(file)


def test_what_is_not_published_is_not_pruned(rig: PruneRig) -> None:
    rig.make(b"/file", OLD)
    rig.publish()
    rig.write(b"/file", NEW)
    last = rig.advance()
    rig.pruner._decide(NEWEST)
    assert not rig.pruner._work() or rig.db.get_meta("published") < last
    assert rig.history.is_kept(last)
    assert ids_of([OLD]) <= rig.stored()
    rig.publish()
    rig.settle()
    rig.check_kept()


def test_nothing_is_removed_before_the_decision_is_published(rig: PruneRig) -> None:
    rig.make(b"/file", OLD)
    rig.advance()
    rig.write(b"/file", NEW)
    rig.advance()
    rig.publish()
    rows = rig.db.query("SELECT * FROM content_past")
    rig.pruner._decide(NEWEST)
    assert not rig.pruner._work()
    assert rig.db.query("SELECT * FROM content_past") == rows
    assert rig.stored("trash") == set()
    rig.publish()
    rig.settle()
    assert rig.db.query("SELECT * FROM content_past") == []


# The trash


def test_garbage_stays_in_the_trash_for_the_grace(rig: PruneRig) -> None:
    rig.grace_seconds = 1000
    rig.make(b"/file", OLD)
    rig.advance()
    rig.vfs.unlink(b"/file")
    rig.advance()
    rig.prune()
    assert (rig.stored(), rig.stored("trash")) == (set(), ids_of([OLD]))
    rig.now_ns += 999 * SECOND_NS
    rig.sweep()
    assert rig.stored("trash") == ids_of([OLD])
    rig.now_ns += 2 * SECOND_NS
    rig.settle()
    assert rig.stored("trash") == set()
    assert rig.db.query("SELECT * FROM garbage") != []
    rig.now_ns += 10**4 * SECOND_NS
    rig.settle()
    assert rig.db.query("SELECT * FROM garbage") == []
    assert rig.db.get_meta("sweep_ns") == 0


def test_who_is_behind_reads_from_the_trash(rig: PruneRig, tmp_path: Path) -> None:
    rig.grace_seconds = 1000
    rig.make(b"/file", OLD)
    rig.publish()
    late = PruneRig(tmp_path, rig.remote)
    try:
        rig.vfs.unlink(b"/file")
        rig.advance()
        rig.prune()
        assert rig.stored() == set()
        assert late.read(b"/file") == OLD
        late.exchange.follow()
        assert late.list(b"/") == []
    finally:
        late.close()


def test_what_is_written_again_is_uploaded_again(rig: PruneRig) -> None:
    for grace_seconds in (1000, 0):
        rig.grace_seconds = grace_seconds
        rig.write(b"/file", OLD)
        rig.advance()
        rig.vfs.unlink(b"/file")
        rig.advance()
        rig.prune()
        assert rig.stored() == set()
        rig.make(b"/again", OLD)
        rig.check_kept()
        rig.forget_locally()
        assert rig.stored() == ids_of([OLD])
        assert rig.read(b"/again") == OLD
        rig.vfs.unlink(b"/again")


def test_what_is_named_and_in_the_trash_is_moved_back(rig: PruneRig) -> None:
    """As after a move that the server carried out late."""
    rig.make(b"/file", OLD)
    rig.forget_locally()
    (block_id,) = ids_of([OLD])
    rig.remote.move(block_key(block_id), trash_key(block_id))
    assert rig.read(b"/file") == OLD
    rig.now_ns += 10**6 * SECOND_NS
    rig.sweep()
    assert (rig.stored(), rig.stored("trash")) == ({block_id}, set())
    assert rig.db.query("SELECT * FROM garbage") == []


def test_a_reader_of_an_old_state_does_not_make_garbage_look_clean(rig: PruneRig) -> None:
    rig.grace_seconds = 1000
    rig.make(b"/file", OLD)
    rig.advance()
    rig.vfs.unlink(b"/file")
    rig.advance()
    rig.prune()
    (block_id,) = ids_of([OLD])
    assert rig.blocks.get(block_id) == OLD
    rig.make(b"/again", OLD)
    assert rig.blocks.is_dirty(block_id)
    rig.now_ns += 10**4 * SECOND_NS
    rig.sweep()
    rig.sweep()
    rig.forget_locally()
    assert rig.read(b"/again") == OLD


def test_a_pruned_block_that_is_nowhere_local_can_not_be_named(rig: PruneRig) -> None:
    rig.grace_seconds = 1000
    rig.make(b"/file", OLD)
    rig.advance()
    rig.vfs.unlink(b"/file")
    rig.advance()
    rig.prune()
    (block_id,) = ids_of([OLD])
    with pytest.raises(MissingError), rig.db.transaction():
        rig.blocks.name([block_id])
    assert rig.db.query("SELECT id FROM garbage") == [(block_id,)]


def test_a_copy_from_a_moment_that_is_pruned_names_nothing_that_is_gone(rig: PruneRig) -> None:
    data = random.Random(1).randbytes(1 << 20)
    rig.make(b"/file", data)
    name = rig.moments.written(rig.advance()).encode()
    source = rig.vfs.open(b"/.snapshots/" + name + b"/file", os.O_RDONLY)
    assert rig.read(source) == data
    rig.vfs.unlink(b"/file")
    rig.advance()
    rig.prune()
    target = rig.vfs.create(b"/copy", 0o644, os.O_RDWR, ME)
    try:
        with pytest.raises((MissingError, PrunedError)):
            rig.vfs.copy(source, 0, target, 0, len(data), ME)
        rig.now_ns += 10**5 * SECOND_NS
        rig.sweep()
        rig.sweep()
        with pytest.raises((MissingError, PrunedError)):
            rig.vfs.copy(source, 0, target, 0, len(data), ME)
    finally:
        rig.vfs.release(target)
        rig.vfs.release(source)
    rig.round(seal=True)
    rig.check_kept()


def test_what_is_named_held_or_under_way_is_no_garbage(rig: PruneRig) -> None:
    """Somebody names a block or is about to, or puts its object where the sweep looks."""
    held = rig.blocks.put(OLD)
    (named,), (uploading,), (free,) = map(ids_of, ([content(4)], [NEW], [OTHER]))
    with rig.blocks.garbage.watch():
        # Named after the sweep has read what is named, and clean again already.
        rig.make(b"/file", content(4))
        rig.publish()
        assert not rig.blocks.is_dirty(named)
        condemned = rig.blocks.condemn([named, held, uploading, free], {uploading}, rig.now_ns)
    assert condemned == [free]
    assert rig.blocks.local(held) is not None
    rig.blocks.unhold([held])


def test_what_is_garbage_is_on_the_disk_before_its_object_moves(
    rig: PruneRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a block must not count as clean whose object is on its way out."""
    rig.make(b"/file", OLD)
    rig.publish()
    rig.vfs.unlink(b"/file")
    steps: list[str] = []

    def note(owner: object, name: str) -> None:
        act = getattr(owner, name)

        def step(*given: Any) -> Any:
            steps.append(name)
            return act(*given)

        monkeypatch.setattr(owner, name, step)

    note(rig.blocks, "condemn")
    note(rig.db, "sync")
    note(rig.remote, "move")
    rig.prune()
    assert steps[steps.index("move") - 2 :][:3] == ["condemn", "sync", "move"]


def test_a_writer_that_was_displaced_moves_and_deletes_no_more(
    rig: PruneRig, tmp_path: Path
) -> None:
    (trashed,) = ids_of([NEW])
    rig.remote.put(trash_key(trashed), b"anything")
    rig.make(b"/file", OLD)
    rig.upload_all()
    rig.vfs.unlink(b"/file")
    rig.publish()
    assert (rig.stored(), rig.named()) == (ids_of([OLD]), set())
    other = PruneRig(tmp_path, rig.remote)
    try:
        other.exchange.take_over()
        # From here on these are the new writer's; this one has not noticed.
        for _ in range(2):
            with pytest.raises(DisplacedError):
                rig.pruner._sweeper.sweep(0)
        assert rig.stored() == ids_of([OLD])
        rig.remote.delete(block_key(*ids_of([OLD])))
        for _ in range(2):
            with pytest.raises(DisplacedError):
                rig.pruner._sweeper.sweep(0)
        assert rig.stored("trash") == {trashed}
    finally:
        other.close()


# At any moment


def _prepare(folder: Path) -> PruneRig:
    """Three contents, of which pruning leaves two; more than one batch of neither."""
    rig = PruneRig(folder)
    rig.make(b"/stays", OTHER)
    rig.make(b"/file", OLD)
    rig.snapshot("first")
    rig.write(b"/file", NEW)
    rig.advance()
    rig.write(b"/file", content(9))
    rig.advance()
    rig.moments.remove("first")
    rig.snapshot("second")
    rig.vfs.unlink(b"/stays")
    rig.publish()
    rig.evict_all()
    return rig


def _effects_of_pruning() -> int:
    with fast_folder() as folder:
        rig = _prepare(folder)
        with Effects(rig, -1, lambda: None) as effects:
            rig.prune()
            rig.sweep()
        assert rig.stored() == rig.named()
        rig.close()
    return effects.count


def test_the_same_content_may_be_written_again_at_any_moment() -> None:
    count = _effects_of_pruning()
    assert count > 30
    for at in range(count):
        with fast_folder() as folder:
            rig = _prepare(folder)

            def write_again(rig: PruneRig = rig, at: int = at) -> None:
                rig.make(b"/again", OLD)
                rig.make(b"/too", NEW)
                # Within a round there can't be another one.
                if at % 2 and not rig.committer._round_lock.locked():
                    rig.round(seal=True)
                    rig.upload_all()

            with Effects(rig, at, write_again):
                rig.prune()
                rig.sweep()
            rig.check_kept()
            for _ in range(2):
                rig.now_ns += 10**5 * SECOND_NS
                rig.sweep()
                rig.check_kept()
            rig.forget_locally()
            assert rig.read(b"/again") == OLD, at
            assert rig.read(b"/too") == NEW, at
            assert rig.stored() == rig.named()
            rig.close()


def test_a_process_may_die_at_any_moment_and_the_next_prune_finds_the_rest() -> None:
    count = _effects_of_pruning()

    def die() -> None:
        raise Interrupted

    for at in range(count):
        with fast_folder() as folder:
            rig = _prepare(folder)
            second = rig.copy_of("second")
            try:
                with Effects(rig, at, die):
                    rig.prune()
                    rig.sweep()
            except Interrupted:
                pass
            rig.restart()
            rig.check_kept()
            assert rig.copy_of("second") == second
            rig.prune()
            rig.sweep()
            assert rig.stored() == rig.named(), at
            assert rig.stored("trash") == set()
            assert rig.copy_of("second") == second
            rig.close()


# Other machines


@pytest.mark.parametrize("is_log_gone", [False, True])
def test_a_follower_prunes_what_the_writer_pruned(
    rig: PruneRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_log_gone: bool
) -> None:
    """It was away meanwhile; for so long that a checkpoint has taken the log's place, or not."""
    monkeypatch.setattr(checkpoint, "_GRACE_SECONDS", -1.0)
    rig.make(b"/file", OLD)
    first = rig.advance()
    rig.snapshot("kept")
    rig.publish()
    follower = PruneRig(tmp_path, rig.remote)
    try:
        for number in range(5):
            rig.write(b"/file", content(number + 20))
            rig.advance()
        rig.prune()
        if is_log_gone:
            for number in range(3):
                rig.write(b"/later", content(number))
                rig.publish()
                rig.exchange.checkpoint()
        log = [key.rpartition("/")[2] for key in rig.remote.objects if key.startswith("log/")]
        oldest = min(int(name.partition("-")[0], 16) for name in log)
        assert (oldest > follower.db.get_meta("published") + 1) == is_log_gone
        follower.exchange.follow()
        follower.settle()
        assert follower.state_at(first) == rig.state_at(first)
        moments = "SELECT seq FROM epoch ORDER BY seq"
        assert follower.db.query(moments) == rig.db.query(moments)
        for table in ("node_past", "name_past", "content_past"):
            rows = f"SELECT * FROM {table}"
            assert len(follower.db.query(rows)) == len(rig.db.query(rows))
        assert follower.copy_of("kept") == rig.copy_of("kept")
        follower.check_usage()
        with pytest.raises(AccessError):
            follower.pruner.prune(NEWEST, is_dry=True, progress=lambda state: None)
    finally:
        follower.close()


@pytest.mark.parametrize("is_checkpoint_old", [True, False])
def test_a_clone_does_not_bring_back_what_was_pruned(
    rig: PruneRig, tmp_path: Path, is_checkpoint_old: bool
) -> None:
    rig.make(b"/file", OLD)
    rig.snapshot("kept")
    for number in range(5):
        rig.write(b"/file", content(number + 20))
        rig.advance()
    rig.publish()
    rig.exchange.checkpoint()
    rig.prune()
    if not is_checkpoint_old:
        rig.make(b"/later", NEW)
        rig.publish()
        rig.exchange.checkpoint()
    late = PruneRig(tmp_path, rig.remote)
    try:
        assert late.db.query("SELECT seq FROM epoch") == rig.db.query(
            "SELECT seq FROM epoch WHERE seq <= ?", (rig.db.get_meta("published"),)
        )
        assert late.named() == rig.named()
        assert late.copy_of("kept") == rig.copy_of("kept")
        assert pruning.pending(late.db) is None
        late.check_usage()
    finally:
        late.close()


def test_who_takes_over_uploads_what_the_other_threw_away(rig: PruneRig, tmp_path: Path) -> None:
    rig.make(b"/file", OLD)
    rig.publish()
    other = PruneRig(tmp_path, rig.remote)
    try:
        assert other.read(b"/file") == OLD
        rig.vfs.unlink(b"/file")
        rig.advance()
        rig.prune()
        rig.sweep()
        assert rig.stored() == rig.stored("trash") == set()
        other.exchange.take_over()
        other.epochs.now_ns = other.clock_ns
        other.make(b"/again", OLD)
        other.forget_locally()
        assert other.read(b"/again") == OLD
        other.check_kept()
        with pytest.raises(DisplacedError):
            rig.sweep()
    finally:
        other.close()


def test_a_displaced_machine_that_wakes_up_late_destroys_nothing(
    rig: PruneRig, tmp_path: Path
) -> None:
    """It sleeps between its look at the chain of writers and the move."""
    rig.grace_seconds = 1000
    rig.make(b"/file", OLD)
    rig.publish()
    other = PruneRig(tmp_path, rig.remote)
    rig.vfs.unlink(b"/file")
    rig.advance()
    (block_id,) = ids_of([OLD])
    move = rig.remote.move

    def late_move(key: str, target: str) -> None:
        rig.remote.move = move  # type: ignore[method-assign]
        other.exchange.take_over()
        other.make(b"/again", OLD)
        other.forget_locally()
        move(key, target)

    rig.remote.move = late_move  # type: ignore[method-assign]
    try:
        rig.prune()
        with pytest.raises(DisplacedError):
            rig.exchange.check_writer()
        assert other.stored("trash") == {block_id}
        assert other.read(b"/again") == OLD
        other.now_ns += 10**6 * SECOND_NS
        other.sweep()
        other.sweep()
        assert other.stored() == {block_id}
        assert other.read(b"/again") == OLD
    finally:
        other.close()


# What is told


def test_a_plan_tells_what_goes(rig: PruneRig) -> None:
    rig.make(b"/file", OLD)
    rig.make(b"/shared", OTHER)
    rig.make(b"/tiny", b"z" * 300)
    rig.advance()
    rig.write(b"/file", NEW)
    rig.write(b"/tiny", b"")
    rig.make(b"/also", OTHER)
    rig.vfs.unlink(b"/shared")
    rig.advance()
    rig.publish()
    told: list[dict[str, object]] = []
    done = rig.pruner.prune(NEWEST, is_dry=True, progress=told.append)
    # Before that it tells only that it goes on.
    assert [state for state in told if state] == [{"plan": done}] == told[-1:]
    assert (done["freed_blocks"], done["freed_bytes"]) == (1, len(OLD) + 300)
    assert 0 < done["pruned_moments"] < done["moments"]
    assert rig.stored() == ids_of([OLD, NEW, OTHER])
    rig.prune()
    done = rig.pruner.prune(NEWEST, is_dry=True, progress=told.append)
    assert (done["pruned_moments"], done["freed_blocks"], done["freed_bytes"]) == (1, 0, 0)
    with pytest.raises(UsageError):
        rig.pruner.prune(Policy(), is_dry=True, progress=told.append)


def test_nothing_goes_while_the_server_is_away(rig: PruneRig) -> None:
    rig.make(b"/file", OLD)
    rig.advance()
    rig.vfs.unlink(b"/file")
    rig.advance()
    rig.publish()
    rig.pruner._decide(NEWEST)
    rig.publish()
    rig.remote.go_offline()
    with pytest.raises(OfflineError):
        rig.pruner._work()
    rig.remote.go_online()
    rig.remote.check()
    rig.settle()
    assert rig.stored() == set()


def test_too_many_kept_moments_are_refused(rig: PruneRig) -> None:
    with pytest.raises(UsageError), rig.db.transaction():
        pruning.decide(rig.tree, 10**6, range(1, pruning.MAX_KEPT + 2))


def test_a_later_policy_brings_nothing_back(rig: PruneRig) -> None:
    """Its border lies before that of the one before, behind which some are gone."""
    for number in range(8):
        rig.write(b"/file", content(number))
        rig.advance(3600)
    rig.prune(Policy(hourly=5))
    first = pruning.decision(rig.db)
    rig.prune(Policy(within_seconds=2.5 * 3600))
    last = pruning.decision(rig.db)
    assert first is not None and last is not None and last != first
    assert last.horizon >= first.horizon
    rows = rig.db.query("SELECT seq FROM epoch WHERE seq <= ?", (last.horizon,))
    assert {row[0] for row in rows} == set(last.kept)


def test_the_next_checkpoint_is_without_what_was_pruned(rig: PruneRig) -> None:
    node = rig.make(b"/file", OLD)
    for number in range(3):
        rig.write(b"/file", content(number))
        rig.advance()
    rig.publish()
    rig.exchange.checkpoint()
    rig.pruner._decide(NEWEST)
    rig.publish()
    chunk = "SELECT object FROM chunk WHERE range = ?"
    assert rig.db.query_one(chunk, (node // 4096,)) != (None,)
    rig.settle()
    assert rig.db.query_one(chunk, (node // 4096,)) == (None,)
