"""The settings of a data directory: its file ``config`` to a frozen dataclass and back.

Each field of `Config` is one line of one table: its key in the file, how its value is written,
which values it may have, its default, and a line of documentation. The option table in
docs/configuration.md and ``syncer config`` are made from it. For example

    [syncer]
    remote = someserver:~/blobs/
    max_size = 20G

is ``Config(remote="someserver:~/blobs/", limit_bytes=20_000_000_000)``. What a person wrote is
checked where it is parsed; code that builds a `Config` itself may go beyond these limits, as tests
with small caches do.
"""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from syncer.errors import AccessError, MissingError, UsageError
from syncer.values import (
    Kind,
    a_choice,
    a_count,
    a_duration,
    a_name,
    a_seconds,
    a_size,
    a_switch,
    a_text,
)

DEFAULT_LIMIT_BYTES = 5_000_000_000
"""The limit on local data where a person gives none."""

_SECTION = "syncer"


def _setting(key: str, kind: Kind, doc: str) -> Mapping[str, Any]:
    return {"key": key, "kind": kind, "doc": doc}


@dataclass(frozen=True)
class Config:
    """The settings of one data directory. The two without a default are the person's decisions."""

    remote: str = field(
        metadata=_setting("remote", a_text(), "Where the collection is kept."),
    )
    limit_bytes: int = field(
        metadata=_setting(
            "max_size",
            a_size(64_000_000, 10**15),
            "At most this much local data: blocks and small files' contents.",
        ),
    )
    min_free_bytes: int = field(
        default=512_000_000,
        metadata=_setting(
            "min_free",
            a_size(1_000_000, 10**15, none="no floor"),
            "Room that is always left free on the local disk.",
        ),
    )
    upload_bytes_per_second: int = field(
        default=0,
        metadata=_setting(
            "upload_limit",
            a_size(10_000, 10**11, none="no limit"),
            "Upload at most this much per second.",
        ),
    )
    download_bytes_per_second: int = field(
        default=0,
        metadata=_setting(
            "download_limit",
            a_size(10_000, 10**11, none="no limit"),
            "Download at most this much per second.",
        ),
    )
    connections: int = field(
        default=8,
        metadata=_setting("connections", a_count(1, 64), "Connections to the server at once."),
    )
    upload_workers: int = field(
        default=24,
        metadata=_setting(
            "upload_workers",
            a_count(1, 64),
            "Blocks uploaded at once, half as many to a near server, and half as many again over a"
            " line that is long and quick; several of them share a connection.",
        ),
    )
    transport: str = field(
        default="auto",
        metadata=_setting(
            "transport",
            a_choice("auto", "ssh", "paramiko"),
            "What speaks SSH: the ssh program or paramiko; auto takes ssh where it is installed.",
        ),
    )
    timeout_seconds: float = field(
        default=30.0,
        metadata=_setting(
            "timeout",
            a_seconds(1, 3600),
            "A transfer without progress for so long has failed.",
        ),
    )
    epoch_seconds: float = field(
        default=4.0,
        metadata=_setting(
            "epoch",
            # More would break the promise that what was written is power-safe after 5 seconds.
            a_seconds(0.1, 4),
            "Changes to one thing within this time are one step of history.",
        ),
    )
    fuse: str = field(
        default="auto",
        metadata=_setting(
            "fuse",
            a_choice("auto", "2", "3"),
            "Which libfuse to use; auto takes 3 where it is installed.",
        ),
    )
    writeback: bool = field(
        default=True,
        metadata=_setting(
            "writeback",
            a_switch(),
            "The kernel gathers small writes (libfuse 3 only); off is slower and exact.",
        ),
    )
    subtype: str = field(
        default="syncer",
        metadata=_setting(
            "subtype",
            a_name(),
            "What the list of mounts calls it, as fuse.subtype. sshfs makes desktops treat it as"
            " remote, and not read every file for a thumbnail.",
        ),
    )
    show_snapshots: bool = field(
        default=False,
        metadata=_setting(
            "show_snapshots",
            a_switch(),
            "Listings of the mount's top folder have .snapshots; it can be entered anyway.",
        ),
    )
    read_ahead_bytes: int = field(
        default=64_000_000,
        metadata=_setting(
            "read_ahead",
            a_size(1_000_000, 10**10, none="none"),
            "Fetch at most this far ahead of a sequential reader.",
        ),
    )
    inline_limit_bytes: int = field(
        default=32 << 10,
        metadata=_setting(
            "inline_limit",
            a_size(1, 65536, none="none"),
            "Files up to this size live in the metadata and are always local.",
        ),
    )
    inline_total_bytes: int = field(
        default=64_000_000,
        metadata=_setting(
            "inline_total",
            a_size(1_000_000, 10**12, none="none"),
            "At most this much of such files in total; it counts into max_size. One may take a"
            " 512th of what is left of it, so that the smallest find room longest.",
        ),
    )

    keep_within_seconds: int = field(
        default=0,
        metadata=_setting(
            "keep_within",
            a_duration(1, 3_153_600_000, none="only what the others keep"),
            "Prune by itself: keep all moments within this time before the newest one.",
        ),
    )
    keep_hourly: int = field(
        default=0,
        metadata=_setting(
            "keep_hourly",
            a_count(0, 2000),
            "Likewise: the last moment of each of so many hours with changes. If all six are 0,"
            " everything is kept.",
        ),
    )
    keep_daily: int = field(
        default=0,
        metadata=_setting(
            "keep_daily",
            a_count(0, 2000),
            "Likewise, of so many days.",
        ),
    )
    keep_weekly: int = field(
        default=0,
        metadata=_setting(
            "keep_weekly",
            a_count(0, 2000),
            "Likewise, of so many weeks.",
        ),
    )
    keep_monthly: int = field(
        default=0,
        metadata=_setting(
            "keep_monthly",
            a_count(0, 2000),
            "Likewise, of so many months.",
        ),
    )
    keep_yearly: int = field(
        default=0,
        metadata=_setting(
            "keep_yearly",
            a_count(0, 2000),
            "Likewise, of so many years.",
        ),
    )
    prune_seconds: int = field(
        default=86400,
        metadata=_setting(
            "prune_every",
            a_duration(1, 31_536_000),
            "How often the mount prunes by itself, where the settings above say what to keep.",
        ),
    )
    grace_seconds: int = field(
        default=604800,
        metadata=_setting(
            "grace",
            a_duration(1, 31_536_000, none="none"),
            "What nothing names any more stays in trash/ on the server for this time.",
        ),
    )

    @classmethod
    def load(cls, path: Path) -> Config:
        """The settings in the file.

        Raises MissingError where there is no file, AccessError where it can't be read, and
        UsageError, naming the file, where it holds something else than valid settings.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8", errors="surrogateescape"))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(f"{path}: no such file; is this a data directory?") from error
        except OSError as error:
            raise AccessError(f"{path}: can't be read: {error.strerror}") from error

    @classmethod
    def parse(cls, text: str) -> Config:
        """The settings in a file's text. Raises UsageError with one line."""
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        try:
            parser.read_string(text)
        except configparser.Error as error:
            # Only its message spans lines.
            raise UsageError(" ".join(str(error).split())) from error
        if parser.sections() != [_SECTION]:
            raise UsageError(f"there must be one section, [{_SECTION}]")
        values: dict[str, Any] = {}
        for key, written in parser[_SECTION].items():
            setting = setting_for(key)
            if setting.field_name in values:
                raise UsageError(f"{setting.key} is there twice")
            values[setting.field_name] = setting.parse(written)
        for setting in SETTINGS:
            if setting.default is MISSING and setting.field_name not in values:
                raise UsageError(f"{setting.key} is missing")
        return cls(**values)

    def format(self) -> str:
        """The text that `parse` reads back. What equals its default is left to the default."""
        lines = [f"[{_SECTION}]"]
        for setting in SETTINGS:
            value = getattr(self, setting.field_name)
            if value != setting.default:
                lines.append(f"{setting.key} = {setting.kind.format(value)}")
        return "\n".join(lines) + "\n"

    def save(self, path: Path, head: str = "") -> None:
        """Replace the file, so that after a power cut it holds the old or the new settings, whole.

        `head` is a line for whoever reads it; `load` passes over it. Only its owner may read the
        file. Raises AccessError.
        """
        text = f"# {head}\n{self.format()}" if head else self.format()
        try:
            _replace_durably(path, text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise AccessError(f"{path}: can't be written: {error.strerror}") from error

    def value(self, key: str) -> str:
        """One setting as `with_value` takes it. Raises UsageError if there is no such key."""
        setting = setting_for(key)
        return setting.kind.format(getattr(self, setting.field_name))

    def with_value(self, key: str, text: str) -> Config:
        """These settings with another value for one. Raises UsageError with one line."""
        setting = setting_for(key)
        return dataclasses.replace(self, **{setting.field_name: setting.parse(text)})


@dataclass(frozen=True)
class Setting:
    """One line of the table of settings."""

    field_name: str
    key: str
    kind: Kind
    doc: str
    default: Any
    """The value, or dataclasses.MISSING where the file has to give one."""

    @property
    def default_text(self) -> str:
        """The default as a person would write it; empty where there is none."""
        return "" if self.default is MISSING else self.kind.format(self.default)

    def parse(self, text: str) -> Any:
        """The value that was written. Raises UsageError."""
        try:
            return self.kind.parse(text)
        except ValueError as error:
            raise UsageError(f"{self.key} must be {error}, not {text!r}") from error


SETTINGS = tuple(
    Setting(field_name=line.name, default=line.default, **line.metadata)
    for line in dataclasses.fields(Config)
)
_BY_KEY = {setting.key: setting for setting in SETTINGS}


def setting_for(key: str) -> Setting:
    """The setting of that key; ``max-size`` and ``max_size`` are the same. Raises UsageError."""
    try:
        return _BY_KEY[key.replace("-", "_")]
    except KeyError:
        raise UsageError(f"there is no setting {key!r}; there are {', '.join(_BY_KEY)}") from None


def _replace_durably(path: Path, content: bytes) -> None:
    # mkstemp makes the file with mode 0600.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
