"""Mounting at login: an XDG autostart entry or a systemd user unit.

Both forms run ``python -m syncer mount DATA MOUNTPOINT`` with the Python that runs now. There is
one entry for each mount point, in one form: adding it again, or in the other form, replaces it.
Nothing here prints, talks to a running systemd or looks at a mount.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from syncer.errors import (
    AccessError,
    BusyError,
    DisplacedError,
    ForeignError,
    FormatError,
    HostKeyError,
    LoginError,
    MissingError,
    MountError,
    UsageError,
)

# Both file formats leave groups of this form to others. It holds the paths in percent encoding, so
# that listing needs to undo neither format's quoting.
_GROUP = "X-Syncer"

# A second try would end as the first did, until a person has acted.
_FINAL_ERRORS = (
    UsageError,
    MissingError,
    AccessError,
    LoginError,
    HostKeyError,
    ForeignError,
    FormatError,
    BusyError,
    MountError,
    DisplacedError,
)


@dataclass(frozen=True)
class Entry:
    """One mount at login."""

    data: Path
    mountpoint: Path
    systemd: bool
    """A systemd user unit, not an XDG autostart entry."""
    file: Path


def add(data: Path, mountpoint: Path, *, systemd: bool = False) -> Entry:
    """Mount ``data`` at ``mountpoint`` at each login; returns what stands for it now.

    A systemd unit is enabled, but not started: ``systemctl --user start`` its file's name.

    Raises UsageError for a path that such a file can't hold, and AccessError.
    """
    data, mountpoint = _absolute(data), _absolute(mountpoint)
    entry = _entry(data, mountpoint, systemd=systemd)
    text = _unit_text(entry) if systemd else _autostart_text(entry)
    try:
        _write(entry.file, text)
        if systemd:
            link = _wants_link(entry.file)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(entry.file)
        _delete(_entry(data, mountpoint, systemd=not systemd))
    except OSError as error:
        raise _refused(error) from error
    return entry


def remove(data: Path, mountpoint: Path) -> Entry:
    """Mount it at login no more; returns what stood for it. A mount that is there stays.

    Raises MissingError if there is no such entry, and AccessError.
    """
    data, mountpoint = _absolute(data), _absolute(mountpoint)
    for entry in entries():
        if (entry.data, entry.mountpoint) == (data, mountpoint):
            try:
                _delete(entry)
            except OSError as error:
                raise _refused(error) from error
            return entry
    raise MissingError(f"no autostart entry mounts {data} at {mountpoint}")


def entries() -> list[Entry]:
    """All mounts at login, by mount point. Raises AccessError."""
    try:
        files = [*_autostart_folder().glob("syncer-*.desktop")]
        files += _unit_folder().glob("syncer-*.service")
        found = [entry for file in files if (entry := _read(file))]
    except OSError as error:
        raise _refused(error) from error
    return sorted(found, key=lambda entry: entry.mountpoint)


def _autostart_folder() -> Path:
    return _config_home() / "autostart"


def _unit_folder() -> Path:
    return _config_home() / "systemd" / "user"


def _config_home() -> Path:
    # The specification has relative paths ignored.
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(configured) if os.path.isabs(configured) else Path.home() / ".config"


def _wants_link(unit: Path) -> Path:
    """What ``systemctl --user enable`` makes; made here, it needs no running systemd."""
    return unit.parent / "default.target.wants" / unit.name


def _absolute(path: Path) -> Path:
    # Not resolve(): it would look at a mount that may be dead.
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{os.fsencode(absolute)!r} is not UTF-8, as autostart needs it") from None
    if re.search(r"[\x00-\x1f\x7f]", absolute):
        raise UsageError(f"{absolute!r} has control characters, which autostart can't hold")
    return Path(absolute)


def _entry(data: Path, mountpoint: Path, *, systemd: bool) -> Entry:
    # The digest tells ~/a/photos from ~/b/photos; the name is for people.
    readable = re.sub(r"[^a-z0-9]+", "-", mountpoint.name.lower()).strip("-") or "mount"
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]
    stem = f"syncer-{readable}-{digest}"
    if systemd:
        file = _unit_folder() / f"{stem}.service"
    else:
        file = _autostart_folder() / f"{stem}.desktop"
    return Entry(data, mountpoint, systemd, file)


def _autostart_text(entry: Entry) -> str:
    command = (sys.executable, "-m", "syncer", "mount", str(entry.data), str(entry.mountpoint))
    return f"""\
[Desktop Entry]
Type=Application
Name={_desktop_string(f"syncer: {entry.mountpoint.name}")}
Comment={_desktop_string(f"Mounts {entry.mountpoint}")}
Icon=folder-remote
Exec={_desktop_exec(command)}
Terminal=false

{_own_group(entry)}"""


def _unit_text(entry: Entry) -> str:
    program = (sys.executable, "-m", "syncer")
    mount = (*program, "mount", "--foreground", str(entry.data), str(entry.mountpoint))
    umount = (*program, "umount", str(entry.mountpoint))
    final = " ".join(str(error.exit_code) for error in _FINAL_ERRORS)
    return f"""\
[Unit]
Description=syncer mount of {_systemd_specifiers(str(entry.mountpoint))} at login
# However often it dies: the collection is to be there again, and no start does harm.
StartLimitIntervalSec=0

[Service]
Type=notify
# The colon keeps $ in a path from being a variable.
ExecStart=:{_systemd_command(mount)}
# May fail, where a file is open: SIGTERM follows, and ends the mount all the same.
ExecStop=-:{_systemd_command(umount)}
# Only syncer itself is told to stop; it needs its ssh processes to the end.
KillMode=mixed
# After an unclean end there may be much to repair; cut off, it would only begin anew.
TimeoutStartSec=infinity
# Written data has to reach the local disk, which may be slow.
TimeoutStopSec=5min
Restart=on-failure
RestartSec=0.3
RestartPreventExitStatus={final}

[Install]
WantedBy=default.target

{_own_group(entry)}"""


def _own_group(entry: Entry) -> str:
    data, mountpoint = (
        quote_from_bytes(os.fsencode(path)) for path in (entry.data, entry.mountpoint)
    )
    return f"[{_GROUP}]\nX-Data={data}\nX-Mountpoint={mountpoint}\n"


def _desktop_string(text: str) -> str:
    """Escaped as the Desktop Entry Specification has it for values of type string."""
    return text.replace("\\", "\\\\")


def _desktop_exec(command: Sequence[str]) -> str:
    """Quoted as a shell would, % doubled, and the whole then escaped as a string."""
    quoted = (re.sub(r'(["`$\\])', r"\\\1", argument) for argument in command)
    return _desktop_string(" ".join(f'"{argument}"' for argument in quoted).replace("%", "%%"))


def _systemd_command(command: Sequence[str]) -> str:
    """Quoted as systemd.syntax(7) has it."""
    quoted = (re.sub(r'(["\\])', r"\\\1", argument) for argument in command)
    return _systemd_specifiers(" ".join(f'"{argument}"' for argument in quoted))


def _systemd_specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _read(file: Path) -> Entry | None:
    """What the file mounts; None if it is none of ours."""
    parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
    try:
        parser.read_string(file.read_text(encoding="utf-8", errors="surrogateescape"))
        group = parser[_GROUP]
        data, mountpoint = (
            Path(os.fsdecode(unquote_to_bytes(group[key]))) for key in ("X-Data", "X-Mountpoint")
        )
    except (configparser.Error, KeyError):
        return None
    return Entry(data, mountpoint, file.suffix == ".service", file)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: a login meets the old file or the new one. No fsync: adding is repeatable.
    descriptor, temporary = tempfile.mkstemp(prefix=".syncer-", dir=file.parent)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, file)


def _delete(entry: Entry) -> None:
    if entry.systemd:
        _wants_link(entry.file).unlink(missing_ok=True)
    entry.file.unlink(missing_ok=True)


def _refused(error: OSError) -> AccessError:
    return AccessError(f"{error.filename}: {error.strerror}")
