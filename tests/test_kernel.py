"""What the kernel tells of a program's thread."""

from __future__ import annotations

import subprocess
import sys

from syncer.kernel import sleeps_of
from tests.remote_contract import eventually

_ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def test_who_waits_for_the_same_call_has_slept_as_often_as_before() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin and program.stdout
        program.stdin.write("begun\n")
        program.stdin.flush()
        assert program.stdout.readline() == "begun\n"
        eventually(lambda: sleeps_of(program.pid) is not None)
        before = sleeps_of(program.pid)
        assert sleeps_of(program.pid) == before
        program.stdin.write("and on\n")
        program.stdin.flush()
        assert program.stdout.readline() == "and on\n"
        eventually(lambda: sleeps_of(program.pid) not in (None, before))
        program.stdin.close()
    assert sleeps_of(program.pid) is None


def test_who_is_at_work_does_not_sleep() -> None:
    assert sleeps_of(0) is None
    with open("/proc/thread-self/status") as file:
        number = int(next(line for line in file if line.startswith("Pid:")).split()[1])
    assert sleeps_of(number) is None
