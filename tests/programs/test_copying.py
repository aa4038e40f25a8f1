"""Programs that copy trees with all that belongs to them, into the mount and out of it."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import contents
from tests.programs.conftest import Place, run, shell
from tests.programs.trees import described, make_tree

pytestmark = [pytest.mark.fuse, pytest.mark.slow(4)]

RSYNC = ("rsync", "-aHX", "--numeric-ids")
TAR = ("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner")


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where there is no such program."""
    return pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed")


@needs("rsync")
def test_rsync_copies_all_and_finds_nothing_to_do_the_second_time(each: Place) -> None:
    """Into the mount, into another folder of it, and out of it again, over a remount."""
    source, there = each.native / "source", each.path / "there"
    also_there, back = each.path / "also there", each.native / "back"
    make_tree(source)
    ways = [(source, there), (there, also_there), (also_there, back)]
    for start, end in ways:
        run(*RSYNC, f"{start}/", f"{end}/", cwd=each.native)
        assert described(end) == described(source)
    each.mount.remount()
    for start, end in ways:
        said = run(*RSYNC, "--itemize-changes", "--stats", f"{start}/", f"{end}/", cwd=each.native)
        changes, _, statistics = said.partition("Number of files:")
        assert changes.strip() == ""
        assert re.search(r"files transferred: 0$", statistics, re.MULTILINE)
        assert re.search(r"Literal data: 0 bytes$", statistics, re.MULTILINE)
    # By contents, and the other way round: nothing to copy or to delete.
    words = ("--checksum", "--delete", "--itemize-changes", f"{back}/", f"{there}/")
    assert run(*RSYNC, *words, cwd=each.native) == ""


@needs("rsync")
def test_rsync_writes_into_what_is_there_and_deletes_what_is_not(each: Place) -> None:
    source, there = each.native / "source", each.path / "there"
    make_tree(source)
    run(*RSYNC, f"{source}/", f"{there}/", cwd=each.native)
    with open(source / "large", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    shutil.rmtree(source / "folder 0")
    (source / "folder 3/below/3").rename(source / "moved")
    words = ("--inplace", "--no-whole-file", "--delete", "--stats")
    said = run(*RSYNC, *words, f"{source}/", f"{there}/", cwd=each.native)
    assert contents(there) == contents(source)
    literal = re.search(r"Literal data: ([\d,]+) bytes", said)
    assert literal is not None
    assert int(literal[1].replace(",", "")) < 100_000, "all was written anew"


Way = Callable[[Path, Path, Path], None]
"""Copies a folder to another one, if need be by an archive."""


def _by_tar(source: Path, target: Path, archive: Path) -> None:
    run(*TAR, "-S", "-cf", archive, "-C", source, ".", cwd=archive.parent)
    target.mkdir()
    run(*TAR, "-S", "-xpf", archive, "-C", target, cwd=archive.parent)


def _by_tar_through_a_pipe(source: Path, target: Path, archive: Path) -> None:
    target.mkdir()
    tar = " ".join(f"'{word}'" for word in TAR)
    shell(f"{tar} -C '{source}' -cf - . | {tar} -C '{target}' -xpf -", archive.parent)


def _by_cp(source: Path, target: Path, archive: Path) -> None:
    run("cp", "-a", "--sparse=always", source, target, cwd=archive.parent)


def _by_cp_sharing(source: Path, target: Path, archive: Path) -> None:
    run("cp", "-a", "--reflink=auto", source, target, cwd=archive.parent)


@pytest.mark.parametrize(
    ("inwards", "within", "outwards"),
    [(_by_tar, _by_cp_sharing, _by_cp), (_by_cp, _by_tar_through_a_pipe, _by_tar)],
)
def test_trees_are_copied_with_all_that_belongs_to_them(
    each: Place, inwards: Way, within: Way, outwards: Way
) -> None:
    source, there = each.native / "source", each.path / "there"
    also_there, back = each.path / "also there", each.native / "back"
    make_tree(source)
    want = described(source)
    for way, start, end in (
        (inwards, source, there),
        (within, there, also_there),
        (outwards, also_there, back),
    ):
        way(start, end, end.parent / "archive")
        assert described(end) == want
        # Its middle and its end are holes, here by the MiB.
        assert (end / "sparse").stat().st_blocks * 512 <= 2 << 20
    each.mount.remount()
    assert described(also_there) == want


@needs("setfacl")
def test_programs_are_told_that_there_are_no_acls(each: Place) -> None:
    """cp and tar copy the rest; cp says what it could not."""
    (each.native / "file").write_bytes(b"content")
    run("setfacl", "-m", "u:1234:rw", "file", cwd=each.native)
    said = shell(f"! cp -a '{each.native}/file' copy 2>&1", each.path)
    assert "Operation not supported" in said
    assert (each.path / "copy").read_bytes() == b"content"
    shell(f"tar --acls -C '{each.native}' -cf - file | tar --acls -xf -", each.path)
    assert (each.path / "file").read_bytes() == b"content"
    assert shell("getfacl -cp file 2>/dev/null", each.path).split()[0] == "user::rw-"


def test_a_zip_archive_is_made_and_unpacked(each: Place) -> None:
    make_tree(each.native / "source")
    (each.native / "source/fifo").unlink()
    with zipfile.ZipFile(each.path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(each.native / "source/large", "large")
        archive.write(each.native / "source/sparse", "folder/sparse")
    with zipfile.ZipFile(each.path / "archive", "a") as archive:
        archive.writestr("added", b"later")
    with zipfile.ZipFile(each.path / "archive") as archive:
        assert archive.testzip() is None
        archive.extractall(each.path / "there")
    for name, source in (("large", "large"), ("folder/sparse", "sparse")):
        content = (each.native / "source" / source).read_bytes()
        assert (each.path / "there" / name).read_bytes() == content
    assert (each.path / "there/added").read_bytes() == b"later"
