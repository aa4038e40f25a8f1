"""Who makes a call, and what for."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Who calls: what new files belong to."""

    uid: int
    gid: int


SUPERUSER = Caller(0, 0)


class Request(enum.Enum):
    """Which system call of the caller's is being answered; libfuse itself does not tell."""

    REMOVAL = enum.auto()
    RENAME = enum.auto()
    UNKNOWN = enum.auto()
