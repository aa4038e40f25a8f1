"""What the ledger remembers of blocks besides their rows, and what it tells of all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Hold:
    """Why a block may not be removed though it may have no row. Guarded by `Ledger._lock`."""

    size_bytes: int
    count: int = 0
    #: The file is there, whole.
    stored: bool = False
    #: The budget counts the file, be it for its row or for this hold.
    charged: bool = False
    synced: bool = False


@dataclass(frozen=True)
class FileSync:
    """What has to be synced for a file to be power-safe as it was at one moment."""

    node_id: int
    turn: int
    """Of `Undo`: the one that ended for this file at that moment."""
    rows: dict[bytes, int | None]
    """Blocks with their places in the queue."""
    held: dict[bytes, Hold]


@dataclass(frozen=True)
class Usage:
    """What the local blocks amount to."""

    local_bytes: int
    """On the disk, in whole pages."""
    local_blocks: int
    dirty_bytes: int
    """Content that the remote lacks."""
    dirty_blocks: int
    inline_bytes: int
    """Contents that lie in the metadata; they count against the limit, too."""
