"""The list of mutations is one that can be run, the documentation has it, and all are caught."""

from __future__ import annotations

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation, survivors, table


@pytest.mark.parametrize("one", MUTATIONS, ids=lambda one: one.what)
def test_what_a_mutation_takes_out_is_there_once(one: Mutation) -> None:
    assert (ROOT / "syncer" / one.file).read_text().count(one.old) == 1
    file, _, name = one.test.partition("::")
    assert f"def {name}" in (ROOT / "tests" / file).read_text()


def test_the_documentation_lists_them() -> None:
    assert table() in (ROOT / "docs" / "reliability.md").read_text()


def test_each_promise_has_one() -> None:
    assert {one.promise for one in MUTATIONS} >= set(range(1, 12))


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_every_mutation_is_caught() -> None:
    assert not list(survivors(MUTATIONS))
