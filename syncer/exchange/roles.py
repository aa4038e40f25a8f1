"""Publish this machine's epochs, or follow those of the repository's writer.

Only the writer publishes (`publish`); the others apply what it did (`recover`), and one of them may
take over (`writers`). A displaced writer keeps all it has and publishes no more, and so does a data
directory that turns out to be a copy of the writer's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import NoReturn

from syncer.errors import (
    AccessError,
    CorruptError,
    DisplacedError,
    SyncerError,
    UsageError,
)
from syncer.exchange import stranded
from syncer.exchange.checkpoint import Backlog, Checkpoints
from syncer.exchange.identity import Identity
from syncer.exchange.incoming import Touched
from syncer.exchange.publish import Looks, Publisher, ReadyObjects
from syncer.exchange.recover import (
    AppliedHook,
    BehindError,
    Follower,
    note_follower,
    reload,
)
from syncer.exchange.rows import MAX_EPOCH
from syncer.exchange.setback import GAP, LOST_ROLE, RedoBlocks, Setback
from syncer.exchange.settling import Settling
from syncer.exchange.standing import ExchangeStatus
from syncer.exchange.writers import (
    Chain,
    RepositoryInfo,
    Writers,
    is_description_of,
    new_machine,
    next_node,
    note_machine,
)
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.pruning import prune
from syncer.remote.base import Remote
from syncer.remote.retry import again

log = logging.getLogger(__name__)

#: Larger sets of touched keys are told as "everything may have changed".
_MAX_TOUCHED = 50_000
#: How often the other machines are told that this one is alive.
_NOTE_SECONDS = 3600.0
#: How often a writer with nothing to publish looks whether it still is one.
_LOOK_SECONDS = 5.0
#: For so long a look that was taken ahead of a publication is its first one.
_LOOK_HOLDS_SECONDS = 1.0
_COPY = "this data directory is a copy or was restored from a backup"


class Exchange:
    """One data directory's part in the repository. Safe for use from several threads."""

    def __init__(
        self,
        db: Database,
        epochs: Epochs,
        remote: Remote,
        name: str,
        on_applied: AppliedHook = lambda touched: None,
        journaled: Callable[[], int] = lambda: MAX_EPOCH,
        before_writing: Callable[[], None] = lambda: None,
        note_marks: Callable[[str], None] = lambda tokens: None,
        ready_objects: ReadyObjects = lambda identity, first, last, parent: [],
        wait_uploaded: Callable[[], bool] = lambda: False,
        keep_stranded: Callable[[], None] = lambda: None,
        redo_blocks: RedoBlocks = lambda first_byte, sizes: None,
    ) -> None:
        """`name` is what others call this machine, such as its host name.

        `on_applied` is called after others' changes were applied, with the keys that were
        touched, or None: everything may have changed. It must not call back. `journaled`,
        `ready_objects` and `wait_uploaded` are for the `Publisher`. `before_writing` is called in
        the transaction that makes this machine the writer; `note_marks` with what `identity` must
        not forget; `keep_stranded` by a displaced writer until it raises nothing, to have its
        blocks stay here; `redo_blocks` is for `Setback`. From now on, `remote` is used only where
        it holds this repository.
        """
        info = RepositoryInfo(db.get_meta("uuid"), db.get_meta("seed"))
        remote.expect(partial(is_description_of, info))
        self._db = db
        self._epochs = epochs
        self._remote = remote
        self._name = name
        self._info = info
        self._on_applied = on_applied
        self._before_writing = before_writing
        self._keep_stranded = keep_stranded
        #: Held by whoever publishes, follows or takes over; guards everything below.
        self._turn = threading.RLock()
        self._writers = Writers(remote, info)
        self._follower = Follower(db, remote, info, self._writers)
        settling = Settling(remote)
        self._publisher = Publisher(
            db,
            epochs,
            remote,
            info,
            Looks(self._look_first, self._keys_behind, self._look_behind),
            journaled,
            settling,
            ready_objects,
            wait_uploaded,
        )
        self._checkpoints = Checkpoints(db, remote, info, settling)
        self._identity = Identity(db, remote, self._writers, note_marks)
        self._setback = Setback(db, remote, redo_blocks)
        self._is_identified = False
        self._is_adopted = False
        #: `Remote.arrivals` as of then, and where this generation began.
        self._adopted_at = 0
        self._began_after = 0
        self._is_settled = False
        self._is_kept = False
        self._looked_at = 0.0
        self._look_holds_until = 0.0
        self._noted_at: float | None = None
        # Set under _turn, read by `status` without it.
        self._writer_name = ""
        #: What the last step ended with, another one each time; None if it went well.
        self.failure: SyncerError | None = None
        self._follow_if_nothing_is_stranded()

    def _follow_if_nothing_is_stranded(self) -> None:
        """A displaced writer without changes of its own is a follower like any other.

        And a follower has none: it would lay its small rewrites over what others have written.
        """
        is_even = self._publisher.newest_closed() <= self._db.get_meta("published")
        is_even = is_even and not self._setback.text
        is_stranded = stranded.count(self._db) > 0
        is_whole = stranded.is_whole(self._db)
        if self.role == "displaced" and is_even and is_whole and not is_stranded:
            self._db.set_meta("role", "follower")
        elif self.role == "follower" and is_stranded:
            self._db.set_meta("role", "displaced")

    @property
    def role(self) -> str:
        """ "writer", "follower" or "displaced"."""
        return str(self._db.get_meta("role"))

    @property
    def setback(self) -> str:
        """Why what was published may not be on the remote any more, for people; "" if it is."""
        return self._setback.text

    @property
    def has_lost_role(self) -> bool:
        """Whether the remote has lost that this machine is the writer."""
        return self._setback.has_lost_role

    def status(self) -> ExchangeStatus:
        """The state of things, without a wait and without asking the remote."""
        role = self.role
        published: int = self._db.get_meta("published")
        waiting = 0 if role == "follower" else self._publisher.newest_closed() - published
        return ExchangeStatus(
            role=role,
            generation=self._db.get_meta("generation"),
            writer=self._writer_name,
            published=published,
            unpublished=max(0, waiting),
            ignored_segments=len(self._follower.branches),
            error=str(self.failure or ""),
        )

    def step(self, *, looks_ahead: bool = False, is_ahead: bool = False) -> bool:
        """Do what the role asks for; whether there is more to do at once.

        With `looks_ahead`, somebody waits for a publication that is about to be possible: its
        first look is taken now. With `is_ahead`, what it publishes is whole in a moment.

        Raises DisplacedError when the role was lost, and whatever the remote raises; `status`
        shows the error until a step succeeds, and that of a displaced writer for good.
        """
        with self._turn:
            try:
                is_busy = self._step(looks_ahead, is_ahead)
            except SyncerError as error:
                self.failure = again(error)
                raise
            if self.role != "displaced":
                self.failure = None
            return is_busy

    def _step(self, looks_ahead: bool, is_ahead: bool) -> bool:
        if self.role == "follower":
            return self.follow()
        if self.role == "displaced":
            if not self._is_settled:
                self.check_writer()
            return self._starts_over()
        if looks_ahead and self._is_up_to_date() and not self._has_looked_ahead():
            self.check_writer()
            self._look_holds_until = time.monotonic() + _LOOK_HOLDS_SECONDS
        # A checkpoint has steps of its own: who waits for a publication does not wait for it.
        if self.publish_once(is_ahead=is_ahead):
            return True
        if not self._publisher.backlog.is_due or not self._setback.may_checkpoint():
            return False
        self._checkpoint_step()
        return True

    # Publishing

    def publish_once(self, *, is_ahead: bool = False) -> bool:
        """Publish the closed epochs that are whole, as one segment; whether there were any.

        With `is_ahead`, also those that are whole in a moment. Raises DisplacedError if another
        machine has become the writer.
        """
        with self._turn:
            if not self._is_up_to_date():
                self._adopt()
            self._setback.compare()
            self._note_machine()
            try:
                is_published = False
                if not self._setback.has_gap:
                    is_published = self._publisher.publish(is_ahead=is_ahead)
                if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                    self.check_writer()
            except SyncerError:
                # Perhaps the remote has the segment, and only its answer was lost; or it is away,
                # and comes back as it was before.
                self._is_adopted = False
                raise
            return is_published or not self._is_up_to_date()

    def _adopt(self) -> None:
        """See what the remote has of what this machine has published."""
        self._identify(needs_mark=True)
        self.check_writer()
        self._adopted_at = self._remote.arrivals
        if not self._publisher.adopt(self._began_after):
            self._renew_identity()
        if self._publisher.has_gap:
            self._setback.note(GAP)
        elif self._setback.has_gap:
            # Of an earlier process.
            self._publisher.make_up_for_loss()
        self._is_adopted = True

    def _is_up_to_date(self) -> bool:
        return self._is_adopted and self._adopted_at == self._remote.arrivals

    def _has_looked_ahead(self) -> bool:
        return time.monotonic() < self._look_holds_until

    def _look_first(self) -> bool:
        if not self._has_looked_ahead():
            self.check_writer()
        self._look_holds_until = 0.0
        return self._is_up_to_date()

    def _keys_behind(self) -> Collection[str]:
        claim = self._writers.later_claim(self._db.get_meta("generation"))
        return [claim, *self._identity.own_keys()]

    def _look_behind(self, there: frozenset[str]) -> None:
        if there != set(self._identity.own_keys()):
            self.check_writer()
            self._is_adopted = False
            if any(key.startswith("log/") for key in self._identity.own_keys() if key not in there):
                self._setback.note(GAP)

    # Who the writer is

    def check_writer(self) -> None:
        """Raise DisplacedError, and note the role, if this machine is not the writer."""
        with self._turn:
            chain = self._writers.look()
            self._looked_at = time.monotonic()
            if self._is_identified and self._identity.is_shared():
                self._renew_identity()
            if self._is_identified and self._identity.is_gone():
                self._is_identified = self._is_adopted = False
            generation: int = self._db.get_meta("generation")
            machine: int = self._db.get_meta("machine")
            newest = chain.newest
            is_lost = newest is None or newest.generation < generation
            if self.role == "writer" and (is_lost or not chain.has(generation, machine)):
                self._setback.note(LOST_ROLE)
                is_lost = True
            if newest is None or is_lost:
                raise CorruptError(
                    f"{self._remote.name} has lost who the repository's writer is; save what only"
                    " this computer has with syncer export, then make a new clone"
                )
            self._writer_name = newest.name
            is_newest = (newest.generation, newest.machine) == (generation, machine)
            if self.role == "writer":
                self._setback.note_role()
                self._began_after = chain.links[-1].after
            if is_newest and self.role == "writer":
                return
            if is_newest:
                self._is_settled = True
                self._displace(_COPY)
            self._settle(chain)
            self._displace(f"{newest.name} has become the repository's writer")

    def _identify(self, *, needs_mark: bool) -> None:
        """Make sure, once, that no other data directory has this machine's id."""
        if not self._is_identified:
            is_own = self._identity.begin(needs_mark=needs_mark)
            if self._identity.has_lost_mark and self.role == "writer":
                self._setback.note()
            if not is_own:
                self._renew_identity()
        self._is_identified = True

    def _renew_identity(self) -> None:
        """This is a copy: go on under a new machine id, with all that is here.

        A writer is displaced, which raises DisplacedError: the other one goes on in its place.
        Where that leaves nothing stranded, it is a follower from the next start on.
        """
        machine = new_machine(self._remote)
        was_writer = self.role == "writer"
        with self._db.transaction():
            self._db.set_meta("machine", machine)
            self._db.set_meta("marks", "")
            if was_writer:
                self._db.set_meta("role", "displaced")
        log.info("%s: it is now machine %016x", _COPY, machine)
        self._is_identified = self._identity.begin(needs_mark=False)
        self._noted_at = None
        self._note_machine()
        if was_writer:
            self._is_settled = True
            self._displace(_COPY)

    def _displace(self, reason: str) -> NoReturn:
        if self.role == "writer":
            self._db.set_meta("role", "displaced")
        # The next step tries again.
        with contextlib.suppress(SyncerError):
            self._keep()
        raise DisplacedError(f"{reason}; what is not published yet is kept here, and stays so")

    def _starts_over(self) -> bool:
        """Become a follower, if nothing that anybody would see is stranded; else keep it."""
        if not stranded.is_nothing(self._db):
            self._keep()
            return False
        # Its epochs are not those of the history: all that is here is made anew.
        reload(self._db, self._remote, self._info, partial(stranded.forget, self._db))
        self._epochs.restart()
        self._on_applied(None)
        return True

    def _keep(self) -> None:
        if not self._is_kept:
            self._keep_stranded()
            self._is_kept = True

    def _settle(self, chain: Chain) -> None:
        """Count own segments that the next writer has seen, though they came after its claim."""
        generation = self._db.get_meta("generation")
        for link in chain.links:
            if link.generation == generation and link.end is not None:
                self._publisher.count_until(link.end)
        self._is_settled = not chain.is_changing_hands

    def take_over(self) -> None:
        """Make this follower the writer, with everything that was published until now.

        Crash before its last step: this machine is a follower still, and the next call goes on
        from the claim it has made. Raises DisplacedError if another machine did so at the same
        time and won, UsageError if this one was the writer before and was displaced.
        """
        with self._turn:
            if self.role == "writer":
                return
            if self.role == "displaced":
                raise UsageError(
                    "this data directory has changes that are not in the repository's history:"
                    " syncer export writes them into a folder; make a new clone to take over"
                )
            if not self._identity.is_marked:
                self._is_identified = False
            self._identify(needs_mark=True)
            self.follow()
            self._identity.renumber(self._name)
            machine: int = self._db.get_meta("machine")
            claim = self._writers.claim(machine, self._name)
            self._follow(as_claimant=True)
            last = self._follower.last_link
            published: int = self._db.get_meta("published")
            if last is None or last.generation != claim.generation:
                previous = last.generation if last else 0
                parent: str = self._db.get_meta("parent_segment")
                self._writers.settle(claim.generation, previous, published, parent)
            # What the former writer pruned may be gone from the remote: nothing may name it here.
            prune(self._db)
            with self._db.transaction():
                self._before_writing()
                self._db.execute("DELETE FROM chunk")
                self._db.set_meta("checkpoint", 0)
                self._db.set_meta("next_node", next_node(self._db, machine))
                self._db.set_meta("generation", claim.generation)
                self._db.set_meta("writer", machine)
                self._db.set_meta("role", "writer")
            self._is_adopted = False
            self._noted_at = None
            self._epochs.restart()
            self._on_applied(None)

    def _note_machine(self) -> None:
        now = time.monotonic()
        if self._noted_at is not None and now - self._noted_at < _NOTE_SECONDS:
            return
        machine, published = self._db.get_meta("machine"), self._db.get_meta("published")
        if self.role == "follower":
            note_follower(self._remote, machine, self._name, published)
        else:
            with contextlib.suppress(AccessError):
                note_machine(self._remote, machine, self._name, self.role, published)
        self._noted_at = now

    # Following

    def follow(self) -> bool:
        """Apply what the writer has published since; whether there was something."""
        with self._turn:
            if self.role != "follower":
                return False
            self._identify(needs_mark=False)
            self._note_machine()
            is_new = self._follow()
            if self._identity.is_shared():
                self._renew_identity()
            return is_new

    def _follow(self, *, as_claimant: bool = False) -> bool:
        before = self._db.get_meta("published")
        try:
            self._follower.follow(self._tell, as_claimant=as_claimant)
        except BehindError:
            reload(self._db, self._remote, self._info)
            self._on_applied(None)
            self._follower.follow(self._tell, as_claimant=as_claimant)
        finally:
            self._epochs.restart()
            self._writer_name = self._follower.writer_name
        return bool(self._db.get_meta("published") != before)

    def _tell(self, touched: Touched) -> None:
        is_small = len(touched.entries) + len(touched.nodes) <= _MAX_TOUCHED
        self._on_applied(touched if is_small else None)

    # Checkpoints

    def checkpoint(self) -> None:
        """Make a checkpoint of what is published, and delete what it makes superfluous."""
        with self._turn:
            if not self._is_adopted:
                self.publish_once()
            while not self._checkpoint_step():
                pass

    def renew_checkpoint(self) -> None:
        """Make a whole new checkpoint, since the remote has lost something; as `checkpoint`."""
        with self._turn:
            self.check_writer()
            self._publisher.heal()
            self.publish_once()
            self._checkpoints.start_over()
            while not self._checkpoint_step(thoroughly=True):
                pass

    def _checkpoint_step(self, *, thoroughly: bool = False) -> bool:
        if not self._checkpoints.step():
            return False
        self.check_writer()
        self._publisher.backlog = Backlog()
        if self._setback.may_checkpoint():
            self._setback.end()
        self._checkpoints.clean_up(thoroughly=thoroughly)
        return True
