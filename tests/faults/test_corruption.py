"""Damaged copies on either side of a real mount: never wrong bytes to a reader.

Each side heals from the other, and what is good nowhere is EIO, with the file named.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer import codec
from syncer.codec import BLOCK_BYTES
from syncer.metadata.db import Database
from tests.damage import HARM, noise
from tests.mounted import BINDINGS, CommandError, Mount, mounted

pytestmark = [pytest.mark.fuse, pytest.mark.expects_warnings]

_SIZES = {name: 90_000 + 10_000 * number for number, name in enumerate(HARM)}
#: A file for each kind of harm, and one that is left alone; each a block, one more than a block.
CONTENTS = {
    **{name: noise(number, _SIZES[name]) for number, name in enumerate(HARM)},
    "large": noise(50, BLOCK_BYTES + 70_000),
    "sound": noise(51, 150_000),
}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path, BINDINGS[-1], expects_warnings=True) as mount:
        (mount.path / "album").mkdir()
        for name, content in CONTENTS.items():
            (mount.path / "album" / name).write_bytes(content)
        yield mount


class _Ids:
    """Which block files and objects belong to which file."""

    def __init__(self, mount: Mount) -> None:
        db = Database(mount.data / "metadata.db", read_only=True)
        try:
            seed = db.get_meta("seed")
        finally:
            db.close()
        self._mount = mount
        self._ids = {
            name: [
                codec.block_id(content[start : start + BLOCK_BYTES], seed).hex()
                for start in range(0, len(content), BLOCK_BYTES)
            ]
            for name, content in CONTENTS.items()
        }

    def local(self, name: str) -> Path:
        block = self._ids[name][-1]
        return self._mount.data / "blocks" / block[:2] / block

    def stored(self, name: str) -> Path:
        block = self._ids[name][-1]
        return Path(self._mount.remote) / "blocks" / block[:2] / block


def _read(mount: Mount, name: str) -> bytes:
    """From the mounted process, not from the kernel's memory."""
    path = mount.path / "album" / name
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return path.read_bytes()


def _harmed() -> list[str]:
    return [*HARM, "large"]


def _harm(path: Path, name: str) -> None:
    HARM["truncated" if name == "large" else name](path)


def _fsck(mount: Mount, *words: str) -> int:
    try:
        mount.run("fsck", *words, mount.data)
    except CommandError as error:
        return error.status
    return 0


@pytest.mark.parametrize("when", ["mounted", "unmounted"])
def test_local_copies_heal_from_the_server(mount: Mount, when: str) -> None:
    mount.flush()
    ids = _Ids(mount)
    # By now this process has verified each file, and trusts it.
    assert all(_read(mount, name) == content for name, content in CONTENTS.items())
    if when == "unmounted":
        mount.umount()
    for name in _harmed():
        _harm(ids.local(name), name)
    if when == "unmounted":
        mount.mount()
    for name, content in CONTENTS.items():
        assert _read(mount, name) == content, name
    assert mount.status()["unreadable_files"] == []
    assert _fsck(mount, "--remote", "--read-data") == 0


def test_what_is_bad_on_the_server_and_gone_here_is_an_error_that_names_the_file(
    mount: Mount,
) -> None:
    mount.flush()
    ids = _Ids(mount)
    kept = {name: ids.local(name).read_bytes() for name in _harmed()}
    mount.evict()
    mount.remount()
    for name in _harmed():
        _harm(ids.stored(name), name)
    for name in _harmed():
        with pytest.raises(OSError) as caught:
            _read(mount, name)
        assert caught.value.errno == errno.EIO
    assert _read(mount, "sound") == CONTENTS["sound"]
    named = mount.status()["unreadable_files"]
    assert named == sorted(f"/album/{name}" for name in _harmed())
    assert "/album/flipped: no good copy" in mount.run("status", mount.data)
    for name in _harmed():
        assert f"/album/{name}" in mount.log
    assert _fsck(mount, "--remote", "--read-data") == 17
    # A good copy turns up, as from a backup of the blocks: the server heals from it.
    mount.umount()
    for name, content in kept.items():
        ids.local(name).write_bytes(content)
    assert _fsck(mount, "--remote", "--read-data", "--repair") == 18
    assert _fsck(mount, "--remote", "--read-data") == 0
    mount.mount()
    mount.evict()
    assert all(_read(mount, name) == content for name, content in CONTENTS.items())


def test_the_server_heals_from_local_copies(mount: Mount) -> None:
    mount.flush()
    ids = _Ids(mount)
    for name in _harmed():
        _harm(ids.stored(name), name)
    assert _fsck(mount, "--remote", "--read-data") == 17
    assert _fsck(mount, "--remote", "--read-data", "--repair") == 18
    assert _fsck(mount, "--remote", "--read-data") == 0
    mount.evict()
    mount.remount()
    assert all(_read(mount, name) == content for name, content in CONTENTS.items())


def test_what_the_server_never_had_is_an_error_and_can_be_written_again(mount: Mount) -> None:
    mount.flush()
    away = Path(mount.remote).with_name("away")
    Path(mount.remote).rename(away)
    (mount.path / "album/only").write_bytes(noise(99, 120_000))
    mount.umount()
    dirty = [
        path for path in (mount.data / "blocks").glob("??/*") if path.stat().st_size == 120_000
    ]
    (block,) = [path for path in dirty if path.read_bytes() == noise(99, 120_000)]
    HARM["flipped"](block)
    away.rename(mount.remote)
    mount.mount()
    with pytest.raises(OSError) as caught:
        _read(mount, "only")
    assert caught.value.errno == errno.EIO
    assert "/album/only" in mount.status()["unreadable_files"]
    assert "/album/only" in mount.log
    (mount.path / "album/again").write_bytes(noise(99, 120_000))
    assert _read(mount, "only") == noise(99, 120_000)
    mount.flush()
    assert mount.status()["unreadable_files"] == []
    assert _fsck(mount, "--remote", "--read-data") == 0
