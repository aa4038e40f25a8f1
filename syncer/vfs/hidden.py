"""Files that are removed while they are open.

libfuse's high-level interface renames such a file to ".fuse_hidden..." and removes that name with
the last handle. Here the hidden name exists in memory only: in the tree the file has lost its name
and is an orphan, so it is in no listing, in nobody's way, and in no history.

When the hiding is the first half of a rename over an open file, a crash before the second half
must bring the target back; a removal must not come back. The binding can mostly tell what the
program asked for (`asked`). Where a rename follows, or it is not known, the name is noted as gone
provisionally at first. That is made final by the same thread's next call or, if it is not known
what was asked for, as soon as the program's thread has gone on, which it does not before its rename
is done.

libfuse counts a file as open until a moment after the last `release` has returned. So it may hide a
file that is closed already, and then, as nobody closes it any more, forget to remove the hidden
name. So a file goes when its removal is final and its last handle is closed, whichever comes later,
and whether libfuse asks for it or not.

The hidden name, too, outlives the removal: libfuse goes on asking by it for what the kernel knew
before, as when a program opens a file at the very moment when it is replaced. So a file that was
replaced stays for a moment, though nobody has it open, and the name leads to it: who was that late
has opened it before. After that the answer is ESTALE, upon which the kernel looks its path up anew
and finds what is there now; ENOENT it would pass on to the program.

Between the two calls of a rename the target's place is empty. Who looks there finds the target.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from syncer.blocks.store import Blocks
from syncer.metadata.node import Node
from syncer.metadata.tree import Tree
from syncer.vfs.caller import Request
from syncer.vfs.files import Files
from syncer.vfs.replacing import Replacing

#: What libfuse makes of two 32-bit numbers: the file's, and a counter.
_NAME = re.compile(rb"\.fuse_hidden[0-9a-f]{16}")
#: How long libfuse may take to notice that a file was closed: the GIL and locks keep it waiting.
_NOTICES_SECONDS = 10.0
#: More than libfuse may still ask for.
_FORMER_NAMES = 4096
#: A rename follows its first half within microseconds, where nobody can tell whether the program
#: still waits for it.
_PROVISIONAL_SECONDS = 0.02
#: How soon it is looked whether it does, and how often at least.
_FIRST_LOOK_SECONDS, _LOOKS_SECONDS = 0.00005, 0.005
#: How long a call may be under way, on a busy machine, since the kernel found its file by name.
_LINGERS_SECONDS = 1.0


class _Taken(NamedTuple):
    """A name that was taken away, and the file that it led to."""

    parent: int
    name: bytes
    node: int


class _Watch(threading.Thread):
    """Calls `settle` once a program's thread has gone on, unless it is cancelled before.

    `sleeps` tells how often the thread has gone to sleep, if it sleeps: as often as before means
    that it waits for the same call. None stands for a thread that does not sleep, or that can't be
    seen; where that was so at the beginning, `settle` is called after some seconds.
    """

    def __init__(
        self, sleeps: Callable[[], int | None], seconds: float, settle: Callable[[], None]
    ) -> None:
        super().__init__(name="syncer-settle", daemon=True)
        self._sleeps = sleeps
        self._before = sleeps()
        self._seconds = seconds
        self._settle = settle
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self) -> None:
        interval = self._seconds if self._before is None else _FIRST_LOOK_SECONDS
        while not self._cancelled.wait(interval):
            if self._before is None or self._sleeps() != self._before:
                self._settle()
                return
            interval = min(2 * interval, _LOOKS_SECONDS)


class HiddenFiles:
    """The hidden names. Safe for use from several threads; `files.lock` guards its tables."""

    def __init__(self, tree: Tree, blocks: Blocks, files: Files) -> None:
        self._tree = tree
        self._blocks = blocks
        self._files = files
        self._nodes: dict[tuple[int, bytes], int] = {}
        #: Hidden names that are removed; the oldest first.
        self._former: dict[tuple[int, bytes], int] = {}
        self.replacing = Replacing()
        #: How long a replaced file stays.
        self.linger_seconds = _LINGERS_SECONDS
        #: Replaced files -> when they may go; the next one first.
        self._lingering: dict[int, float] = {}
        #: What the program asked for whose call this thread is at; set by the binding.
        self.asked: Callable[[], Request] = lambda: Request.UNKNOWN
        #: A program's thread -> how often it has gone to sleep; see `_Watch`. Set by the binding.
        self.sleeps: Callable[[int], int | None] = lambda thread: None
        #: thread -> the name that it took away last; a rename to it may follow.
        self._taken: dict[int, tuple[int, bytes]] = {}
        #: thread -> (that name, its file), while it is sure that a rename follows.
        self._awaited: dict[int, tuple[tuple[int, bytes], int]] = {}
        #: thread -> (what it took away, and may yet put another file there; what makes that final)
        self._provisional: dict[int, tuple[_Taken, _Watch]] = {}

    def find(self, parent: int, name: bytes) -> int | None:
        """The node behind a name that is hidden, or that a rename is about to replace; or None.
        ESTALE where there was one."""
        if (number := self._nodes.get((parent, name))) is not None:
            return number
        for place, target in list(self._awaited.values()):
            if place == (parent, name):
                return target
        number = self._former.get((parent, name))
        if number is not None and self._tree.node(number) is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return number

    def is_hiding(self, old: bytes, new: bytes) -> bool:
        """Whether a rename from path to path may be libfuse's, of a file that is to be hidden."""
        folder, _, name = new.rpartition(b"/")
        return folder == old.rpartition(b"/")[0] and bool(_NAME.fullmatch(name))

    def is_open(self, number: int) -> bool:
        """Whether libfuse may take a file for open."""
        return self._files.was_open(number, _NOTICES_SECONDS)

    def is_counted(self, target: bytes | int, number: int) -> bool:
        """Whether libfuse takes the name by which it asks for a node for one more link, that it
        then does not tell of: it made the hidden name itself."""
        if number not in self._nodes.values():
            return False
        return isinstance(target, int) or bool(_NAME.fullmatch(target.rpartition(b"/")[2]))

    def hide(self, node: Node, place: tuple[int, bytes], hidden: tuple[int, bytes]) -> None:
        """Take the name `place` (directory, name) from a file; while it is open, `hidden` leads to
        it."""
        with self._files.lock, self._tree.transaction():
            self._blocks.unname(self._tree.unlink(*place, keep=True))
            self._taken[threading.get_ident()] = place
            if self._files.is_open(node.id):
                self._nodes[hidden] = node.id
                self._tree.aliases.hide(node.id, *hidden)
            else:
                self._note_former(hidden, node.id)
            asked = self.asked()
            if asked is Request.REMOVAL:
                self._remove(node.id)
                return
            if asked is Request.RENAME:
                self._awaited[threading.get_ident()] = place, node.id
            if self.linger_seconds:
                self._lingering.pop(node.id, None)
                self._lingering[node.id] = time.monotonic() + self.linger_seconds
            self._tree.provisional.note(*place, node.id)
            thread, taken = threading.get_ident(), _Taken(*place, node.id)
            watch = self._watch_for(asked, partial(self._settle, thread, taken))
            self._provisional[thread] = taken, watch
            watch.start()

    def _watch_for(self, asked: Request, settle: Callable[[], None]) -> _Watch:
        """What makes a removal final that may be the first half of a rename."""
        if asked is Request.RENAME:
            return _Watch(lambda: None, _NOTICES_SECONDS, settle)
        return _Watch(partial(self.sleeps, self.replacing.thread()), _PROVISIONAL_SECONDS, settle)

    def settle(self) -> None:
        """What this thread hid before its present call is final: call this first in every call."""
        self._awaited.pop(threading.get_ident(), None)
        self.settle_removal()
        self.let_go()

    def settle_removal(self) -> None:
        """The same in the transaction of the rename whose first half it was."""
        if self._provisional:
            self._settle(threading.get_ident(), None)

    def renamed(self, path: bytes) -> None:
        """What was at `path`, and may have been hidden for that, has been replaced."""
        self._awaited.pop(threading.get_ident(), None)
        self.replacing.replaced(path)

    def let_go(self, *, at_once: bool = False) -> None:
        """Remove replaced files that nobody may ask for any more. The caller holds no lock."""
        if not self._lingering:
            return
        now = time.monotonic()
        gone = []
        with self._files.lock:
            for number, due in list(self._lingering.items()):
                if due > now and not at_once:
                    break
                del self._lingering[number]
                self._remove(number)
                gone.append(number)
        for number in gone:
            self._files.forget(number)

    def may_replace(self, new: tuple[Node, bytes], path: bytes) -> bool:
        """Whether a rename to that place, at `path`, may replace something: then `before_rename`
        comes first. Raises what `Replacing.step_aside` does."""
        taken = self._taken.get(threading.get_ident())
        place = new[0].id, new[1]
        if taken != place:
            # Who has hidden the target can't go back.
            self.replacing.step_aside(path)
        return taken is not None or self._tree.lookup(*place) is not None

    def before_rename(self, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """A file that is about to replace another one is whole on the disk first.

        Else a power cut after the rename could cost both.
        """
        with self._files.lock:
            number = self._tree.lookup(old[0].id, old[1])
            node = None if number is None else self._tree.node(number)
            self._await_rename()
            place = new[0].id, new[1]
            was_hidden = self._taken.pop(threading.get_ident(), None) == place
            replaces = was_hidden or self._tree.lookup(*place) is not None
            if node is None or not node.is_file or not replaces:
                return
            handle = self._files.open(node)
        try:
            self._files.fsync(handle, lambda: None)
            with self._files.lock:
                # Not before: where that fails, so does the rename, and its target stays pinned.
                self._hand_on_pin(new, node.id)
        finally:
            if self._files.release(handle):
                self.closed(node.id)

    def _hand_on_pin(self, place: tuple[Node, bytes], heir: int) -> None:
        """What is about to take a pinned file's place is pinned from then on."""
        replaced = self._tree.lookup(place[0].id, place[1])
        if replaced is None:
            taken, _ = self._provisional.get(threading.get_ident(), (None, None))
            if taken is not None and taken[:2] == (place[0].id, place[1]):
                replaced = taken.node
        if replaced is not None:
            self._tree.pins.inherit(replaced, heir)

    def _await_rename(self) -> None:
        """If this thread hid a file just now, it was for a rename, which may take its time."""
        _, watch = self._provisional.get(threading.get_ident(), (None, None))
        if watch is not None:
            watch.cancel()

    def stop(self) -> None:
        """The file system ends: no call follows any more, and all that was hidden is final."""
        for thread in list(self._provisional):
            self._settle(thread, None)
        self.let_go(at_once=True)

    def _settle(self, thread: int, only: _Taken | None) -> None:
        with self._files.lock:
            taken, watch = self._provisional.get(thread, (None, None))
            if taken is not None and watch is not None and only in (None, taken):
                del self._provisional[thread]
                watch.cancel()
                with self._tree.transaction():
                    self._tree.provisional.end(taken.parent, taken.name)
                    self._remove(taken.node)

    def reveal(self, parent: int, name: bytes) -> bool:
        """Remove a hidden name, and its file unless that is still open; False: there is none."""
        with self._files.lock:
            number = self._forget((parent, name))
            if number is not None:
                self._remove(number)
        return number is not None

    def _forget(self, place: tuple[int, bytes]) -> int | None:
        """Forget a hidden name; returns the node that it led to."""
        number = self._nodes.pop(place, None)
        if number is not None:
            self._tree.aliases.reveal(number, *place)
            self._note_former(place, number)
        return number

    def _note_former(self, place: tuple[int, bytes], number: int) -> None:
        self._former[place] = number
        if len(self._former) > _FORMER_NAMES:
            for oldest in list(self._former)[: _FORMER_NAMES // 2]:
                del self._former[oldest]

    def closed(self, number: int) -> None:
        """The last handle of a file was closed."""
        with self._files.lock:
            for place in [place for place, node in self._nodes.items() if node == number]:
                self._forget(place)
            self._remove(number)
        self._files.forget(number)

    def _remove(self, number: int) -> None:
        """Remove a file if it has no name, gets none back and is closed. Holds the lock."""
        node = self._tree.node(number)
        if node is None or node.nlink or self._files.is_open(number):
            return
        if number in self._lingering:
            return
        if all(number != taken.node for taken, _ in self._provisional.values()):
            with self._tree.transaction():
                self._blocks.unname(self._tree.remove_orphan(number))

    def recover(self) -> None:
        """After an unclean end: finish the removals, or undo those that were provisional."""
        for parent, name, number in self._tree.provisional.names():
            with self._tree.transaction():
                if self._can_return(parent, name, number):
                    self._tree.restore_name(parent, name, number)
                self._tree.provisional.end(parent, name)
        for number in self._tree.orphans():
            with self._tree.transaction():
                self._blocks.unname(self._tree.remove_orphan(number))

    def _can_return(self, parent: int, name: bytes, number: int) -> bool:
        both_are = self._tree.node(parent) is not None and self._tree.node(number) is not None
        return both_are and self._tree.lookup(parent, name) is None
