"""git, with this repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mounted import ROOT
from tests.programs.conftest import Place, run

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(not shutil.which("git"), reason="git is not installed"),
]


def git(*words: str | Path, cwd: Path) -> str:
    """Run git with no settings but these."""
    settings = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    person = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org"}
    committer = {"GIT_COMMITTER_NAME": "C", "GIT_COMMITTER_EMAIL": "c@example.org"}
    safe = ("-c", "safe.directory=*", "-c", "gc.auto=0")
    return run("git", *safe, *words, cwd=cwd, env={**settings, **person, **committer})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """This repository, or what its files would make as one where it is no repository of git's."""
    if (ROOT / ".git").exists():
        return ROOT
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "build"))
    git("init", "-q", cwd=source)
    git("add", ".", cwd=source)
    git("commit", "-qm", "All of it", cwd=source)
    return source


def test_git_clones_commits_packs_and_finds_everything_in_order(each: Place, source: Path) -> None:
    """clone, branch, commit, merge, repack, gc, fsck; and nothing has changed after a remount."""
    clone, bare = each.path / "clone", each.path / "bare.git"
    git("clone", "-q", "--no-local", source, clone, cwd=each.path)
    # The source may be on no branch, as where one commit of it is tested.
    git("checkout", "-q", "-B", "main", cwd=clone)
    git("clone", "-q", "--bare", "--no-hardlinks", clone, bare, cwd=each.path)
    git("checkout", "-q", "-b", "topic", cwd=clone)
    (clone / "new file").write_text("new\n")
    (clone / "setup.py").rename(clone / "moved.py")
    (clone / "Makefile").chmod(0o755)
    (clone / "link").symlink_to("moved.py")
    git("add", "-A", cwd=clone)
    git("commit", "-qm", "Change some", cwd=clone)
    git("checkout", "-q", "main", cwd=clone)
    assert (clone / "setup.py").exists()
    assert not (clone / "link").is_symlink()
    (clone / "other").write_text("other\n")
    git("add", "other", cwd=clone)
    git("commit", "-qm", "Add another", cwd=clone)
    git("merge", "-q", "--no-edit", "topic", cwd=clone)
    git("push", "-q", bare, "HEAD:merged", cwd=clone)
    git("repack", "-qad", cwd=clone)
    git("gc", "-q", "--prune=now", cwd=clone)
    each.mount.remount()
    assert git("status", "--porcelain", cwd=clone) == ""
    assert git("fsck", "--strict", "--no-dangling", cwd=clone) == ""
    assert git("fsck", "--strict", "--no-dangling", cwd=bare) == ""
    assert git("rev-parse", "merged", cwd=bare) == git("rev-parse", "HEAD", cwd=clone)
    # What is checked out is what the repository has: git looks at contents, not only at times.
    git("update-index", "-q", "--really-refresh", cwd=clone)
    assert git("diff", "--stat", "HEAD", cwd=clone) == ""
    assert (clone / "moved.py").read_bytes() == (clone / "link").read_bytes()


def test_git_status_trusts_times_and_numbers_after_a_remount(each: Place) -> None:
    """Else git would read every file again: it compares size, times to the ns, inode and owner."""
    git("init", "-q", cwd=each.path)
    for number in range(50):
        (each.path / f"{number}").write_text(f"{number}\n")
    git("add", ".", cwd=each.path)
    git("commit", "-qm", "Files", cwd=each.path)
    before = git("ls-files", "--debug", cwd=each.path)
    each.mount.remount()
    # It would write the index anew with what has changed.
    git("update-index", "-q", "--refresh", cwd=each.path)
    assert git("ls-files", "--debug", cwd=each.path) == before
