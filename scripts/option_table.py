#!/usr/bin/env python3
"""Writes the table of settings into the page given, between its two marks.

With --check it changes nothing, and fails if the page differs from the code.
"""

import argparse
import re
import sys
from pathlib import Path

from syncer.config import SETTINGS

MARKS = re.compile(r"(?<=<!-- settings -->\n).*(?=<!-- end of settings -->)", re.DOTALL)


def table() -> str:
    lines = ["", "| key | default | values | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = f"`{setting.default_text}`" if setting.default_text else "required"
        lines.append(f"| `{setting.key}` | {default} | {setting.kind.allowed} | {setting.doc} |")
    return "\n".join(lines) + "\n\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    written = arguments.page.read_text(encoding="utf-8")
    generated = MARKS.sub(lambda _: table(), written)
    if arguments.check and generated != written:
        print(f"{arguments.page} differs from the code: run make docs", file=sys.stderr)
        return 1
    if not arguments.check:
        arguments.page.write_text(generated, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
