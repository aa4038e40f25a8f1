"""How the values of settings are written: kinds of values, sizes and times; and sizes for a person.
Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from syncer.errors import UsageError

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
    whole, _, decimals = number.partition(".")
    size_bytes: int = int(whole + decimals) * _UNITS[unit] // 10 ** len(decimals)
    return size_bytes


def format_size(size_bytes: int) -> str:
    """The size as `parse_size` reads it back without loss: ``20G``, ``64Mi``, ``4097B``."""
    if size_bytes == 0:
        return "0"
    unit = next(unit for unit, factor in _UNITS.items() if size_bytes % factor == 0)
    return f"{size_bytes // _UNITS[unit]}{unit}"


def size(size_bytes: float) -> str:
    """Bytes for a person: three digits and a power of 1000."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 99.95 or unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB"


@dataclass(frozen=True)
class Kind:
    """How the values of a setting are written."""

    parse: Callable[[str], Any]
    """Text to value; raises ValueError whose text continues "must be"."""
    format: Callable[[Any], str]
    """Value to the text that `parse` reads back."""
    allowed: str
    """The values it may have, in words, for the documentation."""


def a_text() -> Kind:
    """Any text that one line can hold."""

    def parse(text: str) -> str:
        # The file can hold neither line breaks nor blanks at a value's ends.
        if not text or text != text.strip() or re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError("text without control characters, or blanks at its ends")
        return text

    return Kind(parse, str, "text")


def a_size(minimum: int, maximum: int, *, none: str = "") -> Kind:
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


_DURATIONS = {"w": 604_800, "d": 86_400, "h": 3600, "min": 60, "s": 1}
_DURATION = re.compile(r"(\d{1,9})\s*(s|min|h|d|w|y)", re.ASCII)


def parse_duration(text: str) -> int:
    """Seconds, from a time as a person writes it: ``90s``, ``30min``, ``12h``, ``7d``, ``8w``.

    A ``y`` is 365 days; ``0`` is 0. Raises UsageError.
    """
    found = _DURATION.fullmatch(text.strip())
    if found:
        return int(found[1]) * {**_DURATIONS, "y": 365 * 86_400}[found[2]]
    if text.strip() == "0":
        return 0
    raise UsageError(f"{text!r} is not a time: write 30min, 12h, 7d, 8w or 1y")


def format_duration(seconds: int) -> str:
    """The time as `parse_duration` reads it back: ``7d``."""
    if not seconds:
        return "0"
    unit = next(unit for unit, factor in _DURATIONS.items() if seconds % factor == 0)
    return f"{seconds // _DURATIONS[unit]}{unit}"


def a_duration(minimum: int, maximum: int, *, none: str = "") -> Kind:
    """A time in seconds; with ``none``, 0 is allowed too and means that."""
    allowed = f"{format_duration(minimum)} to {format_duration(maximum)}"
    if none:
        allowed += f", or 0: {none}"

    def parse(text: str) -> int:
        try:
            value = parse_duration(text)
        except UsageError as error:
            raise ValueError(f"a time such as 30min, 12h, 7d or 8w, {allowed}") from error
        if not (minimum <= value <= maximum or (none and value == 0)):
            raise ValueError(allowed)
        return value

    return Kind(parse, format_duration, allowed)


def a_count(minimum: int, maximum: int) -> Kind:
    """A whole number."""
    allowed = f"{minimum} to {maximum}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not minimum <= int(text) <= maximum:
            raise ValueError(f"a whole number, {allowed}")
        return int(text)

    return Kind(parse, str, allowed)


def a_seconds(minimum: float, maximum: float) -> Kind:
    """A number of seconds, perhaps with a fraction."""
    allowed = f"{minimum:g} to {maximum:g} seconds"

    def parse(text: str) -> float:
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
            raise ValueError(allowed)
        if not minimum <= float(text) <= maximum:
            raise ValueError(allowed)
        return float(text)

    return Kind(parse, lambda value: f"{value:g}", allowed)


def a_choice(*options: str) -> Kind:
    """One of some words."""
    allowed = ", ".join(options[:-1]) + f" or {options[-1]}"

    def parse(text: str) -> str:
        if text not in options:
            raise ValueError(allowed)
        return text

    return Kind(parse, str, allowed)


def a_switch() -> Kind:
    """On or off."""
    words = {"on": True, "off": False}

    def parse(text: str) -> bool:
        if text not in words:
            raise ValueError("on or off")
        return words[text]

    return Kind(parse, lambda value: "on" if value else "off", "on or off")


def a_name() -> Kind:
    """A short word of letters, digits, dots and dashes."""
    allowed = "up to 32 letters, digits, dots and dashes"

    def parse(text: str) -> str:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.-]{0,31}", text):
            raise ValueError(allowed)
        return text

    return Kind(parse, str, allowed)
