"""How many connections a remote opens, and when."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from syncer.errors import OfflineError
from syncer.remote import Location, pool
from syncer.remote import packets as sftp
from syncer.remote.base import STARTS_AFTER_SECONDS
from syncer.remote.connection import Connection, DroppedError
from syncer.remote.pool import (
    CALLERS,
    CROWD,
    CROWDED_SECONDS,
    DOUBTFUL_SECONDS,
    FIRST_SECONDS,
    LATER_SECONDS,
    NEAR_SECONDS,
    QUICK_BYTES_PER_SECOND,
    READY,
    READY_AT_ONCE,
    RESERVED,
    Crowd,
    Pool,
)
from syncer.remote.server import SftpRemote
from syncer.remote.session import open_connection
from tests.odd_sftp import OddServer, OddStream

LONG_SECONDS = 2 * CROWDED_SECONDS
FULL = 4.0 * QUICK_BYTES_PER_SECOND


def test_a_crowd_that_lasts_and_is_slow_gets_one_more_connection() -> None:
    crowd = Crowd()
    assert not crowd.needs_more(CALLERS, 0, 0.0, FULL)
    assert not crowd.needs_more(CROWD, 1 << 20, CROWDED_SECONDS / 2, FULL)
    assert crowd.needs_more(CROWD, 2 << 20, LONG_SECONDS, FULL)
    assert not crowd.needs_more(CALLERS, 3 << 20, LONG_SECONDS + 0.1, FULL), "one at a time"
    assert crowd.needs_more(CALLERS, 4 << 20, 2 * LONG_SECONDS, FULL)


def test_a_crowd_that_moves_much_is_left_alone() -> None:
    """The processors or the line are busy: another connection would only cost more."""
    crowd = Crowd()
    per_step = int(QUICK_BYTES_PER_SECOND * LONG_SECONDS)
    for step in range(5):
        assert not crowd.needs_more(CALLERS, 7 + step * per_step, step * LONG_SECONDS, FULL)
    # What was moved long ago does not count.
    assert crowd.needs_more(CALLERS, 7 + 4 * per_step, 5 * LONG_SECONDS, FULL)


def test_a_crowd_on_connections_that_carry_all_they_can_gets_more() -> None:
    crowd = Crowd()
    assert not crowd.needs_more(CROWD, 0, 0.0, FULL)
    assert crowd.needs_more(CROWD, int(FULL * LONG_SECONDS), LONG_SECONDS, FULL)


def test_a_crowd_that_ends_is_forgotten() -> None:
    crowd = Crowd()
    assert not crowd.needs_more(CROWD, 0, 0.0, FULL)
    assert not crowd.needs_more(CROWD - 1, 0, CROWDED_SECONDS, FULL)
    assert not crowd.needs_more(CROWD, 0, LONG_SECONDS, FULL)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OddServer]:
    server = OddServer(tmp_path)
    yield server
    server.close()


def test_what_a_dead_connection_cost_counts_towards_the_limit(server: OddServer) -> None:
    """A server that froze while nobody asked it is noticed as soon as any other."""
    limits: list[float] = []

    def connect(limit_seconds: float) -> OddStream:
        limits.append(limit_seconds)
        return server.connect()

    remote = SftpRemote(Location("repository", "odd"), connect, 8, 1.0)
    try:
        remote.make_folders()
        for line in remote._pool._lines:
            line.idle_since -= 2 * DOUBTFUL_SECONDS
        server.is_silent = True
        began = time.monotonic()
        with pytest.raises(OfflineError):
            remote.get("syncer.json", urgent=True)
        # The look at the old connection takes half of the second, and the new one the rest. Each
        # had a limit of its own: five seconds and one more.
        assert time.monotonic() - began < 3
        assert limits[1:] == [pytest.approx(0.5, abs=0.2)]
    finally:
        remote.close()


def test_who_waited_for_a_silent_server_waits_for_no_other_caller(server: OddServer) -> None:
    lines = Pool("odd", lambda lost_seconds: open_connection(server.connect(), 5.0), 8)
    try:
        began = time.monotonic()
        with lines.session(urgent=True):
            assert lines._others_work(time.monotonic()), "it was refused, and another one is there"
            assert lines._others_work(began - 100), "one has been heard since"
            long_ago = time.monotonic() + 100
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pool, "QUICK_SECONDS", -1000.0)
                assert not lines._others_work(long_ago), "nothing was heard since"
        assert lines._others_work(began - 100), "one that nobody uses may do"
    finally:
        lines.close()


@pytest.mark.parametrize(("round_trip_seconds", "is_full"), [(0.01, False), (0.1, True)])
def test_what_connections_can_carry_follows_from_the_round_trip(
    server: OddServer, round_trip_seconds: float, is_full: bool
) -> None:
    """Two megabytes under way on each: a line of 40 MB/s has room beside one of 20."""
    lines = Pool("odd", lambda lost_seconds: open_connection(server.connect(), 5.0), 8)
    try:
        with lines.session(urgent=False):
            (line,) = lines._lines
            line.connection.round_trip_seconds = round_trip_seconds
            line.ordinary = CALLERS
            moved = iter([0, 10 * QUICK_BYTES_PER_SECOND])
            with pytest.MonkeyPatch.context() as patch:
                windows = line.connection.windows
                patch.setattr(type(windows), "moved_bytes", property(lambda _: next(moved)))
                patch.setattr(pool.time, "monotonic", iter([0.0, 9.0]).__next__)
                assert not lines._needs_more(line, False)
                assert lines._needs_more(line, False) is is_full
            line.ordinary = 1
    finally:
        lines.close()


@pytest.mark.parametrize(
    ("is_near", "shares_login"), [(True, False), (True, True), (False, False), (False, True)]
)
def test_a_mount_at_a_near_server_opens_few_connections_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_near: bool, shares_login: bool
) -> None:
    server = OddServer(tmp_path)
    limit = 2 * READY
    wanted = READY if is_near else limit - RESERVED
    if is_near and shares_login:
        wanted = limit - RESERVED + 1
    # At a far one all but the first are opened at the same time, and each waits for the others.
    together = threading.Barrier(1 if is_near else wanted - 1)

    def connect(lost_seconds: float) -> Connection:
        if server.connections:
            together.wait(10)
        connection = open_connection(server.connect(), 5.0)
        connection.round_trip_seconds = NEAR_SECONDS * (0.5 if is_near else 2)
        return connection

    pool = Pool("odd", connect, limit, shares_login=shares_login)
    assert not pool.is_near and not pool.is_far, "nothing is known yet"
    waits: list[tuple[int, float | None]] = []

    def wait_for(is_over: Callable[[], bool], seconds: float | None = None) -> bool:
        assert not is_over()
        waits.append((server.connections, seconds))
        return False

    with monkeypatch.context() as patch:
        patch.setattr(pool._changed, "wait_for", wait_for)
        pool._prepare()
    with pool._changed:
        assert pool._changed.wait_for(lambda: len(pool._lines) == wanted, 10)
    assert server.connections == wanted
    assert (pool.is_near, pool.is_far) == (is_near, not is_near)
    before = range(READY_AT_ONCE, READY) if is_near and not shares_login else ()
    later = [(count, LATER_SECONDS) for count in before]
    assert waits == [(0, STARTS_AFTER_SECONDS), *later], "who looks around first comes first"
    pool.close()
    server.close()


def test_others_wait_for_the_first_connection(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells how many more are worth it, and carries them where a login is shared."""
    monkeypatch.setattr(pool, "FIRST_SECONDS", 60.0)
    is_opening, may_open = threading.Event(), threading.Event()

    def connect(lost_seconds: float) -> Connection:
        is_opening.set()
        assert may_open.wait(10)
        connection = open_connection(server.connect(), 5.0)
        connection.round_trip_seconds = NEAR_SECONDS / 2
        return connection

    lines = Pool("odd", connect, READY, shares_login=True)
    try:
        with ThreadPoolExecutor(2) as callers:
            first = callers.submit(_use, lines)
            assert is_opening.wait(10)
            lines.prepare()
            second = callers.submit(_use, lines)
            with pytest.raises(futures.TimeoutError):
                second.result(2 * STARTS_AFTER_SECONDS)
            with lines._changed:
                assert lines._opening == 1
            may_open.set()
            first.result(10)
            second.result(10)
        with lines._changed:
            assert lines._changed.wait_for(lambda: len(lines._lines) == READY - RESERVED + 1, 10)
    finally:
        may_open.set()
        lines.close()


@pytest.mark.parametrize("was_far", [False, True])
def test_nobody_waits_long_for_the_first_connection(
    server: OddServer, monkeypatch: pytest.MonkeyPatch, was_far: bool
) -> None:
    """A login that takes long is one at a far server, which a second one is worth. Nor is there a
    wait where the server was far the last time."""
    is_first, may_open = threading.Event(), threading.Event()

    def connect(lost_seconds: float) -> Connection:
        if not is_first.is_set():
            is_first.set()
            assert may_open.wait(10)
        return open_connection(server.connect(), 5.0)

    if was_far:
        monkeypatch.setattr(pool, "FIRST_SECONDS", 60.0)
    lines = Pool("odd", connect, READY, was_far=was_far)
    try:
        with ThreadPoolExecutor(2) as callers:
            first = callers.submit(_use, lines)
            assert is_first.wait(10)
            began = time.monotonic()
            _use(lines)
            assert was_far or time.monotonic() - began > 0.5 * FIRST_SECONDS
            may_open.set()
            first.result(10)
    finally:
        may_open.set()
        lines.close()


def _use(lines: Pool) -> None:
    with lines.session(urgent=False):
        pass


def test_who_needs_the_server_just_after_the_start_does_not_wait(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STARTS_AFTER_SECONDS", 3600.0)
    lines = Pool("odd", lambda _: open_connection(server.connect(), 5.0), READY)
    lines.prepare()
    try:
        with lines.session(urgent=True):
            assert server.connections >= 1
        with lines._changed:
            assert lines._changed.wait_for(lambda: len(lines._lines) == READY_AT_ONCE, 10)
    finally:
        lines.close()


@pytest.mark.parametrize("is_near", [True, False])
def test_at_a_far_server_a_crowd_gets_back_at_once_what_was_closed_for_want_of_use(
    server: OddServer, is_near: bool
) -> None:
    count = 1 if is_near else 2 * READY - RESERVED - 1
    together = threading.Barrier(count)

    def connect(lost_seconds: float) -> Connection:
        if server.connections:
            together.wait(10)
        connection = open_connection(server.connect(), 5.0)
        connection.round_trip_seconds = NEAR_SECONDS * (0.5 if is_near else 2)
        return connection

    lines = Pool("odd", connect, 2 * READY)
    try:
        with lines.session(urgent=False):
            lines._lines[0].ordinary = CROWD
            lines._crowd._since = time.monotonic() - LONG_SECONDS
            with lines.session(urgent=False):
                with lines._changed:
                    assert lines._changed.wait_for(lambda: not lines._opening, 10)
                assert len(lines._lines) == 1 + count
            lines._lines[-1].ordinary = 1
    finally:
        lines.close()


def test_a_place_that_becomes_free_wakes_one_of_those_who_wait(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Pool("odd", lambda _: open_connection(server.connect(), 5.0), 1)
    woken: list[bool] = []
    wait = lines._wait

    def count_wakes(urgent: bool, failures: int) -> None:
        wait(urgent, failures)
        woken.append(urgent)

    monkeypatch.setattr(lines, "_wait", count_wakes)
    waiting, served = 3 * CALLERS, threading.Semaphore(0)
    may_end = threading.Event()

    def call() -> None:
        with lines.session(urgent=False):
            served.release()
            assert may_end.wait(10)

    threads = [threading.Thread(target=call) for _ in range(CALLERS + waiting)]
    try:
        full = [lines.session(urgent=False) for _ in range(CALLERS)]
        for session in full:
            session.__enter__()
        for thread in threads:
            thread.start()
        _wait_until(lambda: len(lines._freed[False]._waiters) == len(threads))
        for session in full:
            session.__exit__(None, None, None)
            assert served.acquire(timeout=10)
        assert len(woken) == CALLERS, "the others sleep on"
        may_end.set()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), "it was forgotten"
    finally:
        may_end.set()
        lines.close()


@pytest.mark.parametrize("share_dropped", [0.0, 0.02])
def test_nobody_is_forgotten_however_many_come_and_go(
    server: OddServer, share_dropped: float
) -> None:
    lines = Pool("odd", lambda _: open_connection(server.connect(), 5.0), 2)
    failed: list[BaseException] = []

    def call(number: int) -> None:
        dice = random.Random(number)
        try:
            for _ in range(60):
                with suppress(DroppedError), lines.session(urgent=dice.random() < 0.3) as session:
                    if dice.random() < share_dropped:
                        session._connection.close()
                    elif dice.random() < 0.5:
                        time.sleep(0.002)
                        session.wait_for(session.send(sftp.STAT, b"."))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(5 * CALLERS)]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads), "some wait for ever"
        assert not failed
    finally:
        lines.close()


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)
