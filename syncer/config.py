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
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from syncer.errors import AccessError, MissingError, UsageError

DEFAULT_LIMIT_BYTES = 5_000_000_000
"""The limit on local data where a person gives none."""

_SECTION = "syncer"

# Largest first, so that format_size meets the shortest exact form first.
_UNITS = {
    "Ti": 1 << 40,
    "T": 10**12,
    "Gi": 1 << 30,
    "G": 10**9,
    "Mi": 1 << 20,
    "M": 10**6,
    "Ki": 1 << 10,
    "K": 10**3,
    "B": 1,
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([KMGT]i?)B?|(B))?", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes, from a size as a person writes it.

    ``1000`` is 1000 MB, as in ``syncer mount ... 1000``. K, M, G and T are powers of 1000, Ki, Mi,
    Gi and Ti of 1024; a B may follow, and upper or lower case is the same. ``0`` is 0.

    Raises UsageError.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text!r} is not a size: write 1000 (in MB), 512M or 20G")
    number, scale, byte = found.groups()
    unit = (scale or byte or "M").capitalize()
    # A float would lose bytes from 9 PB on.
    return int(Fraction(number) * _UNITS[unit])


def format_size(size_bytes: int) -> str:
    """The size as `parse_size` reads it back without loss: ``20G``, ``64Mi``, ``4097B``."""
    if size_bytes == 0:
        return "0"
    unit = next(unit for unit, factor in _UNITS.items() if size_bytes % factor == 0)
    return f"{size_bytes // _UNITS[unit]}{unit}"


@dataclass(frozen=True)
class Kind:
    """How the values of a setting are written."""

    parse: Callable[[str], Any]
    """Text to value; raises ValueError whose text continues "must be"."""
    format: Callable[[Any], str]
    """Value to the text that `parse` reads back."""
    allowed: str
    """The values it may have, in words, for the documentation."""


def _text() -> Kind:
    def parse(text: str) -> str:
        # The file can hold neither line breaks nor blanks at a value's ends.
        if not text or text != text.strip() or re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError("text without control characters, or blanks at its ends")
        return text

    return Kind(parse, str, "text")


def _size(minimum: int, maximum: int, *, none: str = "") -> Kind:
    """A number of bytes; with ``none``, 0 is allowed too and means that."""
    allowed = f"{format_size(minimum)} to {format_size(maximum)}"
    if none:
        allowed += f", or 0: {none}"

    def parse(text: str) -> int:
        try:
            value = parse_size(text)
        except UsageError as error:
            raise ValueError(f"a size such as 1000 (in MB), 512M or 20G, {allowed}") from error
        if not (minimum <= value <= maximum or (none and value == 0)):
            raise ValueError(f"{allowed} (a number without a unit counts MB)")
        return value

    return Kind(parse, format_size, allowed)


def _count(minimum: int, maximum: int) -> Kind:
    allowed = f"{minimum} to {maximum}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not minimum <= int(text) <= maximum:
            raise ValueError(f"a whole number, {allowed}")
        return int(text)

    return Kind(parse, str, allowed)


def _seconds(minimum: float, maximum: float) -> Kind:
    allowed = f"{minimum:g} to {maximum:g} seconds"

    def parse(text: str) -> float:
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
            raise ValueError(allowed)
        if not minimum <= float(text) <= maximum:
            raise ValueError(allowed)
        return float(text)

    return Kind(parse, lambda value: f"{value:g}", allowed)


def _choice(*options: str) -> Kind:
    allowed = ", ".join(options[:-1]) + f" or {options[-1]}"

    def parse(text: str) -> str:
        if text not in options:
            raise ValueError(allowed)
        return text

    return Kind(parse, str, allowed)


def _switch() -> Kind:
    words = {"on": True, "off": False}

    def parse(text: str) -> bool:
        if text not in words:
            raise ValueError("on or off")
        return words[text]

    return Kind(parse, lambda value: "on" if value else "off", "on or off")


def _name() -> Kind:
    allowed = "up to 32 letters, digits, dots and dashes"

    def parse(text: str) -> str:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.-]{0,31}", text):
            raise ValueError(allowed)
        return text

    return Kind(parse, str, allowed)


def _setting(key: str, kind: Kind, doc: str) -> Mapping[str, Any]:
    return {"key": key, "kind": kind, "doc": doc}


@dataclass(frozen=True)
class Config:
    """The settings of one data directory. The two without a default are the person's decisions."""

    remote: str = field(
        metadata=_setting("remote", _text(), "Where the collection is kept."),
    )
    limit_bytes: int = field(
        metadata=_setting(
            "max_size",
            _size(64_000_000, 10**15),
            "At most this much local data: blocks and small files' contents.",
        ),
    )
    min_free_bytes: int = field(
        default=512_000_000,
        metadata=_setting(
            "min_free",
            _size(1_000_000, 10**15, none="no floor"),
            "Room that is always left free on the local disk.",
        ),
    )
    upload_bytes_per_second: int = field(
        default=0,
        metadata=_setting(
            "upload_limit",
            _size(10_000, 10**11, none="no limit"),
            "Upload at most this much per second.",
        ),
    )
    download_bytes_per_second: int = field(
        default=0,
        metadata=_setting(
            "download_limit",
            _size(10_000, 10**11, none="no limit"),
            "Download at most this much per second.",
        ),
    )
    connections: int = field(
        default=8,
        metadata=_setting("connections", _count(1, 64), "Connections to the server at once."),
    )
    upload_workers: int = field(
        default=24,
        metadata=_setting(
            "upload_workers",
            _count(1, 64),
            "Blocks uploaded at once; several of them share a connection.",
        ),
    )
    transport: str = field(
        default="auto",
        metadata=_setting(
            "transport",
            _choice("auto", "ssh", "paramiko"),
            "What speaks SSH: the ssh program or paramiko; auto takes ssh where it is installed.",
        ),
    )
    timeout_seconds: float = field(
        default=30.0,
        metadata=_setting(
            "timeout",
            _seconds(1, 3600),
            "A transfer without progress for so long has failed.",
        ),
    )
    epoch_seconds: float = field(
        default=4.0,
        metadata=_setting(
            "epoch",
            # More would break the promise that what was written is power-safe after 5 seconds.
            _seconds(0.1, 4),
            "Changes to one thing within this time are one step of history.",
        ),
    )
    fuse: str = field(
        default="auto",
        metadata=_setting(
            "fuse",
            _choice("auto", "2", "3"),
            "Which libfuse to use; auto takes 3 where it is installed.",
        ),
    )
    writeback: bool = field(
        default=True,
        metadata=_setting(
            "writeback",
            _switch(),
            "The kernel gathers small writes (libfuse 3 only); off is slower and exact.",
        ),
    )
    subtype: str = field(
        default="syncer",
        metadata=_setting(
            "subtype",
            _name(),
            "What the list of mounts calls it, as fuse.subtype. sshfs makes desktops treat it as"
            " remote, and not read every file for a thumbnail.",
        ),
    )
    show_snapshots: bool = field(
        default=False,
        metadata=_setting(
            "show_snapshots",
            _switch(),
            "Listings of the mount's top folder have .snapshots; it can be entered anyway.",
        ),
    )
    read_ahead_bytes: int = field(
        default=64_000_000,
        metadata=_setting(
            "read_ahead",
            _size(1_000_000, 10**10, none="none"),
            "Fetch at most this far ahead of a sequential reader.",
        ),
    )
    inline_limit_bytes: int = field(
        default=4096,
        metadata=_setting(
            "inline_limit",
            _size(1, 65536, none="none"),
            "Files up to this size live in the metadata and are always local.",
        ),
    )
    inline_total_bytes: int = field(
        default=64_000_000,
        metadata=_setting(
            "inline_total",
            _size(1_000_000, 10**12, none="none"),
            "At most this much of such files in total; it counts into max_size.",
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

    def save(self, path: Path) -> None:
        """Replace the file, so that after a power cut it holds the old or the new settings, whole.

        Only its owner may read it. Raises AccessError.
        """
        try:
            _replace_durably(path, self.format().encode("utf-8", "surrogateescape"))
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
