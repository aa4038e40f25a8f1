from __future__ import annotations

import threading

import pytest

from syncer.errors import (
    AccessError,
    ForeignError,
    HostKeyError,
    LoginError,
    MissingError,
    OfflineError,
    RemoteFullError,
    SyncerError,
)
from syncer.remote.retry import LONGEST_DELAY_SECONDS, OVERDUE_SECONDS, Health, State


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def fail(health: Health, error: Exception, *, storing: bool = False) -> None:
    with pytest.raises(type(error)), health.attempt(storing=storing):
        raise error


def test_it_starts_online(health: Health) -> None:
    assert health.report().state is State.ONLINE
    assert health.report().error == ""
    assert health.wait_online(0)


def test_one_failure_stops_all_until_the_probe_is_due(health: Health, clock: Clock) -> None:
    fail(health, OfflineError("no route"))
    with pytest.raises(OfflineError, match="no route"), health.attempt():
        pytest.fail("was let through")
    assert not health.wait_online(0)
    clock.now += 1
    assert health.wait_online(0)
    with health.attempt():
        pass
    assert health.report().state is State.ONLINE


def test_there_is_one_prober_at_a_time(health: Health, clock: Clock) -> None:
    fail(health, OfflineError("no route"))
    clock.now += 1
    with health.attempt():
        assert not health.wait_online(0)
        with pytest.raises(OfflineError), health.attempt():
            pytest.fail("was let through")


def test_whom_someone_waits_for_probes_only_if_nobody_else_did(
    health: Health, clock: Clock
) -> None:
    fail(health, OfflineError("no route"))
    clock.now += 1.0
    with pytest.raises(OfflineError, match="no route"), health.attempt(urgent=True):
        pytest.fail("a probe may take the whole time limit")
    clock.now += OVERDUE_SECONDS
    with health.attempt(urgent=True):
        pass
    assert health.report().state is State.ONLINE


def test_a_prober_that_breaks_lets_others_try(health: Health, clock: Clock) -> None:
    fail(health, OfflineError("no route"))
    clock.now += 1
    fail(health, KeyError("a bug"))
    with health.attempt():
        pass
    assert health.report().state is State.ONLINE


@pytest.mark.parametrize(
    ("kind", "longest"), [(OfflineError, 5), (LoginError, 30), (HostKeyError, 30)]
)
def test_the_delay_doubles_up_to_its_limit(
    health: Health, clock: Clock, kind: type[SyncerError], longest: int
) -> None:
    began = clock.now
    fail(health, kind("no route"))
    delays = []
    for _ in range(9):
        start = clock.now
        while not health.wait_online(0):
            clock.now += 0.125
        delays.append(clock.now - start)
        fail(health, kind("no route"))
    for delay, full in zip(delays, [min(longest, 1 << number) for number in range(9)], strict=True):
        assert full / 2 <= delay <= full + 0.125
    assert health.report().since_seconds == clock.now - began


def test_a_forced_attempt_is_let_through_and_decides_for_all(health: Health) -> None:
    fail(health, OfflineError("no route"))
    with health.attempt(forced=True):
        pass
    with health.attempt():
        pass


def test_what_a_person_must_mend_is_an_error_and_stops_all(health: Health) -> None:
    fail(health, LoginError("no key"))
    assert health.report().state is State.ERROR
    with pytest.raises(LoginError, match="no key"), health.attempt():
        pytest.fail("was let through")


def test_an_answer_that_is_no_is_an_answer(health: Health, clock: Clock) -> None:
    fail(health, OfflineError("no route"))
    clock.now += 1
    fail(health, MissingError("no such object"))
    assert health.report().state is State.ONLINE


@pytest.mark.parametrize("error", [RemoteFullError("full"), AccessError("forbidden")])
def test_a_refusal_to_store_shows_until_something_was_stored(
    health: Health, error: Exception
) -> None:
    fail(health, error, storing=True)
    with health.attempt():
        pass
    assert health.report().state is State.ERROR
    assert health.report().error == str(error)
    with health.attempt(storing=True):
        pass
    assert health.report().state is State.ONLINE


def test_who_waits_is_woken_when_the_remote_is_back() -> None:
    health = Health()
    fail(health, OfflineError("no route"))
    woken = threading.Event()

    def wait() -> None:
        if health.wait_online(30):
            woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    with health.attempt(forced=True):
        pass
    assert woken.wait(5)
    thread.join()


def test_another_repository_in_its_place_is_told_as_such_and_looked_for_soon(
    health: Health, clock: Clock
) -> None:
    for _ in range(9):
        fail(health, ForeignError("another repository"))
        clock.now += LONGEST_DELAY_SECONDS
    assert health.report().state is State.FOREIGN
    assert health.wait_online(0)
