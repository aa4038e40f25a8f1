"""``python -m syncer``, and the program ``syncer``."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until `main` has its eye on it, Ctrl-C ends this as any program, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from syncer.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
