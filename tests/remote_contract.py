"""What every remote promises, as tests; each remote's own test module inherits them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from syncer.errors import ExistsError, MissingError, OfflineError, SyncerError, UsageError
from syncer.remote.base import Entry, Remote
from syncer.remote.retry import State

BLOCK_BYTES = 1 << 20


class RemoteContract:
    """Subclasses provide the fixture `fresh`: a remote whose folder holds nothing."""

    @pytest.fixture
    def remote(self, fresh: Remote) -> Remote:
        fresh.make_folders()
        return fresh

    def test_a_fresh_remote_is_reachable_and_empty(self, fresh: Remote) -> None:
        fresh.check()
        assert fresh.is_empty()
        assert fresh.health.report().state is State.ONLINE

    def test_folders_are_made_once_and_again_without_harm(self, fresh: Remote) -> None:
        fresh.make_folders()
        fresh.put("blocks/ff/x", b"kept")
        fresh.make_folders()
        assert fresh.get("blocks/ff/x") == b"kept"
        assert not fresh.is_empty()

    def test_folders_may_be_made_before_their_first_object(self, fresh: Remote) -> None:
        fresh.make_folders(["log/machine", "checkpoint/machine"])
        assert list(fresh.list("log/machine")) == []
        fresh.put("log/machine/1-2", b"kept")
        assert [entry.name for entry in fresh.list("log/machine")] == ["1-2"]
        with pytest.raises(UsageError):
            fresh.make_folders(["../elsewhere"])

    def test_what_was_put_is_there(self, remote: Remote) -> None:
        content = os.urandom(BLOCK_BYTES + 400)
        remote.put("blocks/ab/abcd", content)
        assert remote.get("blocks/ab/abcd") == content
        assert remote.get("blocks/ab/abcd", urgent=True) == content

    def test_content_may_come_in_several_buffers(self, remote: Remote) -> None:
        head, body = b"head", os.urandom(300_000)
        remote.put("blocks/ab/abcd", [head, b"", memoryview(body), bytearray(b"tail")])
        assert remote.get("blocks/ab/abcd") == head + body + b"tail"

    def test_objects_of_any_size_come_back(self, remote: Remote) -> None:
        for size_bytes in (0, 1, 32768, 261120, 261121, 9 << 20):
            content = os.urandom(size_bytes)
            remote.put("log/machine/1-2", content)
            assert remote.get("log/machine/1-2") == content
            assert remote.stat("log/machine/1-2").size_bytes == size_bytes

    def test_a_part_can_be_read_alone(self, remote: Remote) -> None:
        content = os.urandom(600_000)
        remote.put("blocks/ab/abcd", content)
        assert remote.get("blocks/ab/abcd", 0, 64) == content[:64]
        assert remote.get("blocks/ab/abcd", 65_536, 500_000) == content[65_536:565_536]
        assert remote.get("blocks/ab/abcd", 599_990) == content[599_990:]
        assert remote.get("blocks/ab/abcd", 10, 0) == b""

    def test_a_read_ends_where_the_object_ends(self, remote: Remote) -> None:
        remote.put("blocks/ab/abcd", b"0123456789")
        assert remote.get("blocks/ab/abcd", 4, 100) == b"456789"
        assert remote.get("blocks/ab/abcd", 100, 5) == b""
        assert remote.get("blocks/ab/abcd", 100) == b""

    def test_what_is_missing_is_reported_as_missing(self, remote: Remote) -> None:
        with pytest.raises(MissingError, match="blocks/ab/none"):
            remote.get("blocks/ab/none")
        with pytest.raises(MissingError):
            remote.stat("log/nobody/1-2")
        assert remote.health.report().state is State.ONLINE

    def test_the_configuration_of_no_repository_is_missing(self, fresh: Remote) -> None:
        with pytest.raises(MissingError):
            fresh.get("syncer.json")

    def test_a_put_replaces(self, remote: Remote) -> None:
        remote.put("machines/a.json", b"a longer first version")
        remote.put("machines/a.json", b"second")
        assert remote.get("machines/a.json") == b"second"

    def test_a_put_makes_the_folders_of_its_machine(self, remote: Remote) -> None:
        remote.put("checkpoint/machine/chunks/7", b"rows")
        assert remote.get("checkpoint/machine/chunks/7") == b"rows"

    def test_create_does_not_replace(self, remote: Remote) -> None:
        remote.create("writers/000001", b"first")
        with pytest.raises(ExistsError):
            remote.create("writers/000001", b"second")
        assert remote.get("writers/000001") == b"first"

    def test_of_several_who_create_at_once_one_wins(self, remote: Remote) -> None:
        def create(number: int) -> bool:
            try:
                remote.create("writers/000002", str(number).encode() * 1000)
            except ExistsError:
                return False
            return True

        with ThreadPoolExecutor(6) as threads:
            won = list(threads.map(create, range(6)))
        assert won.count(True) == 1
        assert remote.get("writers/000002") == str(won.index(True)).encode() * 1000

    def test_an_object_may_get_its_name_when_it_is_told_to(self, remote: Remote) -> None:
        remote.put("log/machine/1", b"replaced")

        def may_show() -> bool:
            # Others work meanwhile, on the same connection too.
            remote.put("blocks/ab/abcd", b"in between")
            assert remote.get("log/machine/1") == b"replaced"
            return True

        placed = remote.place("log/machine/1", b"new", may_show)
        assert placed is not None and not placed.there
        assert placed.is_safe == remote.put("log/machine/2", b"another")
        assert remote.get("log/machine/1") == b"new"

    def test_an_object_that_may_not_show_is_not_stored(self, remote: Remote) -> None:
        assert remote.place("log/machine/1", b"content", lambda: False) is None
        with pytest.raises(MissingError):
            remote.get("log/machine/1")
        eventually(lambda: not list(remote.list("tmp")))
        assert remote.health.report().state is State.ONLINE

    def test_who_fails_before_the_name_is_given_leaves_nothing_behind(self, remote: Remote) -> None:
        def fail() -> bool:
            raise SyncerError("why")

        with pytest.raises(SyncerError, match="why"):
            remote.place("log/machine/1", b"content", fail)
        assert not list(remote.list("log/machine"))
        eventually(lambda: not list(remote.list("tmp")))

    def test_an_object_with_its_name_looks_for_others(self, remote: Remote) -> None:
        remote.put("writers/1", b"")

        def may_show() -> bool:
            remote.put("writers/2", b"at the last moment")
            remote.delete("writers/3")
            return True

        remote.put("writers/3", b"")
        looked_for = ["writers/1", "writers/2", "writers/3", "a folder/that is not there"]
        # Also where its folder has to be made first.
        for key in ("log/machine/1", "log/machine/2"):
            placed = remote.place(key, b"content", may_show, looked_for)
            assert placed is not None and placed.there == {"writers/1", "writers/2"}
        with pytest.raises(UsageError):
            remote.place("log/machine/3", b"content", lambda: True, ["../elsewhere"])

    def test_uploads_leave_nothing_behind(self, remote: Remote) -> None:
        remote.put("blocks/ab/a", b"a")
        remote.create("writers/000001", b"b")
        with pytest.raises(ExistsError):
            remote.create("writers/000001", b"b")
        eventually(lambda: not list(remote.list("tmp")))

    def test_delete_removes_and_minds_no_absence(self, remote: Remote) -> None:
        remote.put("blocks/ab/abcd", b"x")
        remote.delete("blocks/ab/abcd")
        remote.delete("blocks/ab/abcd")
        with pytest.raises(MissingError):
            remote.get("blocks/ab/abcd")

    def test_a_move_replaces_and_leaves_nothing_behind(self, remote: Remote) -> None:
        remote.put("blocks/ab/abcd", b"moved")
        remote.put("trash/abcd", b"a longer object that is replaced")
        remote.move("blocks/ab/abcd", "trash/abcd")
        assert remote.get("trash/abcd") == b"moved"
        assert list(remote.list("blocks/ab")) == []
        remote.move("trash/abcd", "blocks/ab/abcd")
        assert remote.get("blocks/ab/abcd") == b"moved"
        assert list(remote.list("trash")) == []

    def test_a_move_of_nothing_replaces_nothing(self, remote: Remote) -> None:
        remote.put("trash/abcd", b"stays")
        with pytest.raises(MissingError):
            remote.move("blocks/ab/abcd", "trash/abcd")
        assert remote.get("trash/abcd") == b"stays"
        assert remote.health.report().state is State.ONLINE

    def test_list_names_the_objects_of_one_folder(self, remote: Remote) -> None:
        before = time.time()
        remote.put("syncer.json", b"{}")
        remote.put("machines/a.json", b"12345")
        remote.put("machines/b ü.json", b"")
        remote.put("machines/deeper/c.json", b"1")
        found = {entry.name: entry for entry in remote.list("machines")}
        assert {name: entry.size_bytes for name, entry in found.items()} == {
            "a.json": 5,
            "b ü.json": 0,
        }
        assert abs(found["a.json"].mtime_seconds - before) < 60
        assert [entry.name for entry in remote.list("")] == ["syncer.json"]

    def test_a_long_folder_is_listed_whole(self, remote: Remote) -> None:
        names = {f"{number:06}" for number in range(350)}
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda name: remote.put(f"writers/{name}", b"x"), names))
        assert {entry.name for entry in remote.list("writers")} == names

    def test_a_missing_folder_lists_as_empty(self, remote: Remote) -> None:
        assert list(remote.list("log/nobody")) == []

    def test_stat_describes_one_object(self, remote: Remote) -> None:
        remote.put("blocks/ab/abcd", b"12345")
        found = remote.stat("blocks/ab/abcd")
        assert found == Entry("abcd", 5, found.mtime_seconds)

    def test_keys_that_lead_elsewhere_are_refused(self, remote: Remote) -> None:
        calls: list[Callable[[str], object]] = [
            remote.get,
            remote.delete,
            remote.stat,
            lambda key: remote.put(key, b""),
            lambda key: remote.create(key, b""),
            lambda key: remote.move(key, "trash/a"),
            lambda key: remote.move("trash/a", key),
        ]
        for key in ("", "/a", "a/", "a//b", "../a", "a/./b", "a/..", "a\0b"):
            for call in calls:
                with pytest.raises(UsageError):
                    call(key)

    def test_many_threads_may_use_it_at_once(self, remote: Remote) -> None:
        contents = {f"blocks/0{n % 10}/{n}": os.urandom(n * 1000) for n in range(60)}

        def put_and_get(key: str) -> bool:
            remote.put(key, contents[key])
            return remote.get(key, urgent=len(key) % 2 == 0) == contents[key]

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(put_and_get, contents))

    def test_a_closed_remote_is_offline(self, remote: Remote) -> None:
        remote.close()
        with pytest.raises(OfflineError):
            remote.get("blocks/ab/abcd")


def eventually(condition: Callable[[], bool], within_seconds: float = 10.0) -> None:
    """Wait until a condition holds; fails the test if it does not come to hold."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come to hold in time"
        time.sleep(0.02)
