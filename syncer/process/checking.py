"""`fsck` of a data directory that is not mounted: the database first, and then all else.

What a damaged database needs comes before an engine can be made: see `rebuild`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import Any

from syncer.blocks.cache import Cache
from syncer.config import Config
from syncer.errors import CorruptError, FormatError, MissingError
from syncer.exchange.journal import Journal
from syncer.maintain.findings import Report
from syncer.maintain.fsck import REBUILT_KINDS, Options
from syncer.maintain.invariants import check_history
from syncer.maintain.rebuild import Place, rebuild
from syncer.metadata.db import Database
from syncer.metadata.soundness import integrity_faults, look
from syncer.process.control import Progress
from syncer.process.engine import Engine
from syncer.process.folder import DataFolder
from syncer.process.repository import remote_of

log = logging.getLogger(__name__)

_DATABASE = "damaged database"
_SET_ASIDE = "changes without a history"
#: SQLite's own complaints that are told.
_FAULTS = 20


def check_alone(folder: DataFolder, options: Options, on_progress: Progress) -> dict[str, Any]:
    """Check, and with `options.repair` repair; returns the report.

    Raises BusyError if a process has the data directory, and what reaching the remote raises.
    """
    with folder.lock():
        return _Check(folder, options, on_progress).run()


class _Check:
    def __init__(self, folder: DataFolder, options: Options, on_progress: Progress) -> None:
        self._folder = folder
        self._config = Config.load(folder.config)
        self._options = options
        self._on_progress = on_progress
        self._report = Report()

    def _tell(self, what: str, done: int, total: int) -> None:
        self._on_progress({"what": what, "done": done, "total": total})

    def run(self) -> dict[str, Any]:
        """All of it; returns the report."""
        if self._look_at_database() and self._options.repair:
            self._rebuild(role=None)
            self._report.repaired(_DATABASE)
        elif self._report.has(_DATABASE):
            # What it says can't be trusted, so there is nothing to compare with.
            self._report.note("the rest can only be checked when the database is repaired")
            return self._report.result()
        elif self._options.repair:
            self._rebuild_tree()
        engine = Engine(self._folder.path, self._config)
        try:
            engine.fsck(self._options, self._report, self._on_progress)
        finally:
            engine.stop()
        return self._report.result()

    def _look_at_database(self) -> bool:
        """Whether the database's file is damaged, missing, or an old one."""
        self._tell("database", 0, 0)
        try:
            with contextlib.closing(Database(self._folder.database, must_exist=True)) as db:
                look(db)
                Journal(db, self._folder.segments)
                faults = integrity_faults(db, _FAULTS)
        except CorruptError as error:
            faults = [str(error)]
        for fault in faults:
            self._report.found(_DATABASE, fault)
        return bool(faults)

    def _rebuild(self, role: str | None) -> bool:
        cache = Cache(self._folder.blocks, self._config.limit_bytes, 0)
        place = Place(self._folder.database, self._folder.segments, cache)
        with contextlib.closing(remote_of(self._config)) as remote:
            done = rebuild(place, remote, socket.gethostname(), self._tell, role)
        if done is None:
            return False
        if done.set_aside:
            self._report.found(
                _SET_ASIDE,
                f"changes that do not fit the server's history are kept in {done.set_aside};"
                " nobody else may have them",
            )
        for problem in done.problems:
            self._report.note(problem)
        self._report.note(
            f"the database was built anew, as that of a {done.role}: epochs to {done.published}"
            f" from the server, to {done.newest} from this computer"
        )
        if done.kept:
            self._report.note(f"the damaged database is kept as {done.kept}")
        return True

    def _rebuild_tree(self) -> None:
        """Where rows are wrong that the remote may have right: take them from there.

        What is wrong there as well is mended later, by new versions.
        """
        found = Report()
        with contextlib.closing(Database(self._folder.database, must_exist=True)) as db:
            with db.snapshot(spills=True) as reader:
                check_history(reader, found, self._tell)
            if not found.has(*REBUILT_KINDS):
                return
            role: str = db.get_meta("role")
            # What is not published must be in the local segment files, as the last round left it.
            with contextlib.suppress(CorruptError):
                newest = db.query_one("SELECT max(seq) FROM epoch")
                Journal(db, self._folder.segments).write(newest[0] or 0 if newest else 0)
        try:
            if self._rebuild(role):
                self._report.take_over(found)
        except (CorruptError, FormatError, MissingError) as error:
            self._report.note(f"the server's history does not help: {error}")
