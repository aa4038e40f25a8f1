"""The exerciser on each binding, with uploads, evictions and remounts under way; and itself."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.process.control import call
from syncer.process.folder import DataFolder
from tests.exerciser import MismatchError, Place, exerciser
from tests.mounted import BINDINGS, Mount, mounted
from tests.sshd import HOST, Sshd

VARIANTS = [*BINDINGS, *(["3 exact"] if "3" in BINDINGS else [])]
OPERATIONS = 6000
#: Of all variants together.
TORTURE_OPERATIONS = 1_000_000
#: Then a fresh collection: nothing is ever removed from a server.
ROUND_OPERATIONS = 20_000


def place_on(mount: Mount) -> Place:
    """The exerciser's view of a mount, with what docs/posix.md says of hard links."""
    socket = DataFolder(mount.data).socket
    is_exact = "writeback = off" in (mount.data / "config").read_text()

    def evict() -> None:
        call(socket, "flush", {"timeout_seconds": 120})
        call(socket, "evict", {"paths": None})

    folder = mount.path / "work"
    folder.mkdir()
    return Place(
        folder,
        has_ranges=mount.fuse == "3",
        links_are_one=False,
        copies_linked=mount.fuse == "3",
        joins_links=False,
        shows_linked_size=mount.fuse == "2" or is_exact,
        keeps_grown_pages=mount.fuse == "3" and not is_exact,
        drop_caches=evict,
        remount=mount.remount,
    )


@contextlib.contextmanager
def mounted_variant(folder: Path, variant: str) -> Iterator[Mount]:
    """libfuse 3 works with a server over SSH, the others with a folder."""
    settings = {"writeback": "off" if variant == "3 exact" else "on"}
    with contextlib.ExitStack() as stack:
        remote, env = "", {}
        if variant == "3":
            server = stack.enter_context(Sshd())
            remote, env = f"{HOST}:{folder}/remote", {"SYNCER_SSH_CONFIG": str(server.config)}
        yield stack.enter_context(
            mounted(folder, variant[0], limit="64", remote=remote, settings=settings, env=env)
        )


def exercise(folder: Path, variant: str, seed: int, operations: int) -> None:
    """A round on a fresh collection. Its failure names the seed, with which it comes again."""
    folder.mkdir()
    with mounted_variant(folder, variant) as mount, exerciser(place_on(mount), seed) as run:
        run.run(operations)
        run.check_anew()


@pytest.mark.fuse
@pytest.mark.slow(18)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_is_what_was_written_last(variant: str, tmp_path: Path) -> None:
    # Always the same, so that a change is judged by the operations that the one before was.
    exercise(tmp_path / "round", variant, 1, OPERATIONS)


@pytest.mark.fuse
@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_million_operations_lose_and_mix_nothing(variant: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 31)
    for number in range(TORTURE_OPERATIONS // len(VARIANTS) // ROUND_OPERATIONS + 1):
        print(f"seed {seed + number}")
        exercise(tmp_path / f"{number}", variant, seed + number, ROUND_OPERATIONS)
        # All rounds together would take some ten gigabytes.
        shutil.rmtree(tmp_path / f"{number}")


# The exerciser itself


def test_the_exerciser_is_right_about_the_native_file_system(tmp_path: Path) -> None:
    with exerciser(Place(tmp_path, has_direct=False), seed=5) as run:
        run.run(2000)


def test_a_wrong_byte_is_noticed_and_told(tmp_path: Path) -> None:
    with exerciser(Place(tmp_path, has_direct=False), seed=5) as run:
        run.run(300)
        path = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(1234)
            byte = file.read(1)
            file.seek(1234)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(MismatchError, match=r"wrong at offset 1234 \(0x4d2\)[^ ]* expected"):
            run.check_all()


def test_a_run_goes_on_in_the_middle_as_if_it_had_come_from_the_beginning(tmp_path: Path) -> None:
    found = []
    for begin in (0, 700):
        folder = tmp_path / f"{begin}"
        folder.mkdir()
        with exerciser(Place(folder, has_direct=False), seed=8, begin=begin) as run:
            run.run(1000)
        found.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert found[0] == found[1]
    assert any(found[0].values())
