"""Which blocks are asked for ahead of a reader."""

from __future__ import annotations

from syncer.codec import BLOCK_BYTES
from syncer.vfs.readahead import ReadAhead

REQUEST = 128 << 10
LEAD_BLOCKS = 12
LEAD_BYTES = LEAD_BLOCKS * BLOCK_BYTES
MOST_BLOCKS = 16


def read(ahead: ReadAhead, first: int, end: int, lead_bytes: int = 0) -> list[tuple[int, int]]:
    """What is asked for while a program reads from `first` to `end`, as the kernel does."""
    spans = (ahead.wanted(offset, REQUEST, lead_bytes) for offset in range(first, end, REQUEST))
    return [span for span in spans if span]


def blocks_of(spans: list[tuple[int, int]]) -> list[int]:
    return [block for first, last in spans for block in range(first, last + 1)]


def test_a_sequential_reader_is_led_by_more_and_more() -> None:
    spans = read(ReadAhead(MOST_BLOCKS), 0, 40 * BLOCK_BYTES)
    assert spans[0] == (1, 2)
    blocks = blocks_of(spans)
    assert blocks == list(range(1, blocks[-1] + 1)), "each once, in order"
    assert 39 + MOST_BLOCKS // 2 <= blocks[-1] <= 39 + MOST_BLOCKS


def test_the_first_block_of_a_file_foretells_nothing_by_itself() -> None:
    assert read(ReadAhead(MOST_BLOCKS), 0, BLOCK_BYTES - REQUEST) == []


def test_over_a_long_line_the_second_request_asks_for_what_keeps_it_busy() -> None:
    ahead = ReadAhead(MOST_BLOCKS)
    assert ahead.wanted(0, REQUEST, LEAD_BYTES) is None, "perhaps nobody wants more"
    assert ahead.wanted(REQUEST, REQUEST, LEAD_BYTES) == (1, LEAD_BLOCKS)
    blocks = blocks_of([(1, LEAD_BLOCKS), *read(ahead, 2 * REQUEST, 40 * BLOCK_BYTES, LEAD_BYTES)])
    assert blocks == list(range(1, blocks[-1] + 1)), "each once, in order"
    assert blocks[-1] >= 39 + MOST_BLOCKS // 2


def test_a_window_that_is_open_is_widened_when_the_line_turns_out_to_be_long() -> None:
    ahead = ReadAhead(MOST_BLOCKS)
    assert read(ahead, 0, BLOCK_BYTES) == [(1, 2)]
    assert ahead.wanted(BLOCK_BYTES, REQUEST, LEAD_BYTES) == (3, 1 + LEAD_BLOCKS)


def test_the_line_asks_for_no_more_than_the_setting_allows() -> None:
    ahead = ReadAhead(4)
    ahead.wanted(0, REQUEST, LEAD_BYTES)
    assert ahead.wanted(REQUEST, REQUEST, LEAD_BYTES) == (1, 4)


def test_who_leaps_is_led_only_when_the_reading_goes_on() -> None:
    for lead_bytes, window_blocks in ((0, 2), (LEAD_BYTES, LEAD_BLOCKS)):
        ahead = ReadAhead(MOST_BLOCKS)
        for block in (30, 50, 10):
            assert ahead.wanted(block * BLOCK_BYTES, 4096, lead_bytes) is None
        assert ahead.wanted(10 * BLOCK_BYTES + 4096, REQUEST, lead_bytes) == (
            11,
            10 + window_blocks,
        )
    # A preview in the middle of a photo's first block.
    ahead = ReadAhead(MOST_BLOCKS)
    assert ahead.wanted(0, REQUEST, LEAD_BYTES) is None
    assert ahead.wanted(5 * REQUEST, REQUEST, LEAD_BYTES) is None


def test_requests_that_are_served_out_of_order_ask_for_each_block_once() -> None:
    """The kernel asks for some MiB at once, and several threads serve that."""
    ahead = ReadAhead(MOST_BLOCKS)
    order = [0, 1, 2, 3, 5, 4, 6, 9, 8, 7, 10, 11, 14, 12, 13, *range(15, 40)]
    asked = (ahead.wanted(block * BLOCK_BYTES, BLOCK_BYTES) for block in order)
    blocks = blocks_of([span for span in asked if span])
    assert blocks == list(range(1, blocks[-1] + 1)), "each once, in order"
    assert blocks[-1] >= 39 + MOST_BLOCKS // 2


def test_what_is_read_again_is_not_asked_for_again() -> None:
    ahead = ReadAhead(MOST_BLOCKS)
    read(ahead, 0, 4 * BLOCK_BYTES)
    assert read(ahead, 2 * BLOCK_BYTES, 4 * BLOCK_BYTES) == []
    assert read(ahead, 4 * BLOCK_BYTES, 20 * BLOCK_BYTES)
