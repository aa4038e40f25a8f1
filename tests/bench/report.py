"""From figures to a table: for the terminal, for docs/performance.md, and as JSON."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rows import LIMIT, PEERS, Row

Figures = dict[str, dict[str, list[float]]]
"""By row, then by column: one figure for each round."""


QUIET_LOAD = 0.5


@dataclass
class Results:
    """What a run has measured. A column is a system's name, ``scp`` or ``raw TCP``."""

    link: str
    rows: Sequence[Row]
    figures: Figures = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    """What else the machine was busy with."""

    def add(self, key: str, column: str, value: float) -> None:
        """Note a figure; what is no row of this table is dropped."""
        if any(row.key == key for row in self.rows):
            self.figures.setdefault(key, {}).setdefault(column, []).append(value)

    def value(self, row: Row, column: str) -> float | None:
        """The median of the rounds."""
        found = self.figures.get(row.key, {}).get(column)
        return statistics.median(found) if found else None

    def best_peer(self, row: Row) -> float | None:
        values = [value for peer in PEERS if (value := self.value(row, peer)) is not None]
        if not values:
            return None
        return min(values) if row.less_is_better else max(values)

    def ratio(self, row: Row, other: float | None, column: str = "syncer") -> float | None:
        """How many times better syncer, or another column, is; below 1 it is worse."""
        own = self.value(row, column)
        if own is None or not other or not own:
            return None
        return other / own if row.less_is_better else own / other

    def is_reached(self, row: Row) -> bool | None:
        """Whether syncer reaches the goal; None if there is none, or no figure."""
        own = self.value(row, "syncer")
        if own is None:
            return None
        if row.at_most is not None:
            return own <= row.at_most
        if row.at_least is not None:
            return own >= row.at_least
        other = self.best_peer(row) if row.against == "peers" else self.value(row, row.against)
        ratio = self.ratio(row, other)
        return None if ratio is None or row.goal is None else ratio >= row.goal

    def columns(self) -> list[str]:
        order = ["syncer", LIMIT, "native", *PEERS, "scp", "raw TCP"]
        seen = {column for columns in self.figures.values() for column in columns}
        return [column for column in order if column in seen]


def table(results: Results) -> list[list[str]]:
    """The cells, with a line of headings."""
    columns = results.columns()
    limits = [LIMIT] if LIMIT in columns else []
    to_peer = ["to the best peer", *(f"{limit} to it" for limit in limits)]
    lines = [["work", "unit", *columns, *to_peer, "goal"]]
    for row in results.rows:
        if row.key not in results.figures:
            continue
        values = [shown(results.value(row, column)) for column in columns]
        best = results.best_peer(row)
        ratios = [results.ratio(row, best, column) for column in ("syncer", *limits)]
        lines.append(
            [
                row.title,
                row.unit,
                *values,
                *(f"{ratio:.2f} x" if ratio is not None else "" for ratio in ratios),
                goal(row, results.is_reached(row)),
            ]
        )
    return lines


def goal(row: Row, is_reached: bool | None) -> str:
    mark = {True: "yes", False: "no", None: ""}[is_reached]
    if row.at_most is not None:
        text = f"at most {row.at_most:g} {row.unit}"
    elif row.at_least is not None:
        text = f"at least {row.at_least:g} {row.unit}"
    elif row.goal is not None:
        text = f"{row.goal:.3g} x" + ("" if row.against == "peers" else f" {row.against}")
    else:
        return ""
    return f"{text}: {mark}" if mark else text


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_text(lines: list[list[str]]) -> str:
    """Aligned columns: words to the left, figures to the right."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    last = len(widths) - 2
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 2 <= place < last else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_markdown(lines: list[list[str]]) -> str:
    rule = ["---", "---", *("---:" for _ in lines[0][2:-1]), "---"]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def as_json(results: Results) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "link": results.link,
        "load_before": results.load_before,
        "rows": [
            {
                "key": row.key,
                "title": row.title,
                "unit": row.unit,
                "rounds": results.figures[row.key],
                "ratio": results.ratio(row, results.best_peer(row)),
                "reached": results.is_reached(row),
            }
            for row in results.rows
            if row.key in results.figures
        ],
        "failures": results.failures,
    }


def machine() -> str:
    """What figures depend on, in a line."""
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{os.cpu_count()} cores ({processor}), {pages / 1e9:.0f} GB of memory, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    )


def quiet(load: float) -> str:
    """Whether the figures can be trusted."""
    if load < QUIET_LOAD:
        return "The machine did nothing else."
    return (
        f"The machine was busy with other things as well (load average {load:.1f} before the run):"
        " take the figures as an order of magnitude."
    )


def write_page(page: Path, results: Results, versions: Sequence[str], rounds: int) -> None:
    """Replace a link's part of the page, between its two marks."""
    marks = re.compile(
        rf"(?<=<!-- {results.link} -->\n).*?(?=<!-- end of {results.link} -->)", re.DOTALL
    )
    text = page.read_text(encoding="utf-8")
    if not marks.search(text):
        raise ValueError(f"{page} has no place for {results.link}")
    how = f"the median of {rounds} rounds" if rounds > 1 else "one round"
    part = (
        f"\nMeasured on {time.strftime('%Y-%m-%d')}, {how}: {machine()};\n"
        f"{', '.join(versions)}. {quiet(results.load_before)}\n\n{as_markdown(table(results))}\n\n"
    )
    page.write_text(marks.sub(lambda _: part, text), encoding="utf-8")
