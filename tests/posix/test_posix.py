"""Each rule of the tables, on each binding, and on ext4 to see that the tables are right."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.posix import (
    attributes,
    concurrency,
    contents,
    directories,
    links,
    listings,
    locks,
    names,
    opening,
    ranges,
    renaming,
    times,
    unlinked,
    users,
    xattrs,
)
from tests.posix.case import Case, errno_name
from tests.posix.conftest import Variant

pytestmark = pytest.mark.fuse

TABLES = (
    opening, contents, ranges, directories, unlinked, renaming, links, attributes, times, names,
    listings, xattrs, users, concurrency, locks,
)  # fmt: skip
CASES = list(itertools.chain.from_iterable(table.CASES for table in TABLES))


def test_no_rule_is_there_twice() -> None:
    rules = [case.rule for case in CASES]
    assert len(rules) == len(set(rules))


@pytest.mark.slow(0.06)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(variant: Variant, case: Case) -> None:
    if not variant.name or (case.as_root and os.geteuid() != 0):
        return
    if variant.name in case.at_times:
        return
    outcome = _outcome(case, variant.place())
    if variant.name in case.unless:
        assert outcome != case.expected, "the table says that it can't be so"
    else:
        assert outcome == case.expected


def _outcome(case: Case, place: Path) -> object:
    try:
        return case.call(place)
    except OSError as error:
        return errno_name(error.errno)
