"""CPython's own tests of what it does with files, in a mount.

They are run twice, with their temporary files on the machine's own file system and in the mount.
What counts is that both runs agree, test by test: some tests are skipped for root, or fail on a
machine without this or that.
"""

from __future__ import annotations

import collections
import functools
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, Mount
from tests.programs.conftest import MountOf

pytestmark = pytest.mark.fuse

QUICK = (
    "test_fileio", "test_file", "test_posix", "test_glob", "test_mmap", "test_shelve", "test_stat",
    "test_largefile", "test_unicode_file",
)  # fmt: skip
"""What `make test` runs; together they take some seconds."""
ALL = (
    *QUICK, "test_bufio", "test_bz2", "test_compileall", "test_dbm", "test_dbm_dumb", "test_fcntl",
    "test_filecmp", "test_fileinput", "test_genericpath", "test_gzip", "test_import", "test_io",
    "test_lzma", "test_mailbox", "test_os", "test_pathlib", "test_posixpath", "test_shutil",
    "test_socket", "test_sqlite3", "test_tarfile", "test_tempfile", "test_threadedtempfile",
    "test_unicode_file_functions", "test_univnewlines", "test_zipfile", "test_zipimport",
)  # fmt: skip
PARTS = {"test_socket": "*Unix*"}
"""The tests of a module that have to do with files."""
RUN_SECONDS = 600.0
"""On libfuse 2 writing takes its time."""

Outcomes = dict[str, str]
"""By test: "passed", "skipped", "failure" or "error"."""


@functools.cache
def interpreter() -> str | None:
    """A Python that has its own tests. Debian has them in a package; others leave them out."""
    for python in (sys.executable, "/usr/bin/python3"):
        words = [python, "-c", "import test.libregrtest, test.test_os"]
        if shutil.which(python) and not subprocess.run(words, capture_output=True).returncode:
            return python
    return None


def outcomes(modules: tuple[str, ...], folder: Path, report: Path) -> Outcomes:
    """Run some modules of tests, with their temporary files in a folder of their own."""
    python = interpreter()
    if python is None:
        pytest.skip("no Python here has its own tests: on Debian they are in libpython3-testsuite")
    folder.mkdir()
    words = [python, "-m", "test", "-u", "largefile", "--junit-xml", str(report)]
    if parts := [PARTS[module] for module in modules if module in PARTS]:
        words += ["-m", *parts]
    done = subprocess.run(
        [*words, *modules],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=RUN_SECONDS,
        check=False,
    )
    assert report.exists(), (done.stdout, done.stderr)
    found = {"all files are removed": str("files was modified" not in done.stdout + done.stderr)}
    # Tests of one name are told apart by their order.
    seen: collections.Counter[str] = collections.Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        name = str(case.get("name"))
        seen[name] += 1
        kinds = [child.tag for child in case if child.tag in ("skipped", "failure", "error")]
        found[f"{name} #{seen[name]}"] = kinds[0] if kinds else "passed"
    shutil.rmtree(folder)
    return found


def differences(
    modules: tuple[str, ...], mount: Mount, native: Path
) -> dict[str, tuple[str | None, str | None]]:
    """The tests whose outcome in the mount is another one than elsewhere, with both."""
    expected = outcomes(modules, native / "t", native / "native.xml")
    found = outcomes(modules, mount.path / "t", native / "mounted.xml")
    assert list(expected.values()).count("passed") >= len(modules)
    return {
        name: (expected.get(name), found.get(name))
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    }


@pytest.fixture
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with as short a path as the mount's: those of sockets may have 107 bytes."""
    return tmp_path_factory.mktemp("programs-beside")


@pytest.mark.slow(50)
def test_pythons_own_tests_of_files_have_the_same_outcome(mount_of: MountOf, native: Path) -> None:
    """Those that are quick."""
    assert differences(QUICK, mount_of(BINDINGS[-1]), native) == {}


@pytest.mark.torture
@pytest.mark.timeout(2 * RUN_SECONDS)
@pytest.mark.parametrize("fuse", BINDINGS)
@pytest.mark.parametrize("module", ALL)
def test_all_of_pythons_own_tests_of_files_have_the_same_outcome(
    module: str, fuse: str, mount_of: MountOf, native: Path
) -> None:
    assert differences((module,), mount_of(fuse), native) == {}
