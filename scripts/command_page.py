#!/usr/bin/env python3
"""Writes docs/commands.md, or the page given, from the program itself.

With --check it changes nothing, and fails if the page differs from the code.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from syncer import errors
from syncer.commands import parser
from syncer.commands.cli import OUTPUT_CLOSED
from syncer.commands.report import FSCK_KEYS, FSCK_STATUS, STATUS_KEYS
from syncer.process.background import INTERRUPTED

INTRODUCTION = """\
# Commands

This page is made from the program by `make docs`.

`TARGET` is a data directory, a mount point, or any path in a mount. A command for something that is
mounted is carried out by the process that has mounted it, others in the command's own process.

`syncer DATA REMOTE MOUNTPOINT MAX_MB`, four words of which the first is no command, is the same as
`syncer mount` with these.

An error is one line on stderr, and an [exit status](#exit-status) that scripts can rely on.
"""
EXIT_STATUS = """\
## Exit status

| status | meaning |
|---|---|
"""
STATUS_OUTPUT = """\
## What `status --json` tells

One object, or without `TARGET` a list of them. A dot stands for an object in the object. Keys are
added, but neither removed nor given another meaning.

| key | meaning |
|---|---|
"""
FSCK_OUTPUT = """\
## What `fsck --json` tells

| key | meaning |
|---|---|
"""


def page() -> str:
    parts = [INTRODUCTION]
    parts += map(command_section, parser.commands_of(parser.make_parser()).values())
    parts.append(EXIT_STATUS + "".join(f"| {code} | {text} |\n" for code, text in exit_codes()))
    parts.append(STATUS_OUTPUT + "".join(f"| `{k}` | {v} |\n" for k, v in STATUS_KEYS.items()))
    parts.append(FSCK_OUTPUT + "".join(f"| `{k}` | {v} |\n" for k, v in FSCK_KEYS.items()))
    return "\n".join(parts)


def command_section(parser: argparse.ArgumentParser) -> str:
    assert parser.description and parser.epilog and parser.usage
    lines = [f"## {parser.prog}", "", "```", parser.usage, "```", ""]
    lines += [sentence_case(parser.description), ""]
    lines += ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        written = ", ".join(action.option_strings) or str(action.metavar)
        if action.option_strings and action.nargs != 0:
            written += f" {'|'.join(action.choices) if action.choices else action.metavar}"
        # A bar would end the table's cell, even in code.
        lines.append("| `{}` | {} |".format(written.replace("|", "\\|"), action.help))
    example = parser.epilog.removeprefix("example: ")
    return "\n".join([*lines, "", "```sh", example, "```", ""])


def sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def exit_codes() -> Iterator[tuple[int, str]]:
    """(status, meaning): the meanings are those that the tree of errors gives in its docstring."""
    meanings: dict[int, list[str]] = {0: ["done"]}
    for name, meaning in re.findall(r"(\w+Error)  +(.+)", errors.__doc__ or ""):
        code = getattr(errors, name).exit_code
        meanings.setdefault(code, []).append(meaning.replace("``", "`"))
    meanings[errors.SyncerError.exit_code] = ["any other error"]
    meanings[FSCK_STATUS["damaged"]] = ["`fsck` found damage"]
    meanings[FSCK_STATUS["repaired"]] = ["`fsck` found damage, and all of it is repaired"]
    meanings[INTERRUPTED] = ["interrupted, as by Ctrl-C"]
    meanings[OUTPUT_CLOSED] = ["nobody reads its output any more, as when `head` has seen enough"]
    return ((code, "; ".join(texts)) for code, texts in sorted(meanings.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/commands.md"))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not arguments.check:
        arguments.page.write_text(page(), encoding="utf-8")
    elif arguments.page.read_text(encoding="utf-8") != page():
        print(f"{arguments.page} differs from the code: run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
