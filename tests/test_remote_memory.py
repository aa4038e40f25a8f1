from __future__ import annotations

from collections.abc import Iterator

import pytest

from syncer.errors import OfflineError, RemoteFullError
from syncer.remote.retry import State
from tests.memory_remote import MemoryRemote
from tests.remote_contract import RemoteContract


class TestMemoryRemote(RemoteContract):
    @pytest.fixture
    def fresh(self) -> Iterator[MemoryRemote]:
        remote = MemoryRemote()
        yield remote
        remote.close()


def test_it_fails_as_it_was_told() -> None:
    remote = MemoryRemote()
    remote.fail("put", RemoteFullError("full"), times=2)
    for _ in range(2):
        with pytest.raises(RemoteFullError):
            remote.put("a", b"x")
    assert remote.objects == {}
    remote.put("a", b"x")
    assert remote.objects == {"a": b"x"}
    assert remote.calls == {"put": 3}


def test_it_goes_offline_and_comes_back() -> None:
    remote = MemoryRemote()
    remote.put("a", b"x")
    remote.go_offline()
    with pytest.raises(OfflineError):
        remote.get("a")
    assert remote.health.report().state is State.OFFLINE
    remote.go_online()
    remote.check()
    assert remote.get("a") == b"x"
