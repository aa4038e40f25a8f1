"""When uploads leave the processors to programs that write."""

from __future__ import annotations

from syncer.transfer.giveway import GiveWay


class Writing:
    """A clock, and a program that writes while it goes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.newest = 0
        self.may_wait = True
        self.way = GiveWay(lambda: self.newest, lambda: self.may_wait)

    def goes_on(self, seconds: float, *, writes: bool = True) -> list[bool]:
        """What is answered every tenth of a second."""
        answers = []
        for _ in range(round(10 * seconds)):
            self.newest += writes
            answers.append(self.way.waits(self.now))
            self.now += 0.1
        return answers


def test_nothing_waits_where_nobody_writes() -> None:
    assert Writing().goes_on(1, writes=False) == [False] * 10


def test_uploads_wait_while_a_program_writes_and_a_moment_longer() -> None:
    writing = Writing()
    assert writing.goes_on(1) == [True] * 10
    assert writing.goes_on(1, writes=False) == [True] * 2 + [False] * 8
    assert writing.goes_on(1) == [True] * 10, "who begins again is let pass again"


def test_who_writes_on_and_on_is_left_alone_at_first_only() -> None:
    writing = Writing()
    answers = writing.goes_on(10)
    assert all(answers[:29]) and not any(answers[31:])
    assert writing.goes_on(1, writes=False)[-1] is False
    assert writing.goes_on(1) == [True] * 10


def test_nothing_waits_while_somebody_waits_for_uploads() -> None:
    writing = Writing()
    for _ in range(4):
        writing.way.hurry(writing.now)
        assert writing.goes_on(0.5) == [False] * 5
    writing.goes_on(1, writes=False)
    assert writing.goes_on(1) == [True] * 10, "nobody waits any more"


def test_nothing_waits_where_something_speaks_against_it() -> None:
    writing = Writing()
    writing.may_wait = False
    assert writing.goes_on(1) == [False] * 10
