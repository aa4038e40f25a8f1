"""The command line: from its words to an exit status.

What a command does is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from syncer.commands.parser import commands_of, make_parser
from syncer.errors import SyncerError, UsageError
from syncer.process.background import INTERRUPTED

OUTPUT_CLOSED = 141
"""The exit status of a command whose output nobody reads any more, as of others in a shell."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        try:
            return _run(words)
        finally:
            # Whether somebody reads the last of it shows here, and not at the interpreter's end.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough. The interpreter's own flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED


def _run(words: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if words is None else words)
    is_verbose = "-v" in words or "--verbose" in words
    # A core dump would hold what is in the files, and the keys of the transport.
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    try:
        arguments = parse(words)
        run: Callable[[Any], int] = getattr(
            importlib.import_module(f"syncer.commands.{arguments.module}"), arguments.command
        )
        return run(arguments)
    except SyncerError as error:
        if is_verbose:
            traceback.print_exc()
        print(f"syncer: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if is_verbose:
            raise
        reason = _one_line(f"{type(error).__name__}: {error}")
        print(f"syncer: unforeseen: {reason} (-v shows where)", file=sys.stderr)
        return SyncerError.exit_code


def _one_line(text: str) -> str:
    """Names in a message may hold anything: what isn't printable is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments. Raises UsageError."""
    parser = make_parser()
    if not words:
        parser.print_help()
        parser.exit()
    first = words[0]
    if not first.startswith("-") and first not in commands_of(parser):
        # The form of the program that came before this one.
        if len(words) != 4:
            raise UsageError(f"there is no command {first!r}; see syncer --help")
        words = ["mount", *words]
    arguments, left_over = parser.parse_known_args(words)
    if left_over:
        arguments = parser.parse_args(_before_options(words, left_over))
    return arguments


def _before_options(words: Sequence[str], left_over: Sequence[str]) -> list[str]:
    """The words, with those before all options that argparse finds no place for behind one.

    Where a word may be left out, Python before 3.13 takes it for left out at the first option.
    """
    if any(word.startswith("-") for word in left_over):
        return list(words)
    placed = list(reversed(words))
    for word in left_over:
        placed.remove(word)
    placed.reverse()
    first = next((place for place, word in enumerate(placed) if word.startswith("-")), len(placed))
    return [*placed[:first], *left_over, *placed[first:]]
