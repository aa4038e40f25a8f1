"""The file system that `make bench` measures beside ours has to fit the binding as well."""

from __future__ import annotations

import inspect
import re

from syncer import binding
from syncer.mount import Operations
from tests.bench.bare import Bare


def test_bare_answers_all_that_the_binding_asks() -> None:
    asked = set(re.findall(r"\boperations\.(\w+)", inspect.getsource(binding)))
    assert {"entries", "attributes", "take_pages"} <= asked
    inherited = {name for name in asked if getattr(Bare, name) is getattr(Operations, name)}
    # It has nothing behind it that could answer.
    assert not [name for name in inherited if "_vfs." in inspect.getsource(getattr(Bare, name))]
