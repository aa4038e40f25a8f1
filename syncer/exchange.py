"""Publish this machine's epochs, or follow those of the repository's writer."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from syncer.db import Database
from syncer.epochs import Epochs
from syncer.remote.base import Remote


@dataclass(frozen=True)
class ExchangeStatus:
    """What `status` shows. All counts are of epochs, which are changes of some seconds each."""

    role: str
    """"writer", "follower" or "displaced"."""
    generation: int
    writer: str
    """Who may publish now: the name of that machine, "" if unknown."""
    published: int
    """The newest epoch that the remote has (of a follower: that it has applied)."""
    unpublished: int
    """Closed epochs that the remote lacks."""
    stranded: int
    """Of a displaced writer: changes (names and files) that will not be published."""
    error: str
    """The last error in words, "" if the last attempt went well."""


#: Called after others' changes were applied, under no lock: the touched entries as (directory,
#: name) and the touched nodes; None: everything may have changed.
AppliedHook = Callable[[Set[tuple[int, bytes]] | None, Set[int] | None], None]


class Exchange:
    """One data directory's part in the repository. Its calls are made by one thread at a time,
    but `status`, which any thread may call."""

    def __init__(
        self,
        db: Database,
        epochs: Epochs,
        remote: Remote,
        name: str,
        on_applied: AppliedHook = lambda entries, nodes: None,
    ) -> None:
        """`name` is what this machine is called in messages to others, such as its host name."""

    def publish_once(self) -> bool:
        """Publish the closed epochs that are whole; whether there was something to publish.

        Raises DisplacedError if another machine has become the writer.
        """
        raise NotImplementedError

    def follow(self) -> bool:
        """Apply what the writer has published since; whether there was something."""
        raise NotImplementedError

    def check_writer(self) -> None:
        """Raise DisplacedError, and note the role, if another machine has become the writer."""
        raise NotImplementedError

    def take_over(self) -> None:
        """Make this follower the writer, with everything that was published until now.

        Raises DisplacedError if another machine did so at the same time and won.
        """
        raise NotImplementedError

    def status(self) -> ExchangeStatus:
        raise NotImplementedError


class ExchangeLoop:
    """The thread `syncer-publisher`: publishes or follows, as the role says."""

    def __init__(self, exchange: Exchange, interval_seconds: float = 5.0) -> None: ...

    def start(self) -> None: ...

    def kick(self) -> None:
        """An epoch was closed or blocks became clean: look at once."""

    def stop(self) -> None:
        """Ask the thread to end, and wait for it."""
