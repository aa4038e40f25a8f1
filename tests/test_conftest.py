"""The rules in conftest.py, each broken on purpose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

RULES = Path(__file__).with_name("conftest.py").read_text()


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makeini(
        "[pytest]\nmarkers =\n    fuse\n    expects_warnings\nfilterwarnings = error\n"
    )
    pytester.makeconftest(RULES)
    pytester.makepyfile(f"import logging, pytest, threading\n{body}")
    # A process of its own: its rules are not to see this run's threads, nor the other way round.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider")


def test_a_logged_warning_fails_the_test(pytester: pytest.Pytester) -> None:
    body = "def test(): logging.getLogger('syncer.part').warning('the %s is low', 'tide')"
    result = run(pytester, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*WARNING syncer.part: the tide is low*"])


def test_a_test_that_expects_warnings_may_log_them(pytester: pytest.Pytester) -> None:
    body = "@pytest.mark.expects_warnings\ndef test(): logging.getLogger('syncer').error('x')"
    run(pytester, body).assert_outcomes(passed=1)


def test_a_thread_that_is_left_fails_the_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "def test():\n"
        "    import conftest\n"
        "    conftest._THREADS_END_WITHIN_SECONDS = 0.1\n"
        "    wait = threading.Event().wait\n"
        "    threading.Thread(target=wait, name='syncer-x', daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    result = run(pytester, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*threads outlive the test: ?'syncer-x'?*"])


def test_a_file_that_nobody_closed_fails_the_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test(): open('/dev/null')")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*unclosed file*"])


@pytest.mark.parametrize(
    "body",
    [
        "def test(): pytest.skip('no server')",
        "@pytest.mark.skipif(True, reason='no server')\ndef test(): pass",
        "pytest.skip('no server', allow_module_level=True)",
    ],
)
def test_a_skip_fails_on_ci_and_only_there(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.delenv("CI", raising=False)
    run(pytester, body).assert_outcomes(skipped=1)
    monkeypatch.setenv("CI", "true")
    result = run(pytester, body)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*skipped, which is a failure on CI*no server*"])


def test_an_expected_failure_is_no_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    body = "@pytest.mark.xfail\ndef test(): raise ValueError"
    run(pytester, body).assert_outcomes(xfailed=1)


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) needs root")
def test_a_mount_that_is_left_is_unmounted_and_fails_the_run(
    pytester: pytest.Pytester, tmp_path: Path
) -> None:
    # A mount without a file system behind it: mounting needs none.
    body = (
        "import os, subprocess\n"
        "def test(tmp_path):\n"
        "    device = os.open('/dev/fuse', os.O_RDWR)\n"
        "    where = tmp_path / 'left mounted'\n"
        "    where.mkdir()\n"
        "    options = f'fd={device},rootmode=40000,user_id=0,group_id=0'\n"
        "    command = ['mount', '-i', '-t', 'fuse.syncer', '-o', options, 'syncer', where]\n"
        "    subprocess.run(command, pass_fds=[device], check=True)\n"
    )
    result = run(pytester, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*tests left mounted:*left mounted*"])
    assert str(pytester.path) not in Path("/proc/self/mountinfo").read_text()
