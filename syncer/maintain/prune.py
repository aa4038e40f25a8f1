"""Pruning, from a policy to what is gone: by command, or by itself where the settings say so.

    plan      which moments stay and what goes with the others; nothing is changed
    decide    the decision becomes a row, and is published like any change (`metadata/pruning`)
    remove    rows that no kept moment sees go, in steps; on every machine that follows, too
    sweep     objects of blocks that nothing names go to the trash, and after the grace for good

What a crash leaves, and why nothing is lost that is kept, stands in `metadata/pruning` for the rows
and in `maintain/sweep` for the blocks. All but the first two is done by one thread, `syncer-prune`,
which finds out from the database what there is to do: so whatever was cut off goes on with the
next mount, whether or not anybody asks for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from syncer.blocks.store import Blocks
from syncer.config import Config
from syncer.errors import AccessError, SyncerError, TemporaryError, UsageError
from syncer.exchange.checkpoint import forget_epochs, forget_nodes
from syncer.exchange.roles import Exchange
from syncer.maintain.figures import Freed, Tell, freed
from syncer.maintain.policy import Policy
from syncer.maintain.sweep import Sweeper
from syncer.metadata import pruning
from syncer.metadata.db import Database
from syncer.metadata.history import History, Moment
from syncer.metadata.moments import Moments
from syncer.metadata.tree import Tree
from syncer.remote.base import Remote
from syncer.transfer.uploads import Uploads
from syncer.transfer.workers import Crew

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

#: Between two looks whether there is something to do; while the decision is not published yet; and
#: after a failure.
_IDLE_SECONDS = 60.0
_POLL_SECONDS = 0.2
_RETRY_SECONDS = 60.0
#: How often a command that waits tells that it does.
_TELL_SECONDS = 0.5
#: When the last rows of garbage are to be forgotten, which is not urgent.
_FORGET_SECONDS = 2 * 3600
#: After each step others have as much time as it took, but not more than this.
_LONGEST_REST_SECONDS = 0.05
#: Between two moments this is a leap of the clock, until as much as a day of changes follows it.
_LEAP_SECONDS = 30 * 86400
_DAY_SECONDS = 86400
#: For what is not to be deleted now.
_CENTURY_SECONDS = 100 * 366 * 86400
_SECOND_NS = 10**9


@dataclass(frozen=True)
class Plan:
    """What a policy would change."""

    horizon: int
    kept: frozenset[int]
    """Of the epochs up to the horizon; all behind it are kept."""
    moments: int
    """How many there are now."""
    pruned: int
    """How many of them go."""


class Pruner:
    """Prunes one data directory. Safe for use from several threads after `start`."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        history: History,
        moments: Moments,
        blocks: Blocks,
        uploads: Uploads,
        exchange: Exchange,
        remote: Remote,
        *,
        config: Callable[[], Config],
        close_epoch: Callable[[], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`close_epoch` makes history of all that was written so far, and has it published."""
        self._db = db
        self._tree = tree
        self._history = history
        self._moments = moments
        self._blocks = blocks
        self._exchange = exchange
        self._config = config
        self._close_epoch = close_epoch
        self._clock_ns = clock_ns
        self._crew = Crew()
        self._crew.add("prune", self._step)
        self._sweeper = Sweeper(
            db, blocks, uploads, exchange, remote, self._crew.stopping, clock_ns
        )
        self._kicked = threading.Event()
        self._pause_seconds = 0.0
        self._is_waiting_for_time = False
        self._changed = threading.Condition()
        # The condition guards everything below.
        self._asked = 0
        self._served = 0
        self._failure: SyncerError | None = None
        #: What was done since the start: rows, and the figures of `Swept`.
        self._done: Counter[str] = Counter()

    def start(self) -> None:
        """Start the thread; not before a fork."""
        self._crew.start()

    def ask_to_stop(self) -> None:
        """End the thread soon: it breaks off what it does between two steps."""
        self._crew.stopping.set()
        self._kicked.set()

    def stop(self, timeout_seconds: float) -> bool:
        """Wait for the thread's end; False if it does not come in time."""
        self.ask_to_stop()
        return self._crew.stop(timeout_seconds)

    def kick(self) -> None:
        """There may be something to do."""
        self._kicked.set()

    @property
    def error(self) -> str:
        """Why it does not go on though the server can be reached; "" if it does."""
        with self._changed:
            failure = self._failure
        return "" if failure is None or isinstance(failure, TemporaryError) else str(failure)

    # Planning

    def plan(self, policy: Policy) -> Plan | None:
        """What a policy would change; None if nothing is published yet."""
        with self._db.lock:
            newest = self._history.kept_by(self._db.get_meta("published"))
            if not newest:
                return None
            border, kept = policy.select(self._moment(newest), self._at)
            # What was pruned before stays so: behind the new horizon everything is there.
            before = pruning.decision(self._db)
            horizon = max(border, before.horizon if before else 0)
            kept |= {found.epoch for found in self._moments.named()}
            rows = self._db.query(
                "SELECT seq FROM epoch WHERE seq > ? AND seq <= ?", (border, horizon)
            )
            kept |= {row[0] for row in rows}
            kept = {epoch for epoch in kept if epoch <= horizon and self._history.is_kept(epoch)}
            ((moments, reached),) = self._db.query(
                "SELECT count(*), total(seq <= ?) FROM epoch", (horizon,)
            )
            return Plan(horizon, frozenset(kept), moments, int(reached) - len(kept))

    def _moment(self, epoch: int) -> Moment:
        return Moment(epoch, self._history.time_ns(epoch))

    def _at(self, time_ns: int) -> Moment | None:
        epoch = self._history.epoch_at(time_ns)
        return self._moment(epoch) if epoch else None

    # By command

    def prune(self, policy: Policy, *, is_dry: bool, progress: Progress) -> dict[str, Any]:
        """Tell as progress what goes, and then (but not if `is_dry`) wait until it has.

        Raises UsageError, AccessError, and TemporaryError if it can't be done now; what is decided
        by then goes on in the background.
        """
        if not policy:
            raise UsageError("say what to keep, such as: --keep-within 7d --keep-daily 30")
        self._check_writer()
        self._close_epoch()
        plan = self.plan(policy)
        told = self._tell(plan, lambda: progress({}))
        progress({"plan": told})
        if is_dry:
            return told
        before = self._counts()
        self._decide(policy)
        self._wait(progress)
        done = {key: count - before[key] for key, count in self._counts().items()}
        return {**told, **done, "grace_seconds": self._config().grace_seconds}

    def _counts(self) -> dict[str, int]:
        keys = ("rows", "trashed_blocks", "trashed_bytes", "deleted_blocks", "deleted_bytes")
        with self._changed:
            return {key: self._done[key] for key in keys}

    def _check_writer(self) -> None:
        if self._exchange.role != "writer":
            raise AccessError("only the computer that writes may prune: another one does")

    def _tell(self, plan: Plan | None, tell: Tell) -> dict[str, Any]:
        goes = Freed(0, 0)
        if plan is not None and plan.pruned:
            goes = freed(self._db, plan.horizon, plan.kept, tell)
        return {
            "moments": plan.moments if plan else 0,
            "pruned_moments": plan.pruned if plan else 0,
            "freed_blocks": goes.blocks,
            "freed_bytes": goes.size_bytes,
        }

    def _decide(self, policy: Policy) -> None:
        with self._db.transaction():
            # Once more, since a moment may have been named meanwhile.
            plan = self.plan(policy)
            if plan is not None and plan.pruned:
                pruning.decide(self._tree, plan.horizon, plan.kept)
            self._db.set_meta("sweep_ns", self._clock_ns())
        self._close_epoch()

    def _wait(self, progress: Progress) -> None:
        """Have the thread do all that there is to do, and wait for it."""
        with self._changed:
            self._asked += 1
            wanted, self._failure = self._asked, None
        self._kicked.set()
        while True:
            with self._changed:
                if self._served < wanted and self._failure is None:
                    self._changed.wait(_TELL_SECONDS)
                is_done, failure = self._served >= wanted, self._failure
            if is_done:
                return
            progress(self._counts())
            if failure is None and (error := self._exchange.status().error):
                failure = TemporaryError(error)
            if failure is not None:
                raise TemporaryError(f"{failure}; what was decided goes on by itself later")

    # By itself

    def _step(self) -> None:
        self._kicked.wait(self._pause_seconds)
        self._kicked.clear()
        if self._crew.stopping.is_set():
            return
        with self._changed:
            asked = self._asked
        try:
            is_done = self._work()
        except SyncerError as error:
            log.info("pruning waits: %s", error)
            self._pause_seconds = _RETRY_SECONDS
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        self._pause_seconds = self._idle_seconds() if is_done else _POLL_SECONDS
        with self._changed:
            self._failure = None
            if is_done:
                self._served = asked
            self._changed.notify_all()

    def _idle_seconds(self) -> float:
        return min(_IDLE_SECONDS, self._config().prune_seconds) if self._policy() else _IDLE_SECONDS

    def _work(self) -> bool:
        """Do what there is to do; False if it has to wait for the publisher."""
        is_writer = self._exchange.role == "writer"
        if self._exchange.role == "displaced":
            return True
        if is_writer and self._is_policy_due() and self._may_prune_by_itself():
            self._follow_policy()
        if (found := pruning.pending(self._db)) is not None:
            self._remove(found)
        if not is_writer:
            return True
        decided = pruning.decision(self._db)
        if decided is not None and decided.epoch != self._db.get_meta("pruned", 0):
            return False
        # Without a grace the next one is due at once.
        while self._is_sweep_due():
            self._sweep()
        return True

    def _is_sweep_due(self) -> bool:
        sweep_ns = self._db.get_meta("sweep_ns", 0)
        if not sweep_ns:
            return False
        longest_ns = (self._config().grace_seconds + _FORGET_SECONDS + _DAY_SECONDS) * _SECOND_NS
        # One that is due later than any can be was noted by a clock that was ahead.
        return not 0 < sweep_ns - self._clock_ns() <= longest_ns

    def _policy(self) -> Policy:
        config = self._config()
        return Policy(
            config.keep_within_seconds,
            config.keep_hourly,
            config.keep_daily,
            config.keep_weekly,
            config.keep_monthly,
            config.keep_yearly,
        )

    def _is_policy_due(self) -> bool:
        if not self._policy():
            return False
        age_ns = self._clock_ns() - self._db.get_meta("policy_ns", 0)
        # A clock that was set back must not stop it for years.
        return not 0 <= age_ns < self._config().prune_seconds * _SECOND_NS

    # What a clock that is wrong must not do

    def _may_prune_by_itself(self) -> bool:
        """Whether the times of the newest moments can be relied on.

        A clock that is ahead for a while gives moments of years to come. By these all before is
        old. So what goes without a person's word waits until the clock has come to them.
        """
        newest = self._newest()
        latest_ns = self._clock_ns() + _DAY_SECONDS * _SECOND_NS
        is_to_come = newest is not None and newest.time_ns > latest_ns
        may = not is_to_come and not self._has_leapt(newest)
        if may is self._is_waiting_for_time:
            self._is_waiting_for_time = not may
            if not may:
                log.info("pruning waits: the clock is not where the newest moments are")
        return may

    def _may_delete(self) -> bool:
        """Whether what is in the trash has been there for as long as the clock says."""
        newest = self._newest()
        if newest is None or self._has_leapt(newest):
            return False
        return self._clock_ns() - newest.time_ns <= _LEAP_SECONDS * _SECOND_NS

    def _newest(self) -> Moment | None:
        epoch = self._history.kept_by(self._moments.latest())
        return self._moment(epoch) if epoch else None

    def _has_leapt(self, newest: Moment | None) -> bool:
        """Whether the clock was found far ahead less than a day of changes ago."""
        before = newest and self._at(newest.time_ns - _DAY_SECONDS * _SECOND_NS)
        if not before:
            return False
        after_ns = self._history.time_ns(self._history.kept_from(before.epoch + 1))
        return after_ns - before.time_ns > _LEAP_SECONDS * _SECOND_NS

    def _follow_policy(self) -> None:
        plan = self.plan(self._policy())
        if plan is not None and plan.pruned:
            told = self._tell(plan, self._check_stopping)
            log.info(
                "pruning %d of %d moments, which frees %d blocks with %d bytes",
                plan.pruned,
                plan.moments,
                told["freed_blocks"],
                told["freed_bytes"],
            )
        self._decide(self._policy())
        self._db.set_meta("policy_ns", self._clock_ns())

    def _remove(self, found: pruning.Decision) -> None:
        db = self._db
        for _ in self._paced(
            pruning.forget_moments(db, found, lambda *span: forget_epochs(db, *span))
        ):
            pass
        for count in self._paced(pruning.remove_unseen(db, lambda *span: forget_nodes(db, *span))):
            with self._changed:
                self._done["rows"] += count
        pruning.finish(db, found)

    def _paced(self, steps: Iterator[int]) -> Iterator[int]:
        """The steps one by one, with as much time for others in between as each took."""
        while True:
            began = time.monotonic()
            count = next(steps, None)
            if count is None:
                return
            yield count
            took_seconds = time.monotonic() - began
            self._crew.stopping.wait(min(took_seconds, _LONGEST_REST_SECONDS))
            self._check_stopping()

    def _check_stopping(self) -> None:
        if self._crew.stopping.is_set():
            raise TemporaryError("the mount ends; the rest goes on with the next mount")

    def _sweep(self) -> None:
        asked_ns = self._db.get_meta("sweep_ns")
        grace_seconds = self._config().grace_seconds
        self._blocks.garbage.begin_by(self._clock_ns())
        may_delete = not grace_seconds or self._may_delete()
        swept = self._sweeper.sweep(grace_seconds if may_delete else _CENTURY_SECONDS)
        if swept.waiting_since_ns is not None:
            next_ns = swept.waiting_since_ns + grace_seconds * _SECOND_NS
            if not may_delete:
                next_ns = max(next_ns, self._clock_ns() + _DAY_SECONDS * _SECOND_NS)
        elif not self._blocks.garbage.is_empty():
            next_ns = self._clock_ns() + (grace_seconds + _FORGET_SECONDS) * _SECOND_NS
        else:
            next_ns = 0
        with self._db.transaction():
            # Unless another one was asked for meanwhile.
            if self._db.get_meta("sweep_ns") == asked_ns:
                self._db.set_meta("sweep_ns", next_ns)
        log.info(
            "swept: %d blocks moved to the trash, %d deleted from it, %d moved back",
            swept.trashed_blocks,
            swept.deleted_blocks,
            swept.returned_blocks,
        )
        with self._changed:
            self._done.update(
                trashed_blocks=swept.trashed_blocks,
                trashed_bytes=swept.trashed_bytes,
                deleted_blocks=swept.deleted_blocks,
                deleted_bytes=swept.deleted_bytes,
            )
