"""Large collections to measure in: folders of photos of 4 MB, whose blocks are nowhere.

Making a million files through any mount takes a quarter of an hour. So a few statements write the
rows, just as the mount would, and then syncer's own checkpoint of them is put on the remote, a
directory: what was published before it has long been cleaned up. `syncer fsck` finds such a
collection to be in order.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from syncer.config import Config
from syncer.exchange.checkpoint import Checkpoints
from syncer.exchange.settling import Settling
from syncer.exchange.writers import RepositoryInfo
from syncer.metadata.connection import connect
from syncer.metadata.db import Database
from syncer.metadata.node import ROOT, node_base
from syncer.process.repository import remote_of

FOLDER_FILES = 1000
PHOTO_BYTES = 4_000_000
PHOTO_BLOCKS = -(-PHOTO_BYTES // (1 << 20))
#: About what a mount makes before an epoch ends.
EPOCH_FILES = 10_000
#: What is made before the log of the database is taken into it.
STEP_FILES = 500_000

_NUMBERS = (
    "WITH RECURSIVE numbers(i) AS"
    " (SELECT :first UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < :last)"
)
_FOLDER = ":base + i / :folder_files * (:folder_files + 1)"
_FILE = f"({_FOLDER} + 1 + i % :folder_files)"
_STATEMENTS = f"""
INSERT INTO epoch SELECT :epoch, value, :epoch, :time FROM meta WHERE key = 'machine';
{_NUMBERS} INSERT INTO node
  SELECT {_FOLDER}, :epoch, {0o40755}, :uid, :gid, 0, 2, 0, :time, :time, :time, :time, NULL, 0
  FROM numbers WHERE i % :folder_files = 0;
{_NUMBERS} INSERT INTO name
  SELECT {ROOT}, CAST(printf('album-%05d', i / :folder_files) AS BLOB), {_FOLDER}, :epoch
  FROM numbers WHERE i % :folder_files = 0;
{_NUMBERS} INSERT INTO node
  SELECT {_FILE}, :epoch, {0o100644}, :uid, :gid, 0, 1, {PHOTO_BYTES},
    :time + i, :time + i, :time + i, :time + i, NULL, {PHOTO_BLOCKS}
  FROM numbers;
{_NUMBERS} INSERT INTO name
  SELECT {_FOLDER}, CAST(printf('IMG_%07d.jpg', i) AS BLOB), {_FILE}, :epoch FROM numbers;
{_NUMBERS} INSERT INTO content
  SELECT {_FILE}, 0, :epoch, randomblob({16 * PHOTO_BLOCKS}) FROM numbers;
UPDATE usage SET nodes = nodes + :last - :first + :folders,
  file_bytes = file_bytes + (:last - :first) * {PHOTO_BYTES};
UPDATE node SET nlink = nlink + :folders WHERE id = {ROOT};
UPDATE meta SET value = value + :last - :first + :folders WHERE key = 'next_node';
"""
"""What makes the files `first` to `last` - 1 in an epoch of their own."""


def folder_name(number: int) -> str:
    return f"album-{number:05}"


def file_name(number: int) -> str:
    return f"IMG_{number:07}.jpg"


def path_of(mountpoint: Path, number: int) -> Path:
    return mountpoint / folder_name(number // FOLDER_FILES) / file_name(number)


def prepare(
    folder: Path,
    count: int,
    *,
    limit: str = "5G",
    folder_files: int = FOLDER_FILES,
    deadline: float = math.inf,
) -> bool:
    """Make a collection of so many files, or go on with it; whether it is complete in time.

    `folder` then has the data directory `data`, the server's `remote`, and `mnt`.
    """
    data = folder / "data"
    if not data.exists():
        (folder / "mnt").mkdir(parents=True, exist_ok=True)
        run("init", data, folder / "remote", limit)
    while (made := _files_in(data)) < count:
        if time.monotonic() > deadline:
            return False
        _fill(data, made, min(count, made + STEP_FILES), folder_files)
    return _publish(data, deadline)


def _files_in(data: Path) -> int:
    """How many files were made so far."""
    with closing(Database(data / "metadata.db")) as db:
        row = db.query_one("SELECT file_bytes FROM usage")
        assert row is not None
        return int(row[0]) // PHOTO_BYTES


def _fill(data: Path, first: int, last: int, folder_files: int) -> None:
    """Make the files from number `first` to `last` - 1."""
    with closing(connect(data / "metadata.db")) as connection:
        ((machine,),) = connection.execute("SELECT value FROM meta WHERE key = 'machine'")
        for start in range(first, last, EPOCH_FILES):
            end = min(last, start + EPOCH_FILES)
            ((newest,),) = connection.execute("SELECT coalesce(max(seq), 0) FROM epoch")
            values = {
                "epoch": newest + 1,
                "first": start,
                "last": end,
                "folders": -(-end // folder_files) - -(-start // folder_files),
                "folder_files": folder_files,
                "base": node_base(machine) + 1,
                "time": time.time_ns(),
                "uid": os.getuid(),
                "gid": os.getgid(),
            }
            with connection:
                connection.execute(_STATEMENTS, values)


def _publish(data: Path, deadline: float) -> bool:
    """Have a checkpoint of everything on the remote; whether it is complete in time."""
    config = Config.load(data / "config")
    with closing(Database(data / "metadata.db")) as db, closing(remote_of(config)) as remote:
        row = db.query_one("SELECT max(seq) FROM epoch")
        with db.transaction():
            db.execute("DELETE FROM outbox")
            db.set_meta("published", row[0] if row else 0)
        info = RepositoryInfo(db.get_meta("uuid"), db.get_meta("seed"))
        checkpoints = Checkpoints(db, remote, info, Settling(remote))
        while not checkpoints.step():
            if time.monotonic() > deadline:
                return False
        db.sync()
    return True


def run(*words: object) -> str:
    """A command of syncer's; returns what it prints."""
    command = [sys.executable, "-m", "syncer", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout
