"""The command line: from its words to an exit status.

What a command does is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from syncer.commands.parser import commands_of, make_parser
from syncer.errors import SyncerError, UsageError
from syncer.process.background import INTERRUPTED

OUTPUT_CLOSED = 141
"""The exit status of a command whose output nobody reads any more, as of others in a shell."""
_VERBOSE = ("-v", "--verbose")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    is_verbose = any(word in _VERBOSE for word in words)
    # A core dump would hold what is in the files, and the keys of the transport.
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    _open_streams()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # Of the program's start, see `__main__`.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        exit_code = _run(words)
    except SyncerError as error:
        if is_verbose:
            traceback.print_exc()
        print(f"syncer: {_one_line(str(error))}", file=sys.stderr)
        exit_code = error.exit_code
    except KeyboardInterrupt:
        exit_code = INTERRUPTED
    except SystemExit as end:
        # Of what only tells something, such as --help.
        exit_code = int(end.code or 0)
    except BrokenPipeError as error:
        return _without_output(error, OUTPUT_CLOSED)
    except Exception as error:
        # What could not be written still waits for it, and fails again below.
        exit_code = SyncerError.exit_code
        if not isinstance(error, OSError) or _flush_output() is None:
            if is_verbose:
                raise
            reason = _one_line(f"{type(error).__name__}: {error}")
            print(f"syncer: unforeseen: {reason} (-v shows where)", file=sys.stderr)
            return exit_code
    failure = _flush_output()
    return exit_code if failure is None else _without_output(failure, exit_code)


def _run(words: Sequence[str]) -> int:
    arguments = parse(words)
    run: Callable[[Any], int] = getattr(
        importlib.import_module(f"syncer.commands.{arguments.module}"), arguments.command
    )
    # What is made in the data directory and in a local repository is for its owner only.
    before = os.umask(0o077)
    try:
        return run(arguments)
    finally:
        os.umask(before)


def _open_streams() -> None:
    """Have the three standard streams, whichever the caller has closed.

    What is opened later, such as the database, must not be taken for one of them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def _flush_output() -> OSError | None:
    """Write what was printed; why it can't be, if so."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _without_output(failure: OSError, exit_code: int) -> int:
    """The exit status where what was printed could not be written."""
    # The interpreter's own flush, at its end, must not complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(failure, BrokenPipeError):
        # Whoever read it has seen enough.
        return OUTPUT_CLOSED
    print(f"syncer: can't write the output: {failure.strerror}", file=sys.stderr)
    return exit_code or SyncerError.exit_code


def _one_line(text: str) -> str:
    """Names in a message may hold anything: what isn't printable is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments. Raises UsageError."""
    parser = make_parser()
    # Before the command, these are the same as behind it.
    early = list(itertools.takewhile(lambda word: word in _VERBOSE, words))
    words = words[len(early) :]
    if not words:
        parser.print_help()
        parser.exit()
    first = words[0]
    if not first.startswith("-") and first not in commands_of(parser):
        # The form of the program that came before this one.
        if len(words) != 4:
            raise UsageError(f"there is no command {first!r}; see syncer --help")
        words = ["mount", *words]
    words = [words[0], *early, *words[1:]]
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
