"""A server that is slow, hangs, goes away or is cut off, as a mount on it shows it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.line import Reader, forget_pages, mounted_over, noise
from tests.faults.proxy import Proxy
from tests.mounted import BINDINGS, Mount, mounted
from tests.processes import children_of, contents, wait_for
from tests.sshd import Sshd

pytestmark = [pytest.mark.fuse, pytest.mark.slow(10)]

FUSE = BINDINGS[-1]
TRANSPORTS = ("ssh", pytest.param("paramiko", marks=pytest.mark.torture))
FILE_BYTES = 40_000


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.fixture
def line(server: Sshd) -> Iterator[Proxy]:
    with Proxy(server.port) as line:
        yield line


def cold_files(mount: Mount, count: int, size_bytes: int = FILE_BYTES) -> list[Path]:
    """Files whose content only the server has."""
    paths = [mount.path / f"cold-{number}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(noise(size_bytes, number))
    mount.evict()
    for path in paths:
        forget_pages(path)
    return paths


def state(mount: Mount) -> str:
    return str(mount.status()["remote"]["state"])


def check_clone(mount: Mount, folder: Path) -> None:
    """What a new machine gets is what this one has: nothing lost, doubled or from another time."""
    mount.flush()
    with mounted(
        folder, FUSE, name="clone", remote=mount.remote, clone=True, env=mount._env
    ) as clone:
        assert contents(clone.path) == contents(mount.path)


# Everybody waits


@pytest.mark.parametrize(
    ("fuse", "direct"),
    [
        (FUSE, False),
        (BINDINGS[0], True),
        pytest.param(FUSE, True, marks=pytest.mark.torture),
        pytest.param(BINDINGS[0], False, marks=pytest.mark.torture),
    ],
)
def test_however_many_wait_for_the_server_the_rest_goes_on(
    line: Proxy, server: Sshd, tmp_path: Path, fuse: str, direct: bool
) -> None:
    # So long that what happens below happens while they wait.
    with mounted_over(line, server, tmp_path, fuse, timeout="120") as mount:
        cold = cold_files(mount, 150)
        local = mount.path / "local"
        local.write_bytes(noise(3_000_000, 1000))
        mount.flush()
        line.freeze()
        readers = [Reader(path, direct=direct) for path in cold]
        # Those that are too many are told so, and only those.
        wait_for(lambda: sum(reader.is_alive() for reader in readers) <= 80, 30)
        for number in range(3):
            forget_pages(local)
            assert local.read_bytes() == noise(3_000_000, 1000)
            assert len(os.listdir(mount.path)) == 151 + number
            assert cold[number].stat().st_size == FILE_BYTES
            (mount.path / f"new-{number}").write_bytes(noise(FILE_BYTES, 2000 + number))
            os.rename(mount.path / f"new-{number}", mount.path / f"renamed-{number}")
        waiting = [reader for reader in readers if reader.is_alive()]
        assert len(waiting) >= 64
        assert all(
            reader.error is not None and reader.error.errno == errno.EIO
            for reader in readers
            if reader not in waiting
        )
        line.heal()
        for reader in readers:
            reader.join(60)
        for number, reader in enumerate(readers):
            if reader in waiting:
                assert reader.content == noise(FILE_BYTES, number)
            else:
                assert cold[number].read_bytes() == noise(FILE_BYTES, number)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_waits_longer_than_the_limit_and_once_it_is_known_nobody_waits(
    line: Proxy, server: Sshd, tmp_path: Path, transport: str
) -> None:
    limit_seconds = 3
    with mounted_over(
        line, server, tmp_path, FUSE, timeout=str(limit_seconds), transport=transport
    ) as mount:
        cold = cold_files(mount, 31)
        line.freeze()
        began = time.monotonic()
        readers = [Reader(path) for path in cold[:30]]
        for reader in readers:
            reader.join(60)
        # The read itself, what the kernel makes of its failure, and a busy machine.
        assert time.monotonic() - began < 3 * limit_seconds
        assert {reader.error and reader.error.errno for reader in readers} == {errno.EIO}
        assert state(mount) == "offline"
        began = time.monotonic()
        with pytest.raises(OSError, match="Input/output"):
            cold[30].read_bytes()
        assert time.monotonic() - began < limit_seconds, "it is known by now"
        (mount.path / "new").write_bytes(noise(FILE_BYTES, 99))
        line.heal()
        wait_for(lambda: state(mount) == "online", 30)
        assert [path.read_bytes() for path in cold] == [noise(FILE_BYTES, n) for n in range(31)]
        mount.flush()


# Who is killed

READ = "import sys; open(sys.argv[1], 'rb').read()"
READ_DIRECTLY = """if True:
    import mmap, os, sys
    os.readv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)])
"""
WRITE_INTO = """if True:
    import os, sys
    file = os.open(sys.argv[1], os.O_RDWR)
    for place in (5000, 15000):
        os.pwrite(file, b"x" * 10, place)
"""
WRITE_MUCH = """if True:
    import os, sys, time
    file = os.open(sys.argv[1], os.O_RDWR)
    os.pwrite(file, bytes(range(100)) * 100, 5000)
    time.sleep(100)
"""
TRUNCATE = "import os, sys; os.truncate(sys.argv[1], 5000)"


@pytest.mark.parametrize("fuse", BINDINGS)
def test_a_signal_that_ends_a_program_ends_its_wait(
    line: Proxy, server: Sshd, tmp_path: Path, fuse: str
) -> None:
    with mounted_over(line, server, tmp_path, fuse, timeout="120") as mount:
        linked, *cold = cold_files(mount, 7)
        os.link(linked, mount.path / "linked")
        line.freeze()
        programs = [
            (READ, cold[0], signal.SIGKILL),
            (READ, cold[1], signal.SIGTERM),
            (READ, linked, signal.SIGTERM),
            (READ_DIRECTLY, cold[2], signal.SIGKILL),
            (WRITE_INTO, cold[3], signal.SIGTERM),
            (TRUNCATE, cold[4], signal.SIGKILL),
            # Not in this call, but when it has ended, and its file is closed.
            (WRITE_MUCH, cold[5], signal.SIGTERM),
        ]
        processes = [
            subprocess.Popen([sys.executable, "-c", text, path]) for text, path, _ in programs
        ]
        try:
            for process, (_, path, _) in zip(processes, programs, strict=True):
                wait_for(lambda process=process, path=path: waits_for(process, path))  # type: ignore[misc]
            for process, (_, _, number) in zip(processes, programs, strict=True):
                process.send_signal(number)
            ended = [process.wait(20) for process in processes]
        finally:
            for process in processes:
                process.kill()
            line.heal()
            for process in processes:
                process.wait()
        assert ended == [-number for _, _, number in programs]
        # What was given up is whole.
        assert linked.read_bytes() == noise(FILE_BYTES, 0)
        assert cold[4].read_bytes() in (noise(FILE_BYTES, 5), noise(FILE_BYTES, 5)[:5000])
        former = noise(FILE_BYTES, 6)
        written = former[:5000] + bytes(range(100)) * 100 + former[15000:]
        # Under the writeback cache the kernel reads a page before it is written into.
        assert cold[5].read_bytes() in ((written,) if fuse == "2" else (former, written))


@pytest.mark.parametrize("fuse", BINDINGS)
def test_a_signal_ends_the_wait_for_a_writer_that_waits(
    line: Proxy, server: Sshd, tmp_path: Path, fuse: str
) -> None:
    """But for calls that the kernel itself keeps back: two writes by the same name, for one."""
    with mounted_over(line, server, tmp_path, fuse, timeout="120") as mount:
        cold, linked = cold_files(mount, 2, 1_500_000)
        other = mount.path / "other"
        os.link(linked, other)
        line.freeze()
        programs = [
            (WRITE_INTO, cold, None),
            (READ, cold, signal.SIGTERM),
            (WRITE_INTO, linked, None),
            (WRITE_INTO, other, signal.SIGTERM),
            (READ_DIRECTLY, other, signal.SIGKILL),
        ]
        processes = []
        try:
            for text, path, _ in programs:
                processes.append(subprocess.Popen([sys.executable, "-c", text, path]))
                wait_for(lambda process=processes[-1], path=path: waits_for(process, path))  # type: ignore[misc]
            killed = [
                (process, number)
                for process, (_, _, number) in zip(processes, programs, strict=True)
                if number
            ]
            for process, number in killed:
                process.send_signal(number)
            assert [process.wait(20) for process, _ in killed] == [-number for _, number in killed]
            assert processes[0].poll() is None and processes[2].poll() is None
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            line.heal()
            ended = [process.wait(60) for process in processes]
        assert (ended[0], ended[2]) == (0, 0)
        for number, path in enumerate([cold, linked]):
            expected = bytearray(noise(1_500_000, number))
            expected[5000:5010] = expected[15000:15010] = b"x" * 10
            assert path.read_bytes() == expected
        assert other.read_bytes() == linked.read_bytes()


@pytest.mark.parametrize("fuse", BINDINGS)
def test_who_waits_for_a_block_keeps_nothing_else_from_becoming_power_safe(
    line: Proxy, server: Sshd, tmp_path: Path, fuse: str
) -> None:
    """The round writes its local segment file when all else is on the disk."""
    with mounted_over(line, server, tmp_path, fuse, timeout="120", epoch="1") as mount:
        (cold,) = cold_files(mount, 1, 1_500_000)
        newest = newest_segment(mount)
        line.freeze()
        with subprocess.Popen([sys.executable, "-c", WRITE_INTO, cold]) as writer:
            try:
                wait_for(lambda: waits_for(writer, cold))
                (mount.path / "other").write_bytes(noise(FILE_BYTES, 1))
                wait_for(lambda: newest_segment(mount) > newest, 20)
                assert writer.poll() is None
            finally:
                line.heal()
            assert writer.wait(60) == 0


def newest_segment(mount: Mount) -> str:
    """The newest epoch of which there is a local segment file."""
    names = [path.name for path in (mount.data / "segments").iterdir()]
    return max((name.split("-")[1] for name in names if "-" in name), default="")


def waits_for(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Whether a program is in a call about a file, as long as it takes to be sure."""
    assert process.poll() is None
    before = Path(f"/proc/{process.pid}/schedstat").read_text()
    time.sleep(0.3)
    # A program that runs uses the processor.
    return before == Path(f"/proc/{process.pid}/schedstat").read_text()


def test_a_harmless_signal_ends_no_wait(line: Proxy, server: Sshd, tmp_path: Path) -> None:
    program = """if True:
        import mmap, os, signal, sys
        signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
        page = mmap.mmap(-1, 4096)
        file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
        print("reads", flush=True)
        print(os.preadv(file, [page], 0), flush=True)
    """
    with mounted_over(line, server, tmp_path, FUSE, timeout="120") as mount:
        (path,) = cold_files(mount, 1)
        line.freeze()
        with subprocess.Popen(
            [sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "reads\n"
                wait_for(lambda: waits_for(process, path))
                process.send_signal(signal.SIGUSR1)
                wait_for(lambda: waits_for(process, path))
            finally:
                line.heal()
            assert sorted(process.stdout.read().split()) == ["4096", "signal"]


# The line


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_line_that_is_cut_in_mid_transfer_loses_nothing(
    line: Proxy, server: Sshd, tmp_path: Path, transport: str
) -> None:
    with mounted_over(line, server, tmp_path, FUSE, transport=transport, timeout="20") as mount:
        for number in range(2):
            line.cut_after(700_000 * (number + 1))
            folder = mount.path / f"{number}"
            folder.mkdir()
            for place in range(2):
                (folder / f"{place}").write_bytes(noise(1_300_000, 10 * number + place))
            os.rename(folder / "0", mount.path / f"moved-{number}")
            wait_for(line.is_cut, 60)
        mount.evict()
        for number in range(2):
            line.cut_after(500_000)
            path = mount.path / f"moved-{number}"
            forget_pages(path)
            content = None
            while content is None:
                # One whose read was cut off may be told so; the next one is served.
                with contextlib.suppress(OSError):
                    content = path.read_bytes()
            assert content == noise(1_300_000, 10 * number)
            wait_for(line.is_cut, 60)
        line.heal()
        check_clone(mount, tmp_path)


def test_a_line_that_loses_all_answers_is_noticed_and_replaced(
    line: Proxy, server: Sshd, tmp_path: Path
) -> None:
    with mounted_over(line, server, tmp_path, FUSE, timeout="2") as mount:
        (mount.path / "before").write_bytes(noise(FILE_BYTES, 1))
        mount.flush()
        line.lose_answers()
        (mount.path / "meanwhile").write_bytes(noise(FILE_BYTES, 2))
        wait_for(lambda: state(mount) == "offline", 30)
        line.heal()
        wait_for(lambda: state(mount) == "online", 30)
        check_clone(mount, tmp_path)


@pytest.mark.torture
def test_a_long_way_is_no_fault(line: Proxy, server: Sshd, tmp_path: Path) -> None:
    with mounted_over(line, server, tmp_path, FUSE, timeout="5") as mount:
        line.delay(0.1)
        cold = cold_files(mount, 3)
        assert [path.read_bytes() for path in cold] == [noise(FILE_BYTES, n) for n in range(3)]
        assert "made no progress" not in mount.log


@pytest.mark.slow(35)
def test_at_1_kb_per_second_everything_arrives(line: Proxy, server: Sshd, tmp_path: Path) -> None:
    # The limit is shorter than any of the transfers takes.
    with mounted_over(line, server, tmp_path, FUSE, timeout="10", connections="1") as mount:
        (cold,) = cold_files(mount, 1, 34_000)
        # What is known of the line belongs to a process.
        mount.remount()
        wait_for(lambda: mount.status()["writer"] != "")
        line.throttle(1000)
        (mount.path / "up").write_bytes(noise(34_000, 7))
        assert cold.read_bytes() == noise(34_000, 0)
        mount.flush()
        assert "no progress" not in mount.log
        line.heal()
        check_clone(mount, tmp_path)


# The server


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_while_the_server_is_gone_work_goes_on_and_resumes(
    line: Proxy, server: Sshd, tmp_path: Path, transport: str
) -> None:
    with mounted_over(line, server, tmp_path, FUSE, timeout="3", transport=transport) as mount:
        for number in range(3):
            (mount.path / f"before-{number}").write_bytes(noise(FILE_BYTES, number))
            server.stop()
            (mount.path / f"meanwhile-{number}").write_bytes(noise(FILE_BYTES, 10 + number))
            wait_for(lambda: state(mount) == "offline", 30)
            os.rename(mount.path / f"before-{number}", mount.path / f"renamed-{number}")
            assert (mount.path / f"renamed-{number}").read_bytes() == noise(FILE_BYTES, number)
            server.start()
            wait_for(lambda: state(mount) == "online", 30)
        check_clone(mount, tmp_path)


def test_when_the_limit_is_full_of_what_can_not_be_uploaded_writing_fails_and_resumes(
    line: Proxy, server: Sshd, tmp_path: Path
) -> None:
    with mounted_over(
        line, server, tmp_path, FUSE, limit="64", expects_warnings=True, timeout="2"
    ) as mount:
        mount.flush()
        line.freeze()
        written = 0
        while error_of_writing(mount.path / f"{written}", noise(1 << 20, written)) is None:
            written += 1
            assert written < 80
        assert error_of_writing(mount.path / f"{written}", b"x" * 100_000) == errno.ENOSPC
        assert written > 40, "writing goes on until the limit"
        assert mount.block_bytes() <= 64_000_000
        assert len(os.listdir(mount.path)) >= written
        line.heal()
        wait_for(lambda: state(mount) == "online", 30)
        for number in range(written, 80):
            (mount.path / f"{number}").write_bytes(noise(1 << 20, number))
        mount.flush()
        for number in range(80):
            assert (mount.path / f"{number}").read_bytes() == noise(1 << 20, number)


def error_of_writing(path: Path, content: bytes) -> int | None:
    try:
        path.write_bytes(content)
    except OSError as error:
        return error.errno
    return None


def test_a_laptop_that_slept_goes_on(line: Proxy, server: Sshd, tmp_path: Path) -> None:
    with mounted_over(line, server, tmp_path, FUSE, timeout="3") as mount:
        (mount.path / "before").write_bytes(noise(3_000_000, 1))
        processes = [mount.pid, *children_of(mount.pid)]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            # Routers and servers forget those who say nothing for so long.
            line.cut()
            time.sleep(4)
        finally:
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        (mount.path / "after").write_bytes(noise(FILE_BYTES, 2))
        wait_for(lambda: mount.status()["safe"], 30)
        check_clone(mount, tmp_path)
