"""The process in the background, without a mount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.mounted import ROOT

_PROGRAM = """
import logging, sys, threading
from syncer.process.background import run_in_background

def serve(on_serving, on_waiting):
    logging.basicConfig(filename=sys.argv[1])
    thread = threading.Thread(target=lambda: 1 // 0, name="syncer-capacity")
    thread.start()
    thread.join()
    on_serving()

run_in_background(serve, lambda why: None)
"""


def test_what_ends_a_thread_that_nobody_watches_is_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, log], cwd=ROOT, capture_output=True, timeout=60, check=True
    )
    assert not done.stderr
    text = log.read_text()
    assert "syncer-capacity" in text and "ZeroDivisionError" in text
