"""Both transports against a real OpenSSH server: the contract, and all that can go wrong."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from syncer.errors import (
    AccessError,
    ForeignError,
    HostKeyError,
    LoginError,
    OfflineError,
    RemoteFullError,
    SyncerError,
    UsageError,
)
from syncer.remote import Remote, State, open_remote
from tests.remote_contract import RemoteContract, eventually
from tests.sshd import HOST, Sshd, make_key

Open = Callable[..., Remote]
LIMIT_SECONDS = 1.5
"""For tests that wait it out; long enough to connect on a busy machine."""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.fixture
def server(shared_server: Sshd) -> Iterator[Sshd]:
    """The server, which each test may stop or freeze, and leaves as it may be."""
    known_hosts = shared_server.known_hosts.read_bytes()
    yield shared_server
    shared_server.thaw()
    shared_server.known_hosts.write_bytes(known_hosts)
    shared_server.authorize(shared_server.user_key)
    if not shared_server.is_running():
        shared_server.start()


@pytest.fixture(params=["ssh", "paramiko"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def open_at(shared_server: Sshd, transport: str) -> Iterator[Open]:
    opened = []

    def open_at(location: object, **options: object) -> Remote:
        text = location if isinstance(location, str) else f"{HOST}:{location}"
        settings = {"transport": transport, **options}
        remote = open_remote(text, ssh_config=shared_server.config, **settings)  # type: ignore[arg-type]
        opened.append(remote)
        return remote

    yield open_at
    for remote in opened:
        remote.close()
    assert _children() == []


@pytest.fixture
def remote(open_at: Open, folder: Path) -> Remote:
    remote = open_at(folder)
    remote.make_folders()
    return remote


@pytest.fixture
def impatient(open_at: Open, folder: Path) -> Remote:
    remote = open_at(folder, timeout_seconds=LIMIT_SECONDS)
    remote.make_folders()
    remote.put("syncer.json", b"{}")
    return remote


class TestSftpRemote(RemoteContract):
    @pytest.fixture
    def fresh(self, open_at: Open, folder: Path) -> Remote:
        return open_at(folder)


def test_the_folder_that_it_makes_is_for_its_owner_only(open_at: Open, folder: Path) -> None:
    for place in (folder, folder / "deeper" / "down"):
        open_at(place).make_folders()
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_making_it_connects_to_nothing(server: Sshd, open_at: Open, folder: Path) -> None:
    server.stop()
    remote = open_at(folder)
    assert remote.name == f"{HOST}:{folder}"
    assert remote.health.report().state is State.ONLINE
    server.start()


def test_it_says_that_the_server_syncs(remote: Remote) -> None:
    assert remote.put("syncer.json", b"{}")
    assert remote.put("log/a new machine/1-2", b"{}")
    room = remote.usage()
    assert room is not None
    assert 0 < room.free_bytes <= room.capacity_bytes


def test_a_relative_path_starts_at_the_login_folder(open_at: Open) -> None:
    for text in (f"{HOST}:", f"{HOST}:~", f"{HOST}:~/", f"sftp://{HOST}/~"):
        names = {entry.name for entry in open_at(text).list("")}
        home = Path.home()
        assert names == {path.name for path in home.iterdir() if _is_plain_file(path)}
    user = Path.home().name
    if Path(os.path.expanduser(f"~{user}")) == Path.home():
        assert not open_at(f"{HOST}:~{user}/..").is_empty()


def test_an_unknown_user_of_a_path_is_named(open_at: Open) -> None:
    with pytest.raises(OfflineError, match="no such user"):
        open_at(f"{HOST}:~nobody-of-this-name/x").check()


def test_names_that_a_shell_would_mind_are_no_trouble(open_at: Open, tmp_path: Path) -> None:
    remote = open_at(tmp_path / "a b;$(touch x)'\"é")
    remote.make_folders()
    remote.put("syncer.json", b"{}")
    assert (tmp_path / "a b;$(touch x)'\"é" / "syncer.json").read_bytes() == b"{}"


def test_a_stopped_server_is_noticed_once_and_then_told_at_once(
    server: Sshd, remote: Remote
) -> None:
    remote.put("syncer.json", b"{}")
    server.stop()
    with pytest.raises(OfflineError):
        remote.get("syncer.json")
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(OfflineError):
            remote.get("syncer.json")
    assert time.monotonic() - started < 0.5
    assert remote.health.report().state is State.OFFLINE
    assert HOST in remote.health.report().error


def test_a_server_that_is_back_is_used_again(server: Sshd, remote: Remote) -> None:
    remote.put("syncer.json", b"{}")
    server.stop()
    with pytest.raises(OfflineError):
        remote.put("syncer.json", b"{}")
    server.start()
    assert remote.health.wait_online(5)
    assert remote.get("syncer.json") == b"{}"
    assert remote.health.report().state is State.ONLINE


def test_a_restart_between_two_calls_goes_unnoticed(server: Sshd, remote: Remote) -> None:
    remote.put("syncer.json", b"{}")
    server.stop()
    server.start()
    assert remote.get("syncer.json") == b"{}"


def test_a_frozen_server_is_noticed_within_the_limit(server: Sshd, impatient: Remote) -> None:
    server.freeze()
    for call in (
        lambda: impatient.get("syncer.json", urgent=True),
        impatient.check,  # a new connection, since the frozen one is dropped
    ):
        started = time.monotonic()
        with pytest.raises(OfflineError):
            call()
        assert time.monotonic() - started < 2 * LIMIT_SECONDS + 2
    server.thaw()
    impatient.check()
    assert impatient.get("syncer.json") == b"{}"


def test_those_who_wait_for_a_connection_do_not_wait_their_limits_in_turn(
    server: Sshd, impatient: Remote
) -> None:
    server.freeze()

    def seconds_until_refused(number: int) -> float:
        started = time.monotonic()
        with pytest.raises(OfflineError):
            impatient.put(f"machines/{number}", b"x")
        return time.monotonic() - started

    with ThreadPoolExecutor(24) as threads:
        longest = max(threads.map(seconds_until_refused, range(24)))
    assert longest < 2 * LIMIT_SECONDS + 3


def test_after_an_outage_and_on_each_connection_it_is_asked_whether_it_is_the_right_one(
    server: Sshd, open_at: Open, folder: Path
) -> None:
    remote = open_at(folder, connections=3)
    asked: list[bytes] = []

    def is_expected(data: bytes) -> bool:
        asked.append(data)
        return data == b"ours"

    remote.make_folders()
    remote.put("syncer.json", b"ours")
    remote.expect(is_expected)
    for number in range(20):
        remote.put(f"machines/{number}", b"x")
    assert 1 <= len(asked) <= 3
    assert remote.arrivals == 1

    elsewhere, other = folder.with_name("elsewhere"), folder.with_name("other")
    (other / "tmp").mkdir(parents=True)
    (other / "syncer.json").write_bytes(b"other")
    folder.rename(elsewhere)
    with pytest.raises(OfflineError):
        remote.put("machines/1", b"x")
    other.rename(folder)
    remote.health.wait_online(30)
    with pytest.raises(ForeignError):
        remote.put("machines/1", b"x")
    assert {path.name for path in folder.iterdir()} == {"tmp", "syncer.json"}
    folder.rename(other)
    elsewhere.rename(folder)
    remote.health.wait_online(30)
    remote.put("machines/1", b"x")
    assert remote.arrivals == 2
    server.stop()
    server.start()
    remote.put("machines/1", b"x")
    assert remote.arrivals == 3

    # Another server may have the same name.
    server.stop()
    with pytest.raises(OfflineError):
        remote.put("machines/1", b"x")
    folder.rename(elsewhere)
    other.rename(folder)
    server.start()
    remote.health.wait_online(30)
    with pytest.raises(ForeignError):
        remote.put("machines/1", b"x")


def test_uploads_that_hang_do_not_keep_a_reader_waiting(
    server: Sshd, open_at: Open, folder: Path
) -> None:
    remote = open_at(folder, connections=4)
    remote.make_folders()
    remote.put("syncer.json", b"{}")
    fifo = folder / "machines" / "fifo"
    os.mkfifo(fifo)  # opening it blocks the server's end
    stuck = [
        threading.Thread(target=_swallow, args=(lambda: remote.get("machines/fifo"),))
        for _ in range(6)
    ]
    for thread in stuck:
        thread.start()
    time.sleep(0.3)
    started = time.monotonic()
    assert remote.get("syncer.json", urgent=True) == b"{}"
    assert time.monotonic() - started < 5
    remote.close()
    for thread in stuck:
        thread.join(5)
        assert not thread.is_alive()
    _let_readers_go(fifo)


def test_closing_ends_calls_under_way_at_once(server: Sshd, remote: Remote) -> None:
    remote.put("syncer.json", b"{}")
    server.freeze()
    threading.Timer(0.3, remote.close).start()
    started = time.monotonic()
    with pytest.raises(OfflineError):
        remote.get("syncer.json")
    assert time.monotonic() - started < 1.5


def test_the_number_of_connections_is_bounded(server: Sshd, open_at: Open, folder: Path) -> None:
    remote = open_at(folder, connections=3)
    remote.make_folders()
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda n: remote.put(f"machines/{n}", os.urandom(99_999)), range(60)))
        list(threads.map(lambda n: remote.get(f"machines/{n}", urgent=True), range(60)))
    assert server.connections() <= 3
    remote.close()
    eventually(lambda: server.connections() == 0)


def test_a_server_that_refuses_more_connections_is_used_with_fewer(
    open_at: Open, folder: Path, transport: str
) -> None:
    with Sshd("MaxStartups 1", "PerSourceMaxStartups 1") as narrow:
        remote = open_remote(f"{HOST}:{folder}", transport=transport, ssh_config=narrow.config)
        remote.make_folders()
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(lambda n: remote.put(f"machines/{n}", b"x"), range(100)))
        remote.close()


def test_an_unknown_host_key_is_refused_with_advice(server: Sshd, open_at: Open) -> None:
    server.know()
    remote = open_at(f"{HOST}:/")
    with pytest.raises(HostKeyError, match=f"not known.*ssh {HOST}"):
        remote.check()
    assert remote.health.report().state is State.ERROR
    server.know(server.host_key)
    remote.check()
    assert remote.health.report().state is State.ONLINE


def test_a_changed_host_key_is_refused_with_advice(server: Sshd, open_at: Open) -> None:
    make_key(server.folder / "other")
    server.know(server.folder / "other")
    known = rf'"\[127.0.0.1\]:{server.port}"'
    with pytest.raises(HostKeyError, match=rf"changed.*ssh-keygen -R {known}"):
        open_at(f"{HOST}:/").check()


def test_a_hashed_known_hosts_file_is_understood(server: Sshd, open_at: Open) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", str(server.known_hosts)], check=True, capture_output=True
    )
    assert b"127.0.0.1" not in server.known_hosts.read_bytes()
    open_at(f"{HOST}:/").check()


def test_a_key_that_the_server_does_not_accept_is_a_login_error(
    server: Sshd, open_at: Open
) -> None:
    make_key(server.folder / "other")
    server.authorize(server.folder / "other")
    remote = open_at(f"{HOST}:/")
    with pytest.raises(LoginError, match=HOST):
        remote.check()
    with pytest.raises(LoginError):
        remote.get("syncer.json")


def test_a_host_that_refuses_or_does_not_exist_is_offline(
    server: Sshd, open_at: Open, transport: str
) -> None:
    server.stop()
    with pytest.raises(OfflineError, match=HOST):
        open_at(f"{HOST}:/").check()
    with pytest.raises(OfflineError, match="no-such-host"):
        open_at("no-such-host.invalid:x").check()


def test_a_server_without_sftp_is_an_error(transport: str) -> None:
    # Paramiko tells no more than that the channel was closed.
    kind = {"ssh": AccessError, "paramiko": OfflineError}[transport]
    with Sshd(sftp="") as server:
        remote = open_remote(f"{HOST}:/", transport=transport, ssh_config=server.config)
        with pytest.raises(kind):
            remote.check()
        remote.close()


def test_a_login_script_that_prints_is_named_as_the_suspect(transport: str) -> None:
    with Sshd('ForceCommand echo "Welcome to this server, have a very nice day"') as server:
        remote = open_remote(
            f"{HOST}:/", transport=transport, ssh_config=server.config, timeout_seconds=5
        )
        with pytest.raises(OfflineError, match="login script"):
            remote.check()
        remote.close()


def test_a_server_that_forbids_writing_can_be_read(remote: Remote, transport: str) -> None:
    remote.put("syncer.json", b"{}")
    folder = remote.name.partition(":")[2]
    with Sshd(sftp="internal-sftp -R") as server:
        reader = open_remote(f"{HOST}:{folder}", transport=transport, ssh_config=server.config)
        assert reader.get("syncer.json") == b"{}"
        calls: list[Callable[[], object]] = [
            lambda: reader.put("syncer.json", b"other"),
            lambda: reader.create("writers/000001", b"x"),
            lambda: reader.delete("syncer.json"),
        ]
        for call in calls:
            with pytest.raises(AccessError, match="Permission denied"):
                call()
        assert reader.get("syncer.json") == b"{}"
        reader.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Ask for it before `open_at`: it can be unmounted when the remotes are closed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not _as_root("mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs", str(disk)):
        pytest.skip("may not mount a small disk here")
    yield disk
    assert _as_root("umount", str(disk))


def test_a_full_disk_is_told_from_other_failures(small_disk: Path, open_at: Open) -> None:
    remote = open_at(small_disk / "repository")
    remote.make_folders()
    for number in range(3):
        remote.put(f"machines/{number}", os.urandom(1 << 20))
    with pytest.raises(RemoteFullError, match="full"):
        remote.put("machines/3", os.urandom(2 << 20))
    assert remote.health.report().state is State.ERROR
    assert list(remote.list("tmp")) == []
    remote.delete("machines/0")
    remote.put("machines/0", os.urandom(1 << 19))
    assert remote.health.report().state is State.ONLINE


def test_a_read_only_disk_is_an_access_error(small_disk: Path, open_at: Open) -> None:
    remote = open_at(small_disk / "repository")
    remote.make_folders()
    assert _as_root("mount", "-o", "remount,ro", str(small_disk))
    with pytest.raises(AccessError, match="read-only"):
        remote.put("machines/0", b"x")


def test_a_jump_host_and_a_proxy_command_lead_to_the_server(
    server: Sshd, open_at: Open, folder: Path
) -> None:
    relay = server.folder / "relay.py"
    relay.write_text(_RELAY)
    command = f"{sys.executable} {relay} 127.0.0.1 {server.port}"
    usual = server.config.read_text()
    includes = server.folder / "more_config"
    includes.write_text(
        f"Host via-jump\n  ProxyJump {HOST}\n"
        f"Host via-command\n  ProxyCommand {command}\n"
        f"Host via-*\n" + usual.partition("\n")[2]
    )
    try:
        server.config.write_text(f"Include {includes}\n{usual}")
        for host in ("via-command", "via-jump"):
            remote = open_at(f"{host}:{folder}", connections=2)
            remote.make_folders()
            remote.put("syncer.json", b"{}")
            assert remote.get("syncer.json") == b"{}"
    finally:
        server.config.write_text(usual)


def test_an_unknown_transport_is_a_usage_error(open_at: Open) -> None:
    with pytest.raises(UsageError, match="auto, ssh, paramiko"):
        open_at(f"{HOST}:/", transport="telnet")


def test_without_an_ssh_program_paramiko_is_taken(
    server: Sshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="openssh-client"):
        open_remote(f"{HOST}:{folder}", transport="ssh", ssh_config=server.config)
    remote = open_remote(f"{HOST}:{folder}", ssh_config=server.config)
    remote.check()
    remote.close()


_RELAY = """
import socket, sys, threading, os
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while d := os.read(0, 65536): s.sendall(d)
    os._exit(0)
threading.Thread(target=up, daemon=True).start()
while d := s.recv(65536): os.write(1, d)
"""


def _as_root(*words: str) -> bool:
    command = words if os.geteuid() == 0 else ("sudo", "-n", *words)
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _let_readers_go(fifo: Path) -> None:
    """End the server's processes that wait for a writer: their connections are gone already."""
    writer = os.open(fifo, os.O_RDWR)
    time.sleep(0.1)
    os.close(writer)


def _swallow(call: Callable[[], object]) -> None:
    with suppress(SyncerError):
        call()


def _children() -> list[str]:
    """The ssh processes that are children of this one, zombies included."""
    found = []
    for child in Path("/proc/self/task").glob("*/children"):
        # Threads and processes may end while we look.
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [pid for pid in child.read_text().split() if _program(pid) == "ssh"]
    return found


def _program(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
