"""One login for several connections to a near server: sessions of one `ssh` (ControlMaster).

A login takes both ends some tenth of a second of processor time, most of it for a key that no
quantum computer is to find, as much as 40 MB of data. One more session on a connection that is
there costs next to nothing, and has the server work on its files with one more process. So do
servers notice that count logins, and people whose key wants to be touched. Over a long line each
connection carries what OpenSSH has under way on it, so there they stay apart.

The first process of a login carries the sessions of the others, which reach it by a socket in a
folder of ours. Its own session may end before theirs: then it lives on until the last of them has
ended. A login whose connections begin to end takes no more: its line may be dead, which its process
finds out late. What becomes of them if we are killed: all sessions lose their ends and end, and the
process with them; of one that is killed itself, the socket stays until the folder's next `Logins`.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .child import ChildSocket

_PREFIX, _SUFFIX = "ssh-", ".sock"


class Login:
    """A login, once its first connection is begun. Safe for use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = f"{_PREFIX}{secrets.token_hex(4)}{_SUFFIX}"
        self._lock = threading.Lock()
        # The lock guards what is below.
        self._words: list[str] | None = None
        self._carrier: ChildSocket | None = None
        self._children: set[ChildSocket] = set()
        self._is_ending = False

    @property
    def is_ending(self) -> bool:
        """Whether one of its connections has ended, so that it should take no more."""
        with self._lock:
            return self._is_ending

    @property
    def words(self) -> list[str] | None:
        """The command line of its first connection, for others; None: that is yet to begin."""
        with self._lock:
            return self._words

    def start(self, words: list[str]) -> ChildSocket:
        """Run a command line of `ssh`'s as a connection of this login.

        While the first one is not logged in, or where the server wants no more sessions on a
        connection (MaxSessions), `ssh` makes a login of its own.
        """
        with self._lock:
            options = {
                "ControlMaster": "no" if self._carrier else "yes",
                # Reached from the folder, since the name of a socket may have 108 bytes at most.
                "ControlPath": self._socket,
                "ControlPersist": "no",
            }
            more = [word for item in options.items() for word in ("-o", "=".join(item))]
            child = ChildSocket([words[0], *more, *words[1:]], self._folder)
            self._words = self._words or words
            self._carrier = self._carrier or child
            self._children.add(child)
            return child

    def end(self, child: ChildSocket) -> None:
        """End a connection that `start` has given."""
        with self._lock:
            self._is_ending = True
            self._children.discard(child)
            ended = [child] if child is not self._carrier or not self._children else []
            if not self._children and self._carrier not in (None, child):
                ended.append(self._carrier)
            is_last = not self._children
        if not ended:
            child.hang_up()
        for each in ended:
            each.close()
        if is_last:
            (self._folder / self._socket).unlink(missing_ok=True)


class Logins:
    """Which login a connection belongs to. Safe for use from several threads."""

    def __init__(self, folder: Path) -> None:
        """The sockets lie in `folder`, which no other process uses for this meanwhile."""
        self._folder = folder
        #: Whether connections should stay apart, since the line is long; set by the remote.
        self.stay_apart: Callable[[], bool] = lambda: False
        self._lock = threading.Lock()
        self._newest: Login | None = None
        with suppress(OSError):
            for old in folder.glob(f"{_PREFIX}*{_SUFFIX}*"):
                old.unlink()

    def take(self) -> Login | None:
        """The login for one more connection; None: it makes one of its own."""
        if self.stay_apart():
            return None
        with self._lock:
            if self._newest is None or self._newest.is_ending:
                self._newest = Login(self._folder)
            return self._newest


def takes_links(folder: Path) -> bool:
    """Whether a file there may have two names: `ssh` gives its socket a second, or ends."""
    first, second = folder / f"{_PREFIX}1{_SUFFIX}", folder / f"{_PREFIX}2{_SUFFIX}"
    try:
        first.touch(0o600)
        os.link(first, second)
    except OSError:
        return False
    finally:
        for name in (first, second):
            with suppress(OSError):
                name.unlink()
    return True
