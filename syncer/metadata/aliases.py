"""Files that the kernel knows by several names, and takes for several files.

libfuse's high-level interface gives each name a number of its own, so to the kernel a hard link is
another file, with a size, pages and times of its own. What is noted here tells `vfs` when it must
have the kernel forget something, and which files the kernel must keep nothing of. The hidden names
of files that were removed while open (see `vfs.hidden`) are such names too.
"""

from __future__ import annotations

import threading


class _Stale(threading.local):
    """Files that the current thread has changed, and not told the kernel of yet.

    By thread, so that the call that made a change is the one that waits until it shows.
    """

    def __init__(self) -> None:
        self.numbers: set[int] = set()


class Aliases:
    """What the kernel may know of files under their other names. Safe for several threads."""

    def __init__(self) -> None:
        self._stale = _Stale()
        #: Their content or size has changed while they had several names.
        self._diverged: set[int] = set()
        self._hidden: dict[int, frozenset[tuple[int, bytes]]] = {}

    def note(self, number: int, links: int, *, content: bool) -> None:
        """A file that has, or had just now, `links` names has changed."""
        if links + len(self.hidden(number)) > 1:
            self._stale.numbers.add(number)
            if content:
                self._diverged.add(number)

    def take_stale(self) -> set[int]:
        """The files that this thread has changed since its last call."""
        if not self._stale.numbers:
            return self._stale.numbers
        taken, self._stale.numbers = self._stale.numbers, set()
        return taken

    def is_known_twice(self, number: int, links: int) -> bool:
        """Whether the kernel may have something else of a file than we do, by one of its names.

        A name that is the last to be left may have been known for long, with the size and the
        pages that the file had when it was last used by that name.
        """
        return links > 1 or number in self._diverged or number in self._hidden

    def forget(self, number: int) -> None:
        """The file is gone."""
        self._diverged.discard(number)

    # Hidden names

    def hide(self, number: int, parent: int, name: bytes) -> None:
        """The kernel knows an open file by this name, which is in no table."""
        self._hidden[number] = self.hidden(number) | {(parent, name)}

    def reveal(self, number: int, parent: int, name: bytes) -> None:
        """It forgets that name."""
        left = self.hidden(number) - {(parent, name)}
        if left:
            self._hidden[number] = left
        else:
            self._hidden.pop(number, None)

    def hidden(self, number: int) -> frozenset[tuple[int, bytes]]:
        """The hidden names of a file: (parent, name)."""
        return self._hidden.get(number, frozenset())
