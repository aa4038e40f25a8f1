"""From the words of ``syncer mount`` to a plan that is checked: what can be wrong shows here,
before anything is made or changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from pathlib import Path

from syncer import libfuse
from syncer.config import DEFAULT_LIMIT_BYTES, Config, setting_for
from syncer.errors import ForeignError, MountError, UsageError
from syncer.process import mounts
from syncer.process.daemon import MountPlan, PastMoment
from syncer.process.folder import DataFolder
from syncer.remote import Location, parse
from syncer.values import parse_size

_OPTIONS = ("allow_other", "dev", "noatime", "ro", "suid")
_ONLY_ROOTS = ("dev", "suid")
_FUSE_SETTINGS = Path("/etc/fuse.conf")


def plan_mount(arguments: argparse.Namespace, at: PastMoment | None = None) -> MountPlan:
    """Check everything that can be checked without the remote.

    A mount point that a crashed mount left behind is cleared on the way. Raises SyncerError.
    """
    remote, mountpoint, limit = split_words(arguments.words)
    location = parse(remote) if remote else None
    data = mounts.real(Path(arguments.data))
    folder = DataFolder(data)
    folder.look()
    if at is not None:
        # It takes no lock, and leaves a log all the same.
        folder.check_owner()
    is_new = not os.path.exists(folder.config)
    limit_bytes = None if limit is None else parse_limit(limit)
    if is_new:
        config = _new_config(folder, location, limit_bytes)
    else:
        config = _known_config(folder, location, limit_bytes)
    options = _mount_options(arguments.options)
    if at is not None:
        options = (*options, "ro")
    for key in ("transport", "fuse", "writeback", "subtype", "show_snapshots"):
        if text := getattr(arguments, key):
            config = config.with_value(key, text)
    fuse = libfuse.choose_version(config.fuse)
    mounts.check_fuse(fuse)
    path = Path(os.path.abspath(mountpoint))
    # Before it is resolved: what a crash left behind can't be looked at.
    mounts.prepare_mountpoint(path)
    path = mounts.real(path)
    check_apart(data, path, parse(config.remote))
    return MountPlan(
        data=data,
        mountpoint=path,
        config=config,
        is_new=is_new,
        fuse=fuse,
        options=options,
        at=at,
        take_over=arguments.take_over,
        log_file=Path(os.path.abspath(arguments.log_file)) if arguments.log_file else None,
        verbose=arguments.verbose,
    )


def split_words(words: list[str]) -> tuple[str | None, str, str | None]:
    """(REMOTE, MOUNTPOINT, MAX_MB) from the one to three words behind DATA. Raises UsageError."""
    match words:
        case [mountpoint]:
            return None, mountpoint, None
        case [mountpoint, limit] if _is_size(limit):
            return None, mountpoint, limit
        case [remote, mountpoint]:
            return remote, mountpoint, None
        case [remote, mountpoint, limit]:
            return remote, mountpoint, limit
    raise UsageError("too many words: syncer mount DATA [REMOTE] MOUNTPOINT [MAX_MB]")


def _is_size(text: str) -> bool:
    try:
        parse_size(text)
    except UsageError:
        return False
    return True


def parse_limit(text: str) -> int:
    """Bytes, from MAX_MB. Raises UsageError."""
    try:
        limit_bytes: int = setting_for("max_size").kind.parse(text)
    except ValueError as error:
        raise UsageError(f"MAX_MB must be {error}, not {text!r}") from error
    return limit_bytes


def _new_config(folder: DataFolder, location: Location | None, limit_bytes: int | None) -> Config:
    if location is None and folder.unfinished.is_file():
        return _with_limit(Config.load(folder.unfinished), limit_bytes)
    if location is None:
        raise UsageError(
            f"{folder.path} is no data directory yet; to make it, say where the collection is to be"
            " kept: syncer mount DATA REMOTE MOUNTPOINT"
        )
    # A relative path on this machine becomes absolute with this.
    return Config(remote=str(location), limit_bytes=limit_bytes or DEFAULT_LIMIT_BYTES)


def _known_config(folder: DataFolder, location: Location | None, limit_bytes: int | None) -> Config:
    config = Config.load(folder.config)
    if location is not None and str(location) != config.remote:
        raise ForeignError(
            f"{folder.path} belongs to {config.remote}, not to {location}; use another data"
            " directory"
        )
    return _with_limit(config, limit_bytes)


def _with_limit(config: Config, limit_bytes: int | None) -> Config:
    return config if limit_bytes is None else dataclasses.replace(config, limit_bytes=limit_bytes)


def _mount_options(written: list[str]) -> tuple[str, ...]:
    options = [option for text in written for option in text.split(",") if option]
    for option in options:
        if option not in _OPTIONS:
            raise UsageError(f"-o {option!r} is unknown; there are {', '.join(_OPTIONS)}")
        if option in _ONLY_ROOTS and os.geteuid() != 0:
            raise UsageError(f"-o {option}: only root may mount so")
    if "allow_other" in options and os.geteuid() != 0 and not _others_are_allowed():
        raise MountError(
            f"-o allow_other: {_FUSE_SETTINGS} must have a line user_allow_other; root can add it"
        )
    return tuple(options)


def _others_are_allowed() -> bool:
    try:
        text = _FUSE_SETTINGS.read_text(errors="replace")
    except OSError:
        return False
    return bool(re.search(r"^\s*user_allow_other\s*$", text, re.MULTILINE))


def check_apart(data: Path, mountpoint: Path | None, remote: Location) -> None:
    """Raise UsageError if one of the folders lies in another: each would change the other."""
    named = [("the data directory", data)]
    if mountpoint:
        named.append(("the mount point", mountpoint))
    if remote.is_local:
        named.append(("the remote", mounts.real(Path(remote.path))))
    for inner_name, inner in named:
        for outer_name, outer in named:
            if inner_name != outer_name and (inner == outer or outer in inner.parents):
                raise UsageError(
                    f"{inner_name} {inner} must not lie in {outer_name} {outer}; choose another"
                )
