"""Who makes a call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Who calls: what new files belong to."""

    uid: int
    gid: int


SUPERUSER = Caller(0, 0)
