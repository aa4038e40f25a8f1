"""A rename that steps aside for those who are about to open its target."""

from __future__ import annotations

import errno
import threading

import pytest

from syncer.vfs.replacing import Replacing

READER, WRITER = 11, 12


class Rig:
    def __init__(self) -> None:
        self.caller = WRITER
        self.replacing = Replacing()
        self.replacing.thread = lambda: self.caller

    def look(self, caller: int, path: bytes = b"/file") -> None:
        self.caller = caller
        self.replacing.looked_up(path)

    def open(self, caller: int) -> None:
        self.caller = caller
        self.replacing.opened()

    def replace(self, path: bytes = b"/file") -> int:
        """Returns the errno, or 0."""
        self.caller = WRITER
        try:
            self.replacing.step_aside(path)
        except OSError as error:
            return error.errno or 0
        self.replacing.replaced(path)
        return 0


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr("syncer.vfs.replacing._OPENS_SECONDS", 3600.0)
    return Rig()


def test_who_looks_a_replaced_name_up_opens_it_before_it_is_replaced_again(rig: Rig) -> None:
    assert rig.replace() == 0
    rig.look(READER)
    assert rig.replace() == errno.ESTALE
    # The kernel tries again, from the lookup on, which waits for the reader.
    waited = threading.Thread(target=rig.look, args=(WRITER,))
    waited.start()
    while not rig.replacing._changed._waiters:  # type: ignore[attr-defined]
        assert waited.is_alive()
    rig.open(READER)
    waited.join()
    assert rig.replace() == 0


def test_a_rename_steps_aside_once_only(rig: Rig) -> None:
    rig.replace()
    rig.look(READER)
    assert [rig.replace(), rig.replace()] == [errno.ESTALE, 0]


def test_a_rename_waits_for_nobody_who_never_opens(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.replace()
    rig.look(READER)
    assert rig.replace() == errno.ESTALE
    monkeypatch.setattr("syncer.vfs.replacing._OPENS_SECONDS", 0.0)
    rig.look(WRITER)
    assert rig.replace() == 0
    rig.look(READER)
    assert rig.replace() == 0


def test_a_rename_does_not_step_aside_for_its_own_lookup_or_another_name(rig: Rig) -> None:
    rig.replace()
    rig.look(WRITER)
    assert rig.replace() == 0
    rig.look(READER, b"/other")
    assert rig.replace() == 0
    rig.look(READER)
    assert rig.replace(b"/other") == 0
    rig.open(READER)
    assert rig.replace() == 0


def test_only_so_many_names_are_remembered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3000):
        rig.replace(b"/%d" % number)
    assert len(rig.replacing._replaced) == 1024
    monkeypatch.setattr("syncer.vfs.replacing._WATCHED_SECONDS", -1.0)
    for _ in range(2000):
        rig.replace()
    assert len(rig.replacing._replaced) <= 1
