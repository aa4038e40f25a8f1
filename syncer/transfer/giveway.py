"""Uploads that leave the processors to a program which writes just now.

Near a server, to send a block takes more processor time than to store it: what is uploaded while
a program still writes makes the program wait, by half as long again. So while new blocks keep
coming, uploads wait for a moment. Far from one the line is what limits uploads, and each moment
counts; and so it does where somebody waits for them, or room gets short.
"""

from __future__ import annotations

from collections.abc import Callable

#: A program that has made no new block for so long does not write just now.
_QUIET_SECONDS = 0.25
#: Who writes on and on is left alone at first only. What is written meanwhile is not published
#: earlier anyway: an epoch lasts longer.
_LONGEST_SECONDS = 3.0
#: Who waits for uploads says so more often than that.
_HURRY_SECONDS = 1.0


class GiveWay:
    """Not safe for several threads: whoever uses it has a lock of its own."""

    def __init__(self, newest: Callable[[], int], may_wait: Callable[[], bool]) -> None:
        """`newest` tells a number that grows with each new dirty block; `may_wait` whether
        nothing speaks against waiting."""
        self._newest_of = newest
        self._may_wait = may_wait
        self._newest = newest()
        self._newest_at = float("-inf")
        self._since = float("-inf")
        self._hurries_until = float("-inf")

    def hurry(self, now: float) -> None:
        """Somebody waits for uploads; to be called again as long as that is so."""
        self._hurries_until = now + _HURRY_SECONDS

    def waits(self, now: float) -> bool:
        """Whether the next upload should wait; to be asked again several times a second."""
        newest = self._newest_of()
        if newest != self._newest:
            if now - self._newest_at > _QUIET_SECONDS:
                self._since = now
            self._newest, self._newest_at = newest, now
        return (
            now - self._newest_at < _QUIET_SECONDS
            and now - self._since < _LONGEST_SECONDS
            and now >= self._hurries_until
            and self._may_wait()
        )
