"""``python -m syncer``."""

import sys

from syncer.commands.cli import main

sys.exit(main())
