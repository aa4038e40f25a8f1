"""What is under way to a server, on links of any speed."""

from __future__ import annotations

from collections import deque

import pytest

from syncer.remote.window import (
    CHUNKS,
    FIRST_BYTES,
    GROWTH,
    LEAD_ROUND_TRIPS,
    SECONDS,
    TELLING_BYTES,
    Sent,
    Window,
)


class Link:
    """Answers what was sent in turn, at a rate, and a round trip later."""

    def __init__(self, bytes_per_second: float, round_trip_seconds: float) -> None:
        self.now = 0.0
        self.window = Window(lambda: self.now)
        self.bytes_per_second = bytes_per_second
        self.round_trip_seconds = round_trip_seconds
        self.free_at = 0.0
        self.under_way: deque[tuple[float, Sent]] = deque()
        self.longest_silence = 0.0

    def carry(self, total_bytes: int) -> float:
        """Send so much, and return how long it took."""
        began = self.now
        while total_bytes > 0 or self.under_way:
            size_bytes = self.window.chunk_bytes(261_120)
            if total_bytes > 0 and self.window.wait_for_room(size_bytes, 0):
                self.send(size_bytes)
                total_bytes -= size_bytes
                continue
            due, sent = self.under_way.popleft()
            self.longest_silence = max(self.longest_silence, due - self.now)
            self.now = due
            self.window.answered(sent, sent.size_bytes)
        return self.now - began

    def send(self, size_bytes: int) -> None:
        self.free_at = max(self.free_at, self.now) + size_bytes / self.bytes_per_second
        due = self.free_at + self.round_trip_seconds
        self.under_way.append((due, self.window.send(size_bytes)))


@pytest.mark.parametrize("bytes_per_second", [1_000, 4_000, 50_000])
def test_answers_come_every_few_seconds_however_slow_the_link(bytes_per_second: int) -> None:
    link = Link(bytes_per_second, 0.2)
    took = link.carry(400 * bytes_per_second)
    assert took < 1.2 * 400, "the link is kept busy"
    assert link.longest_silence <= SECONDS + 1


def test_a_fast_link_is_filled_after_few_round_trips() -> None:
    link = Link(100e6, 0.04)
    assert link.carry(100 << 20) < 1.05 + 4 * 0.04
    assert link.window.size_bytes > 8 << 20


def test_small_requests_leave_the_window_of_a_fast_link_as_it_is() -> None:
    link = Link(100e6, 0.04)
    link.carry(100 << 20)
    size_bytes = link.window.size_bytes
    for _ in range(10):
        sent = link.window.send(100)
        link.now += 0.041
        link.window.answered(sent, 100)
    assert link.window.size_bytes == size_bytes


def test_an_answer_that_brings_less_than_was_asked_for_teaches_nothing() -> None:
    """The end of a short object came quickly, however slow the link is."""
    window = Window(lambda: 0.0)
    window.answered(window.send(FIRST_BYTES), 100)
    assert window.size_bytes == FIRST_BYTES
    assert window.moved_bytes == 100
    assert window.has_room(FIRST_BYTES)


@pytest.mark.parametrize(
    ("bytes_per_second", "round_trip_seconds"), [(100e6, 0.04), (1e6, 0.04), (1e6, 0.2)]
)
def test_the_lead_is_what_the_link_carries_in_some_round_trips(
    bytes_per_second: float, round_trip_seconds: float
) -> None:
    link = Link(bytes_per_second, round_trip_seconds)
    assert link.window.lead_bytes == 0
    # The first answers tell of the round trip, and one of the size of a block of the rate.
    link.carry(4 << 20)
    link.send(1 << 20)
    link.now, sent = link.under_way.popleft()
    link.window.answered(sent, sent.size_bytes)
    fitting_bytes = LEAD_ROUND_TRIPS * round_trip_seconds * bytes_per_second
    assert 0.9 * fitting_bytes < link.window.lead_bytes < 1.3 * fitting_bytes


def test_little_data_says_nothing_about_how_far_to_look_ahead() -> None:
    link = Link(100e6, 0.04)
    link.send(TELLING_BYTES - 1)
    link.now, sent = link.under_way.popleft()
    link.window.answered(sent, sent.size_bytes)
    assert link.window.lead_bytes == 0


def test_a_server_that_pauses_slows_nothing_down_for_good() -> None:
    link = Link(100e6, 0.04)
    link.carry(100 << 20)
    for _ in range(5):
        link.send(1 << 20)
        link.free_at += 6  # a disk that takes long to sync
        link.carry(50 << 20)
    assert link.carry(100 << 20) < 3


def test_a_link_that_becomes_slow_is_noticed() -> None:
    link = Link(1e6, 0.04)
    link.carry(20 << 20)
    link.bytes_per_second = 10_000
    link.carry(2 << 20)
    link.longest_silence = 0
    link.carry(1 << 20)
    assert link.longest_silence <= SECONDS + 1


def test_a_lost_connection_makes_room_and_begins_anew() -> None:
    link = Link(1e6, 0.04)
    link.carry(20 << 20)
    window = link.window
    lost = window.send(window.size_bytes)
    assert not window.wait_for_room(1, 0)
    window.lost(lost)
    assert window.size_bytes == FIRST_BYTES
    assert window.wait_for_room(FIRST_BYTES, 0)
    assert window.chunk_bytes(261_120) == FIRST_BYTES // CHUNKS


def test_a_link_that_answers_nothing_is_not_waited_for_longer_than_the_limit() -> None:
    window = Window()
    window.send(FIRST_BYTES)
    assert not window.wait_for_room(1, 0.05)


def test_a_little_that_came_quickly_does_not_tell_that_much_more_will() -> None:
    """Else what a fast line was asked for at first would look dead on one that became slow."""
    now = 0.0
    window = Window(lambda: now)
    for _ in range(100):
        sent = window.send(500)
        now += 0.001
        window.answered(sent, 500)
    assert window.size_bytes <= GROWTH * 500
