"""The rows of the table: what each says, in which unit, and what syncer is to reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure. `goal` is syncer's ratio to the best of `against`; larger is always better."""

    key: str
    title: str
    unit: str
    goal: float | None = None
    against: str = "peers"
    """``peers``, or the name of one column."""
    less_is_better: bool = False
    at_most: float | None = None
    """A goal that is a figure in `unit`, not a ratio; `at_least` likewise."""
    at_least: float | None = None


_LATENCY = (
    Row("latency-stat", "p99 of stat during transfers", "ms", less_is_better=True, at_most=5),
    Row(
        "latency-read",
        "p99 of a local 4 KiB read during transfers",
        "ms",
        less_is_better=True,
        at_most=5,
    ),
)

ROWS = (
    Row("write-1m", "sequential write, 1 MiB writes", "MB/s", 1.0),
    Row("write-sync", "the same, with fsync before close", "MB/s", 0.8, "native"),
    Row("write-4k", "sequential write, 4 KiB writes", "MB/s", 4.0),
    Row("write-128", "sequential write, 128 B writes", "1000/s", 10.0),
    Row("read-again", "read again, page cache dropped", "MB/s", 1.2),
    Row("read-random", "random 4 KiB reads, local", "/s", 1.5),
    Row("upload", "large file written and on the server", "MB/s", 1.0, "scp"),
    Row("upload-local", "upload of a large file that lies here", "MB/s", 1.0, "scp"),
    Row("cold-read", "cold sequential read from the server", "MB/s", 1.3),
    Row("create-4k", "create + write 4 KiB files", "/s", 2.0),
    Row("small-upload", "2,000 such files made and on the server", "s", less_is_better=True),
    Row("stat", "stat, cold kernel", "/s", 1.5),
    Row("read-small", "read 4 KiB files, local", "/s"),
    Row("rename", "rename", "/s", 2.0),
    Row("unlink", "unlink", "/s", 2.0),
    Row("create-empty", "create empty files", "/s", 2.0),
    Row("find", "find -printf after a remount", "entries/s", 2.5),
    Row("ls-lr", "ls -lR after a remount", "entries/s", 2.5),
    Row("rm-rf", "rm -rf", "entries/s", 2.0),
    Row("photos-head", "first 64 KiB of cold 4 MB photos", "files/s"),
    Row("photos-whole", "whole cold 4 MB photos, one after another", "MB/s"),
    Row("untar", "untar Python's standard library", "s", 1 / 0.6, less_is_better=True),
    Row("tar", "tar it back, page cache dropped", "s", 1 / 0.6, less_is_better=True),
    *_LATENCY,
    Row("first-ls", "mount to first ls of 100,000 files", "s", less_is_better=True, at_most=1),
    Row("memory", "the process's memory at rest, after it", "MB", less_is_better=True, at_most=80),
    Row("memory-run", "the process's memory after all the work", "MB", less_is_better=True),
)

#: What differs over a slow line.
WAN_ROWS = (
    Row("upload", "large file written and on the server", "MB/s", 0.85, "raw TCP"),
    Row("cold-read", "cold sequential read", "MB/s", 0.85, "raw TCP"),
    Row("first-look", "mount to the first 64 KiB of a cold photo", "s", less_is_better=True),
    Row("photos-head", "first 64 KiB of cold 4 MB photos", "files/s", at_least=75),
    Row("photos-whole", "whole cold 4 MB photos, one after another", "MB/s", 0.6, "raw TCP"),
    Row(
        "small-upload",
        "2,000 files of 4 KiB made and on the server",
        "s",
        less_is_better=True,
        at_most=3,
    ),
    *_LATENCY,
)

PEERS = ("sshfs", "rclone", "JuiceFS")
#: What Python behind libfuse could reach if it had nothing to do; see `bare`.
LIMIT = "bare"


def rows_for(link: str) -> tuple[Row, ...]:
    return WAN_ROWS if link == "wan" else ROWS
