"""The times that writes give a file, until its node has them.

A write that a program's call brings us has the time of that call. Pages that the kernel kept were
written earlier; when, it tells by setting the time before it flushes or closes the file. It tells
nothing if the file had that time already: one that is written within the tick of the clock in
which it was made. So pages get a *guess*, the time at which they come, which stands after a crash
(content that has changed must never look unchanged), and is taken back once the kernel has had its
chance to tell. Else a file would show another time after a remount than before, and `git` and
`rsync` would read it again.
"""

from __future__ import annotations

from syncer.metadata.node import Node
from syncer.metadata.tree import Tree


class WriteTimes:
    """The time of a file's last write, of which its node may not know. Its lock guards it."""

    def __init__(self, node_id: int, tree: Tree) -> None:
        self._node_id = node_id
        self._tree = tree
        #: The time of the last write that is not in the tree yet, or None.
        self.latest_ns: int | None = None
        self._is_guess = False
        #: What `latest_ns` was before it became a guess.
        self._sure_ns: int | None = None
        #: Guesses that the node may have, and the times (mtime, ctime) that it had before.
        self._guesses: set[int] = set()
        self._before = 0, 0

    @property
    def has_saved_guess(self) -> bool:
        """Whether the node may have a time that was only guessed."""
        return bool(self._guesses)

    def wrote(self, time_ns: int) -> None:
        """The file was written to at that time."""
        self.latest_ns, self._is_guess = time_ns, False

    def took_pages(self, now_ns: int) -> None:
        """The kernel handed over pages; when they were written is not known yet."""
        if not self._is_guess:
            self._sure_ns = self.latest_ns
        self.latest_ns, self._is_guess = now_ns, True

    def tell(self, time_ns: int, *, is_dirty: bool) -> None:
        """The kernel tells when it took what it handed over, or has yet to hand over.

        Unless the file is dirty, so that a flush will save it, the node has it at once.
        """
        self.wrote(time_ns)
        if not is_dirty:
            self.save()
            self.saved()

    def settle(self, *, is_dirty: bool) -> None:
        """The kernel flushes the file: of what it handed over, it has told all there is to tell."""
        node = self._tree.node(self._node_id)
        if node is not None and node.nlink > 1:
            # By another name, of which it keeps other times, it may have handed over some as well.
            return
        if self._is_guess:
            self.latest_ns, self._is_guess = self._sure_ns, False
        if not is_dirty and self.has_saved_guess:
            self.save()
            self.saved()

    def save(self, **values: int) -> bool:
        """Commit the times, with other values of the node; False: it is gone, removed meanwhile."""
        with self._tree.transaction():
            node = self._tree.node(self._node_id)
            if node is None:
                return False
            if self._is_guess and self.latest_ns is not None:
                self._before = self._sure_times(node)
                self._guesses.add(self.latest_ns)
            saved = self.put_on(node).changed(**values)
            if saved != node:
                self._tree.save(saved)
            return True

    def forget(self) -> None:
        """The caller sets the file's times itself: what was written before does not count."""
        self.latest_ns, self._is_guess = None, False
        self._guesses.clear()

    def saved(self) -> None:
        """All that was written is in the tree, and the node has its time."""
        if not self._is_guess:
            self._guesses.clear()
        self.latest_ns, self._is_guess = None, False

    def put_on(self, node: Node) -> Node:
        """The node with the times of the writes."""
        mtime_ns, ctime_ns = self._sure_times(node)
        if (written_ns := self.latest_ns) is not None:
            mtime_ns = written_ns
            # A program may have changed the mode since. What is ahead of the clock is older than
            # the clock's being set back.
            if not written_ns < ctime_ns <= self._tree.now_ns():
                ctime_ns = written_ns
        return node.changed(mtime_ns=mtime_ns, ctime_ns=ctime_ns)

    def _sure_times(self, node: Node) -> tuple[int, int]:
        """The node's mtime and ctime, but in place of guesses what was there before them."""
        mtime_ns, ctime_ns = self._before
        return (
            mtime_ns if node.mtime_ns in self._guesses else node.mtime_ns,
            ctime_ns if node.ctime_ns in self._guesses else node.ctime_ns,
        )
