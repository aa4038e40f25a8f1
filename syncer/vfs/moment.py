"""One past state as a file system of its own, for a mount beside that of the present."""

from __future__ import annotations

from syncer.blocks.store import Blocks
from syncer.metadata.history import History
from syncer.metadata.moments import Moments
from syncer.metadata.tree import Tree
from syncer.vfs.calls import Target
from syncer.vfs.files import Files
from syncer.vfs.snapshots import Place, SnapshotVfs
from syncer.vfs.states import States


class MomentVfs(SnapshotVfs):
    """The tree as it was at the end of one epoch. Every call that changes something is EROFS."""

    def __init__(
        self,
        tree: Tree,
        blocks: Blocks,
        files: Files,
        history: History,
        moments: Moments,
        states: States,
        epoch: int,
    ) -> None:
        super().__init__(tree, blocks, files, history, moments, states)
        self._shown_epoch = epoch

    def _is_past(self, target: Target) -> bool:
        return True

    def _place(self, path: bytes) -> Place:
        return self._descend([part for part in path.split(b"/") if part], self._shown_epoch)
