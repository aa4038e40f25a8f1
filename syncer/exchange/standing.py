"""How things stand between this machine and the others, for `status`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExchangeStatus:
    """What `status` shows of the exchange. An epoch is the changes of some seconds."""

    role: str
    """"writer", "follower" or "displaced"."""
    generation: int
    writer: str
    """The name of the machine that may publish, "" if it is not known yet."""
    published: int
    """The newest epoch that the remote has; of a follower: that it has applied."""
    unpublished: int
    """Closed epochs that the remote lacks."""
    ignored_segments: int
    """Segments that were found to be published by a displaced writer, too late to count."""
    error: str
    """The last error in words, "" if the last attempt went well."""
