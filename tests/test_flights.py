"""Who waits for a download, for how long, and who is sent away when nothing moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from syncer.blocks import flights
from syncer.blocks.flights import Flights
from syncer.errors import AbandonedError, OfflineError, SyncerError
from tests.processes import wait_for


class Downloads:
    """Downloads that end when they are told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.error: SyncerError | None = None
        self.begun: list[bytes] = []

    def of(self, block_id: bytes) -> Callable[[], bytes]:
        def work() -> bytes:
            self.begun.append(block_id)
            assert self.gate.wait(30)
            if self.error is not None:
                raise self.error
            return block_id * 2

        return work


@pytest.fixture
def downloads() -> Iterator[Downloads]:
    downloads = Downloads()
    yield downloads
    downloads.gate.set()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(flights, "_STALLED_SECONDS", 0.2)
    monkeypatch.setattr(flights, "_IDLE_SECONDS", 0.05)


def test_all_who_ask_share_one_download_and_its_failure(downloads: Downloads) -> None:
    several = Flights(4, 100, lambda: "")
    downloads.error = OfflineError("gone")
    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(several.wait_for, b"a", downloads.of(b"a")) for _ in range(10)] + [
            threads.submit(several.run_here, b"a", downloads.of(b"a")) for _ in range(2)
        ]
        wait_for(lambda: several._waiting == 10)
        downloads.gate.set()
        errors = [future.exception() for future in asked]
    assert downloads.begun == [b"a"]
    assert [str(error) for error in errors] == ["gone"] * 12
    assert len({id(error) for error in errors}) == 12, "tracebacks of several threads must not mix"


def test_downloads_are_bounded_and_all_are_made(downloads: Downloads) -> None:
    several = Flights(3, 100, lambda: "")
    ids = [bytes([number]) for number in range(20)]
    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(several.wait_for, each, downloads.of(each)) for each in ids]
        wait_for(lambda: several._waiting == 20)
        assert len(downloads.begun) == 3
        downloads.gate.set()
        assert [future.result() for future in asked] == [each * 2 for each in ids]


def test_who_is_killed_waits_no_longer_and_the_others_do(downloads: Downloads) -> None:
    several = Flights(3, 100, lambda: "")
    killed: set[int] = set()
    several.is_abandoned = lambda: threading.get_ident() in killed
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(several.wait_for, b"a", downloads.of(b"a"))
        killed.add(threading.get_ident())
        with pytest.raises(AbandonedError):
            several.wait_for(b"a", downloads.of(b"a"))
        downloads.gate.set()
        assert other.result() == b"aa"


def test_a_crowd_waits_no_longer_than_something_moves(downloads: Downloads) -> None:
    several = Flights(2, 5, lambda: "")
    with ThreadPoolExecutor(9) as threads:
        asked = [
            threads.submit(several.wait_for, bytes([n]), downloads.of(bytes([n]))) for n in range(9)
        ]
        wait_for(lambda: sum(future.done() for future in asked) == 4)
        assert several._waiting == 5, "so many may wait out the remote's own limit"
        downloads.gate.set()
        results = [future for future in asked if future.exception() is None]
        assert len(results) == 5
        assert all(
            isinstance(future.exception(), OfflineError)
            for future in asked
            if future not in results
        )


def test_a_crowd_that_is_served_waits_its_turn() -> None:
    several = Flights(2, 3, lambda: "")
    pause = threading.Event()

    def work() -> bytes:
        pause.wait(0.05)
        return b"x"

    with ThreadPoolExecutor(24) as threads:
        asked = [threads.submit(several.wait_for, bytes([n]), work) for n in range(24)]
        # All together take longer than anyone may wait for a remote that does not move.
        assert [future.result() for future in asked] == [b"x"] * 24


def test_while_the_remote_is_away_nobody_waits_in_the_queue(downloads: Downloads) -> None:
    away = ""
    several = Flights(1, 100, lambda: away)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(several.wait_for, b"a", downloads.of(b"a"))
        wait_for(lambda: downloads.begun == [b"a"])
        second = threads.submit(several.wait_for, b"b", downloads.of(b"b"))
        away = "it is away"
        with pytest.raises(OfflineError, match="it is away"):
            second.result()
        assert not first.done(), "whose call is under way waits for its own end"
        downloads.gate.set()
        assert first.result() == b"aa"


def test_an_unforeseen_failure_is_not_taken_for_a_wait(downloads: Downloads) -> None:
    def work() -> bytes:
        raise TimeoutError("a bug")

    with pytest.raises(TimeoutError, match="a bug"):
        Flights(1, 1, lambda: "").wait_for(b"a", work)
