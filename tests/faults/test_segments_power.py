"""Power cuts while local segment files are written, and the database is damaged then as well.

What the committer's last whole round had must come back from the server, these files and the block
files: every name, every content, every attribute, as of that round or of one that was under way.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest

from syncer.blocks.cache import Cache
from syncer.exchange import writers
from syncer.exchange.journal import Journal
from syncer.exchange.roles import Exchange
from syncer.maintain.rebuild import Place, rebuild
from syncer.process.committer import Committer
from tests.block_rig import LIMIT_BYTES, SEED
from tests.faults.power import Disk, PowerCutError
from tests.faults.world import World
from tests.memory_remote import MemoryRemote
from tests.prune_rig import Copy, PruneRig
from tests.vfs_rig import fast_folder

_CUTS = int(os.environ.get("SYNCER_SEGMENT_CUTS", "20"))
_FIRST_CUT = int(os.environ.get("SYNCER_FIRST_SEGMENT_CUT", "0"))
_TORTURE_CUTS = 1000
_STEPS = 20
_ROUND_EFFECTS = 16
"""About as many changes and syncs of files as a round takes."""


@pytest.fixture(autouse=True)
def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository's seed is the rig's."""
    monkeypatch.setattr(writers.secrets, "randbits", lambda bits: SEED)


class JournaledRig(PruneRig):
    """With local segment files, written in the committer's rounds as the engine's are."""

    def __init__(
        self, folder: Path, remote: MemoryRemote | None = None, *, power_was_cut: bool = False
    ) -> None:
        #: What there was at the end of the last whole round, and at the beginning of the last one.
        self.copies: list[Copy] = []
        self._begins = power_was_cut
        super().__init__(folder, remote)

    def _open(self) -> None:
        if self._begins:
            self._power_was_cut = True
        self._begins = False
        super()._open()
        self.journal = Journal(self.db, self.folder / "segments")
        self.committer = Committer(
            self.db, self.epochs, self.blocks, self.vfs, 3600.0, lambda: None, self.journal.write
        )
        self.exchange = Exchange(
            self.db, self.epochs, self.remote, "rig",
            on_applied=lambda touched: self.tree.forget(),
            before_writing=self.blocks.forget_unnamed,
            journaled=self.journal.newest, note_marks=self.journal.note_marks,
            ready_objects=self.journal.objects,
        )  # fmt: skip

    def round(self, *, seal: bool = False) -> None:
        self.copies = [*self.copies[:1], self.copy()]
        super().round(seal=seal)
        self.copies = [self.copies[-1]]


class JournaledWorld(World):
    """Publishes as well. What is superseded goes at any moment, as when writers wait for room."""

    rig: JournaledRig

    def collect(self) -> None:
        super().collect()
        if self.random.random() < 0.5:
            self.rig.publish()
            self._all_is_safe()


def cut(seed: int) -> None:
    with fast_folder() as folder:
        before, after = folder / "before", folder / "after"
        before.mkdir()
        rig, world = _work_until_the_cut(before, after, seed)
        # What a mount comes to.
        whole = folder / "whole"
        shutil.copytree(after, whole)
        again = JournaledRig(whole, rig.remote, power_was_cut=True)
        world.check(again)
        again.round()
        again.close()
        # What a rebuilding comes to.
        for path in after.glob("metadata.db*"):
            path.unlink()
        _rebuild(after, rig.remote)
        rebuilt = JournaledRig(after, rig.remote, power_was_cut=True)
        assert rebuilt.copy() in rig.copies, "what the last round had is not all there"
        rebuilt.publish()
        rebuilt.evict_all()
        assert rebuilt.copy() in rig.copies
        rebuilt.close()


def _work_until_the_cut(before: Path, after: Path, seed: int) -> tuple[JournaledRig, World]:
    with Disk(before, seed) as disk:
        rig = JournaledRig(before)
        rig.publish()
        world = JournaledWorld(rig, seed)
        chance = random.Random(seed)
        with contextlib.suppress(PowerCutError):
            if chance.random() < 0.3:
                disk.effects_left = chance.randrange(20, 400)
                world.run(2 * _STEPS)
            else:
                # In the middle of a round, where most can go wrong.
                world.run(_STEPS)
                world.create()
                world.overwrite()
                disk.effects_left = chance.randrange(_ROUND_EFFECTS)
                world.round()
        disk.effects_left = -1
        disk.cut(after)
    rig.db.close()
    return rig, world


def _rebuild(folder: Path, remote: MemoryRemote) -> None:
    cache = Cache(folder / "blocks", LIMIT_BYTES, 0)
    place = Place(folder / "metadata.db", folder / "segments", cache)
    done = rebuild(place, remote, "rig", lambda *_: None)
    assert done is not None and done.role == "writer"
    lost = [problem for problem in done.problems if "neither here nor" in problem]
    assert not lost


@pytest.mark.parametrize("seed", range(_FIRST_CUT, _FIRST_CUT + _CUTS))
def test_a_rebuilding_after_a_power_cut_has_what_the_last_round_had(seed: int) -> None:
    cut(seed)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(_CUTS, _TORTURE_CUTS))
def test_a_thousand_rebuildings_have_what_the_last_rounds_had(seed: int) -> None:
    cut(seed)
