"""The commands about the past, over real mounts."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.process.folder import DataFolder
from tests.mounted import BINDINGS, CommandError, Mount, mounted, syncer

pytestmark = pytest.mark.fuse

BIG = os.urandom(1_500_000)


@pytest.fixture
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    """With the newest libfuse; a test may ask for others by `on_both`."""
    with mounted(tmp_path, getattr(request, "param", BINDINGS[-1])) as mount:
        yield mount


#: What goes through the kernel's caches is tested with each libfuse.
on_both = pytest.mark.parametrize("mount", BINDINGS, indirect=True)


def tree_of(top: Path) -> dict[str, tuple[object, ...]]:
    """What is below a folder: path -> attributes and content."""
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = (path.read_bytes(), status.st_mtime_ns, status.st_nlink)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        found[str(path.relative_to(top))] = (status.st_mode, status.st_uid, content, xattrs)
    return found


def fill(top: Path) -> None:
    (top / "below").mkdir(parents=True)
    (top / "below" / "big").write_bytes(BIG)
    (top / "tiny").write_bytes(b"tiny")
    (top / "sparse").write_bytes(b"")
    os.truncate(top / "sparse", 400 << 20)
    os.setxattr(top / "tiny", "user.comment", b"kept")
    # The kernel may tell the time of a large write only after a few ms: see docs/posix.md.
    os.utime(top / "below" / "big", ns=(10**18, 10**18 + 5))
    os.utime(top / "tiny", ns=(10**18, 10**18 + 7))
    os.chmod(top / "below" / "big", 0o600)
    os.symlink("tiny", top / "link")
    os.link(top / "tiny", top / "below" / "twin")
    os.mkfifo(top / "fifo")
    os.utime(top / "below", ns=(10**18, 10**18 + 9))


def test_a_snapshot_is_listed_and_its_name_is_taken_once(mount: Mount) -> None:
    (mount.path / "a").write_bytes(b"1")
    assert mount.run("snapshots", mount.path) == ""
    mount.run("snapshot", mount.path, "first one")
    mount.run("snapshot", mount.data, "second")
    lines = mount.run("snapshots", mount.path).splitlines()
    assert [line.split(None, 5)[1:] for line in lines] == [
        ["1", "files", "0", "B", "first one"],
        ["1", "files", "0", "B", "second"],
    ]
    assert os.listxattr(mount.path) == []
    for name, status in (("second", 16), ("yesterday", 2), ("a/b", 2), (".hidden", 2), ("7", 2)):
        with pytest.raises(CommandError) as error:
            mount.run("snapshot", mount.path, name)
        assert error.value.status == status


def test_a_clone_has_the_snapshots(mount: Mount, tmp_path: Path) -> None:
    (mount.path / "a").write_bytes(b"1")
    mount.run("snapshot", mount.path, "kept")
    os.unlink(mount.path / "a")
    mount.umount()
    syncer("flush", mount.data)
    before = syncer("snapshots", mount.data)
    syncer("clone", tmp_path / "clone", mount.remote)
    assert syncer("snapshots", tmp_path / "clone") == before
    assert syncer("diff", tmp_path / "clone", "kept") == "- /a\n"
    with pytest.raises(CommandError) as error:
        syncer("snapshot", tmp_path / "clone", "not here")
    assert error.value.status == 7


@on_both
def test_a_removed_tree_comes_back_without_blocks(mount: Mount) -> None:
    top = mount.path / "top"
    fill(top)
    mount.flush()
    before = tree_of(top)
    mount.run("snapshot", mount.path, "before")
    mount.run("evict", "--all", mount.path)
    mount.run("fetch", top / "tiny")
    fetched = mount.status()["fetched_blocks"]
    assert not (mount.path / "gone").exists()
    for path in sorted(top.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    top.rmdir()
    assert not top.exists()
    mount.run("restore", top, "--at", "before")
    status = mount.status()
    assert (status["dirty_blocks"], status["fetched_blocks"]) == (0, fetched)
    assert sorted(os.listdir(mount.path)) == ["top"]
    assert tree_of(top) == before
    assert (top / "below").stat().st_mtime_ns == 10**18 + 9
    assert (top / "tiny").stat().st_ino == (top / "below" / "twin").stat().st_ino


@on_both
def test_a_file_goes_back_and_its_newer_version_stays_in_history(mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(b"old")
    mount.run("snapshot", mount.path, "old")
    file.write_bytes(BIG)
    mount.run("restore", file, "--at", "old")
    assert file.read_bytes() == b"old"
    assert mount.run("diff", mount.path, "old") == ""
    versions = mount.run("versions", file).splitlines()
    moment = versions[-2].split()[0]
    mount.run("restore", file, "--at", moment, "--to", mount.path / "newer")
    assert (mount.path / "newer").read_bytes() == BIG
    sizes = [" ".join(line.split()[1:3]) for line in versions]
    # An epoch may have ended while the file was empty, or had its first block only.
    assert [size for size in sizes if size not in ("0 B", "1.0 MB")] == ["3 B", "1.5 MB", "3 B"]
    with pytest.raises(CommandError) as error:
        mount.run("restore", file, "--at", "old", "--to", mount.path / "newer")
    assert error.value.status == 16
    assert (mount.path / "newer").read_bytes() == BIG


@on_both
def test_a_folder_goes_back_as_a_whole(mount: Mount) -> None:
    top = mount.path / "top"
    fill(top)
    before = tree_of(top)
    mount.run("snapshot", mount.path, "before")
    (top / "tiny").write_bytes(b"another")
    (top / "new").write_bytes(b"new")
    os.unlink(top / "fifo")
    mount.run("pin", top)
    mount.run("restore", top, "--at", "before")
    assert tree_of(top) == before
    assert sorted(os.listdir(mount.path)) == ["top"]
    assert mount.run("pins", mount.path).splitlines()[0].split()[-1] == "/top"


def test_differences_are_told_by_kind(mount: Mount) -> None:
    top = mount.path / "top"
    fill(top)
    (top / "same").mkdir()
    mount.run("snapshot", mount.path, "before")
    (top / "below" / "big").write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    os.chmod(top / "fifo", 0o600)
    os.unlink(top / "link")
    (top / "new").mkdir()
    (top / "new" / "below").write_bytes(b"")
    os.setxattr(top / "same", "user.x", b"1")
    mount.run("snapshot", mount.path, "after")
    (top / "later").write_bytes(b"")
    expected = ["M below/big", "m fifo", "- link", "+ new/", "m same/"]
    lines = mount.run("diff", mount.path, "before", "after").splitlines()
    assert lines == [line.replace(" ", " /top/") for line in expected]
    assert "+ /top/later" in mount.run("diff", top, "before").splitlines()
    with pytest.raises(CommandError) as error:
        mount.run("diff", mount.path, "a year ago")
    assert error.value.status == 3


def test_what_was_removed_is_listed_with_a_moment_to_restore_it_from(mount: Mount) -> None:
    (mount.path / "folder").mkdir()
    for name in ("gone", "moved", "stays"):
        (mount.path / "folder" / name).write_bytes(name.encode())
    mount.run("snapshot", mount.path, "before")
    os.unlink(mount.path / "folder" / "gone")
    os.rename(mount.path / "folder" / "moved", mount.path / "elsewhere")
    lines = mount.run("deleted", mount.path).splitlines()
    assert [line.split()[-1] for line in lines] == ["/folder/gone"]
    assert mount.run("deleted", mount.data, "folder").splitlines() == lines
    moment = lines[0].split()[0]
    mount.run("restore", mount.path / "folder" / "gone", "--at", moment)
    assert (mount.path / "folder" / "gone").read_bytes() == b"gone"
    assert mount.run("deleted", mount.path) == ""


def test_the_past_of_a_folder_that_is_gone_can_be_asked_about(mount: Mount) -> None:
    folder = mount.path / "2024" / "sub"
    (folder / "deep").mkdir(parents=True)
    (folder / "1.txt").write_bytes(b"one")
    (folder / "deep" / "2.txt").write_bytes(b"two")
    mount.run("snapshot", mount.path, "before")
    shutil.rmtree(folder)
    lines = mount.run("deleted", mount.path, "2024/sub").splitlines()
    assert [line.split()[-1] for line in lines] == ["/2024/sub/1.txt", "/2024/sub/deep"]
    assert mount.run("deleted", mount.path, "2024/sub/deep").split()[-1] == "/2024/sub/deep/2.txt"
    assert "3 B" in mount.run("versions", folder / "1.txt")
    assert "3 B" in mount.run("versions", folder / "deep" / "2.txt")
    with pytest.raises(CommandError, match=r"/2024/sub does not exist now; restore that"):
        mount.run("restore", folder / "1.txt", "--at", "before")
    for words in (["deleted", mount.path, "never"], ["versions", folder / "never" / "x"]):
        with pytest.raises(CommandError, match="never was"):
            mount.run(*words)
    with pytest.raises(CommandError, match="is not a folder"):
        mount.run("deleted", mount.path, "2024/sub/1.txt")
    back = mount.path / "back"
    mount.run("restore", folder / "1.txt", "--at", "before", "--to", back)
    assert back.read_bytes() == b"one"


def test_versions_follow_a_renamed_file_and_a_replaced_name(mount: Mount) -> None:
    file = mount.path / "file"
    (mount.path / "draft").write_bytes(b"1")
    # The kernel tells the times of writes when it likes: see docs/posix.md.
    os.utime(mount.path / "draft", ns=(10**18, 10**18))
    mount.run("snapshot", mount.path, "one")
    os.rename(mount.path / "draft", file)
    mount.run("snapshot", mount.path, "two")
    (mount.path / "saved").write_bytes(b"333")
    os.utime(mount.path / "saved", ns=(10**18, 10**18))
    os.replace(mount.path / "saved", file)
    mount.run("snapshot", mount.path, "three")
    os.chmod(file, 0o600)
    lines = [line.split(None, 3)[1:] for line in mount.run("versions", file).splitlines()]
    assert lines[0] == ["1", "B", "name or xattrs"]
    assert lines[-1] == ["3", "B", "attributes"]
    assert ["3", "B", "made"] in lines or ["3", "B", "content"] in lines
    os.unlink(file)
    assert len(mount.run("versions", file).splitlines()) == len(lines)
    with pytest.raises(CommandError) as error:
        mount.run("versions", mount.path / "never")
    assert error.value.status == 3


def test_what_can_not_be_restored_is_told(mount: Mount, tmp_path: Path) -> None:
    (mount.path / "file").write_bytes(b"1")
    mount.run("snapshot", mount.path, "now-ish")
    cases = [
        (2, ["restore", mount.path, "--at", "now-ish"]),
        (2, ["restore", mount.path / "file", "--at", "some day"]),
        (3, ["restore", mount.path / "file", "--at", "1999-01-01"]),
        (3, ["restore", mount.path / "file", "--at", "1000000"]),
        (3, ["restore", mount.path / "never", "--at", "now-ish"]),
        (3, ["restore", mount.path / "file", "--at", "now-ish", "--to", mount.path / "a" / "b"]),
        (3, ["restore", mount.path / "file", "--at", "now-ish", "--to", tmp_path / "outside"]),
    ]
    for expected, words in cases:
        with pytest.raises(CommandError) as error:
            mount.run(*words)
        assert error.value.status == expected, words
    assert stat.S_ISREG((mount.path / "file").stat().st_mode)
    assert os.listdir(mount.path) == ["file"]


def test_the_past_can_be_asked_about_without_a_mount(mount: Mount, tmp_path: Path) -> None:
    (mount.path / "folder").mkdir()
    letter = mount.path / "folder" / "letter"
    letter.write_bytes(b"one")
    mount.run("snapshot", mount.path, "then")
    letter.write_bytes(b"and two")
    os.unlink(letter)
    asked = [("versions", "folder/letter"), ("deleted", "folder"), ("ls", "folder")]
    told = [mount.run(command, mount.path / path) for command, path in asked]
    assert len(told[0].splitlines()) == 1 and "letter" in told[1]
    mount.umount()
    assert [mount.run(command, mount.data / path) for command, path in asked] == told
    assert mount.run("diff", mount.data / "folder", "then").splitlines() == ["- /folder/letter"]
    with pytest.raises(CommandError, match="neither a data directory nor mounted"):
        mount.run("restore", letter, "--at", "then")
    mount.mount()
    # Where it is mounted, a path from the data directory on is as good.
    mount.run("restore", mount.data / "folder" / "letter", "--at", "then")
    assert letter.read_bytes() == b"one"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config").write_text("[core]")
    with pytest.raises(CommandError, match="neither a data directory nor mounted"):
        mount.run("versions", tmp_path / "elsewhere" / "file")


def test_a_folder_goes_back_where_nobody_has_it_mounted(mount: Mount) -> None:
    top = mount.path / "top"
    fill(top)
    before = tree_of(top)
    mount.run("pin", top)
    mount.run("snapshot", mount.path, "then")
    (top / "tiny").write_bytes(b"another")
    os.unlink(top / "link")
    (top / "new" / "below").mkdir(parents=True)
    (top / "new" / "below" / "file").write_bytes(BIG[:-1])
    data = mount.data
    mount.umount()
    with (
        DataFolder(data).lock(),
        pytest.raises(CommandError, match="another syncer command") as error,
    ):
        mount.run("restore", data / "top", "--at", "then")
    assert error.value.status == 12
    with pytest.raises(CommandError) as error:
        mount.run("restore", data / "top", "--at", "then", "--to", data / "top" / "tiny")
    assert error.value.status == 16
    mount.run("restore", data / "top", "--at", "then", "--to", data / "again")
    assert "restored" in mount.run("restore", data / "top", "--at", "then")
    assert mount.run("fsck", data, "--remote").startswith("No damage")
    assert mount.run("pins", data).splitlines()[0].split()[-1] == "/top"
    mount.mount()
    assert sorted(os.listdir(mount.path)) == ["again", "top"]
    assert tree_of(top) == tree_of(mount.path / "again") == before
    # What was replaced is in the history, at whatever moments there are.
    moments = sorted((mount.path / ".snapshots").iterdir())
    held = [(then / "top" / "new" / "below" / "file") for then in moments]
    assert BIG[:-1] in [file.read_bytes() for file in held if file.exists()]


@on_both
def test_what_is_open_stays_for_who_has_it_open_while_its_folder_goes_back(mount: Mount) -> None:
    folder = mount.path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_bytes(BIG)
    os.link(folder / "below" / "file", folder / "twin")
    os.setxattr(folder, "user.comment", b"of the folder")
    before = tree_of(folder)
    mount.run("snapshot", mount.path, "then")
    newer = os.urandom(100_000)
    (folder / "below" / "file").write_bytes(newer)
    (folder / "new").write_bytes(newer)
    os.removexattr(folder, "user.comment")
    with open(folder / "below" / "file", "rb") as reader, open(folder / "new", "r+b") as writer:
        mount.run("restore", folder, "--at", "then")
        assert reader.read() == newer
        writer.write(b"to nobody's harm")
        os.fsync(writer.fileno())
    restored = tree_of(folder)
    # Times of a large write may be told late: see docs/posix.md.
    assert {path: entry[:2] for path, entry in restored.items()} == {
        path: entry[:2] for path, entry in before.items()
    }
    assert os.getxattr(folder, "user.comment") == b"of the folder"
    assert os.path.samefile(folder / "twin", folder / "below" / "file")
    assert (folder / "twin").read_bytes() == BIG
    assert os.listdir(mount.path) == ["folder"]
