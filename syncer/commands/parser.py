"""The parser of the command line: each command's words, help and example.

A command names the module that holds what it does, as a function of the command's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from syncer import __version__
from syncer.errors import UsageError

_TARGET = "data directory, mount point, or any path in a mount"
_WHEN = (
    "'2 hours ago', 'yesterday 18:00', 2026-11-22T10:05, an epoch, a snapshot's name or 'latest'"
)


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an error of ours, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def commands_of(parser: Parser) -> dict[str, Parser]:
    """The parser of each command, in the order of ``--help``."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def make_parser() -> Parser:
    parser = Parser(
        prog="syncer",
        description="A big collection behind a small disk: a folder that shows all of it, keeps"
        " what was used lately, and has everything on a server.",
        epilog="TARGET is a " + _TARGET + ". `syncer DATA REMOTE MOUNTPOINT MAX_MB` is the same as"
        " `syncer mount` with these.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"syncer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(
        module: str, name: str, usage: str, summary: str, example: str, description: str = ""
    ) -> Parser:
        command: Parser = commands.add_parser(
            name,
            usage=f"syncer {name} {usage}",
            help=summary,
            description=f"{summary}. {description}".strip(),
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        command.set_defaults(module=module)
        command.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            help="tell more in the log, and show where an error came from",
        )
        return command

    _add_mounting(add)
    _add_looking(add)
    _add_moving(add)
    _add_past(add)
    _add_settings(add)
    _add_maintaining(add)
    return parser


_Add = Callable[..., Parser]


def _add_mounting(add: _Add) -> None:
    mount = add(
        "mounting",
        "mount",
        "[options] DATA [REMOTE] MOUNTPOINT [MAX_MB]",
        "show the collection in a folder",
        "syncer mount data someserver:~/blobs/ mnt 1000",
        "The first mount makes DATA, and the repository at REMOTE; later ones need neither REMOTE"
        " nor MAX_MB. MAX_MB, --fuse, --writeback, --transport, --subtype and --show-snapshots are"
        " kept as settings. Returns when the mount serves; the exit status tells whether it does.",
    )
    mount.add_argument("data", metavar="DATA", help="this computer's private state")
    mount.add_argument(
        "words",
        nargs="+",
        metavar="[REMOTE] MOUNTPOINT [MAX_MB]",
        help="host:path, sftp://user@host:port/path or a folder; an empty folder; the limit on"
        " local data, such as 1000 (in MB) or 20G. Of two words, the last is MAX_MB if it is a"
        " number: write ./2024 for a folder of that name",
    )
    mount.add_argument(
        "--foreground", action="store_true", help="stay, and show the log on stderr as well"
    )
    mount.add_argument("--log-file", metavar="FILE", help="log there instead of in DATA")
    mount.add_argument(
        "--fuse", choices=("auto", "2", "3"), help="libfuse to use; auto takes 3 where it is there"
    )
    mount.add_argument(
        "--writeback",
        choices=("on", "off"),
        help="whether the kernel gathers small writes (libfuse 3); off is slower and exact",
    )
    _add_transport(mount)
    mount.add_argument(
        "--subtype",
        metavar="NAME",
        help="what the list of mounts calls it: fuse.NAME. Desktops make thumbnails of a whole"
        " folder by reading all of it, but not in fuse.sshfs, which they know to be remote",
    )
    mount.add_argument(
        "--show-snapshots",
        action="store_const",
        const="on",
        help="list .snapshots in the top folder; it can be entered anyway",
    )
    mount.add_argument(
        "--at",
        metavar="WHEN",
        help="show, read-only, the collection as it was then: beside the mount of the present, or"
        f" without one; {_WHEN}",
    )
    mount.add_argument(
        "--take-over",
        action="store_true",
        help="make this computer the one that writes; the former one turns read-only",
    )
    mount.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION,...",
        help="of the mount: allow_other, dev, noatime, ro, suid",
    )
    umount = add(
        "actions",
        "umount",
        "[--wait] MOUNTPOINT",
        "unmount",
        "syncer umount mnt --wait",
        "Returns when everything is safe on the local disk and the mount's process is gone; the"
        " exit status tells whether it is. With --wait: if not everything comes to the server, it"
        " ends as flush does, and all stays mounted.",
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted")
    umount.add_argument(
        "--wait", action="store_true", help="first wait until everything is on the server"
    )
    init = add(
        "mounting",
        "init",
        "[options] DATA REMOTE [MAX_MB]",
        "make a new, empty collection",
        "syncer init data someserver:~/blobs/ 20G",
        "The first mount does the same.",
    )
    clone = add(
        "mounting",
        "clone",
        "[options] DATA REMOTE [MAX_MB]",
        "show a collection that exists on another computer, or on this one again",
        "syncer clone data someserver:~/blobs/ 20G",
        "All names are there at once, contents when they are read.",
    )
    for command in (init, clone):
        command.add_argument("data", metavar="DATA", help="a folder that is empty or not there")
        command.add_argument(
            "remote", metavar="REMOTE", help="host:path, sftp://user@host:port/path or a folder"
        )
        command.add_argument(
            "limit",
            nargs="?",
            metavar="MAX_MB",
            help="the limit on local data, such as 1000 (in MB) or 20G (default: 5G)",
        )
        _add_transport(command)


def _add_transport(command: Parser) -> None:
    command.add_argument(
        "--transport",
        choices=("auto", "ssh", "paramiko"),
        help="what speaks SSH; auto takes the ssh program where it is there",
    )


def _add_looking(add: _Add) -> None:
    status = add(
        "actions",
        "status",
        "[TARGET] [--json] [--watch]",
        "say whether everything is on the server",
        "syncer status mnt --watch",
        "Without TARGET: of all your mounts.",
    )
    status.add_argument("target", nargs="?", metavar="TARGET", help=_TARGET)
    status.add_argument(
        "--json", action="store_true", help="for programs: an object; without TARGET a list of them"
    )
    status.add_argument("--watch", action="store_true", help="again each second, until Ctrl-C")


def _add_moving(add: _Add) -> None:
    flush = add(
        "moving",
        "flush",
        "TARGET [--timeout SECONDS]",
        "wait until everything is on the server",
        "syncer flush mnt --timeout 600",
        "Ends with the exit code of what is in the way: at once where a person must act, such as 7"
        " where the server refuses to store, and after a minute in which nothing gets through where"
        " it may pass, such as 4 where the server is away and 5 where it is full. 4 if the time is"
        " over, and nothing is in the way.",
    )
    flush.add_argument("target", metavar="TARGET", help=_TARGET)
    flush.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="wait no longer")
    export = add(
        "moving",
        "export",
        "TARGET FOLDER",
        "write what the server does not have into a folder",
        "syncer export data rescued",
        "For a computer that another one has displaced as the writer: its changes since then go"
        " there under their paths, to be copied into a mount by hand. What was removed, and what"
        " can't be read, is listed; of a folder that was renamed, only what changed in it.",
    )
    export.add_argument("target", metavar="TARGET", help=_TARGET)
    export.add_argument("folder", metavar="FOLDER", help="empty, or not there; outside of a mount")
    evict = add(
        "moving",
        "evict",
        "[--all] TARGET|PATH...",
        "free local copies of what the server has",
        "syncer evict mnt/2019 mnt/2020",
        "Of files and all in folders; reading fetches them again.",
    )
    evict.add_argument(
        "paths",
        nargs="+",
        metavar="TARGET|PATH",
        help="files and folders in a mount; of a mount point or data directory, everything",
    )
    evict.add_argument(
        "--all", action="store_true", help="of the whole mount in which the path lies"
    )
    fetch = add(
        "moving",
        "fetch",
        "PATH...",
        "fetch files, and all in folders, for reading without the server",
        "syncer fetch mnt/2024/island",
        "They stay until other data needs the room. Ends with exit code 6 if some did not fit.",
    )
    pin = add(
        "moving",
        "pin",
        "PATH...",
        "keep files, and all in folders, on the local disk always",
        "syncer pin mnt/photos/.thumbnails",
        "Also what comes into a pinned folder later. Fetches what is missing. What does not fit"
        " beside the room for work is refused, with the figures. Pins stay through renames and"
        " remounts, and are this computer's own.",
    )
    unpin = add(
        "moving",
        "unpin",
        "PATH...",
        "take pins away",
        "syncer unpin mnt/photos/.thumbnails",
        "What they kept stays until other data needs the room; evict frees it at once.",
    )
    for command in (fetch, pin, unpin):
        command.add_argument(
            "paths", nargs="+", metavar="PATH", help="files and folders in a mount"
        )
    pins = add(
        "moving",
        "pins",
        "TARGET [--json]",
        "list the pins",
        "syncer pins mnt",
        "The oldest first: how many files and bytes each reaches, how much of that is local, its"
        " path. The last line says how much may be pinned.",
    )
    pins.add_argument("target", metavar="TARGET", help=_TARGET)
    ls = add(
        "moving",
        "ls",
        "PATH [--json]",
        "list a folder with what of it is local",
        "syncer ls mnt/2024",
        "Size; local, partial, remote, or dirty (not all on the server yet); how much is local;"
        " whether it is pinned; name.",
    )
    ls.add_argument("path", metavar="PATH", help="a folder or file in a mount")
    for command in (pins, ls):
        command.add_argument("--json", action="store_true", help="for programs")


def _add_past(add: _Add) -> None:
    snapshot = add(
        "past",
        "snapshot",
        "TARGET NAME [--remove]",
        "name the state of now",
        "syncer snapshot mnt before-sorting",
        "Takes no time and no room at any size. Clones have it too. A named state is never pruned;"
        " --remove takes the name away, and the next prune what only it kept.",
    )
    snapshots = add(
        "past",
        "snapshots",
        "TARGET [--json]",
        "list the named snapshots",
        "syncer snapshots mnt",
        "Oldest first: when it was taken, how many files it shows, how much only it keeps, its"
        " name. What another moment shows as well is not kept by the snapshot alone, so this is 0"
        " until the moments around it are pruned.",
    )
    versions = add(
        "past",
        "versions",
        "FILE",
        "list the versions of a file",
        "syncer versions mnt/letter.odt",
        "Oldest first: when, its size, what changed. Of a file that is gone, too.",
    )
    deleted = add(
        "past",
        "deleted",
        "TARGET [PATH]",
        "list what was removed and can be brought back",
        "syncer deleted mnt photos/2024",
        "Of a folder and those below it: a moment when it was there, its size, its path.",
    )
    diff = add(
        "past",
        "diff",
        "TARGET WHEN [WHEN2]",
        "list what changed",
        "syncer diff mnt/photos yesterday",
        "Between two moments: + is new, - is gone, M has another content, m other attributes. Of a"
        " folder that is new or gone, only its own name.",
    )
    for command in (snapshot, snapshots, deleted, diff):
        command.add_argument("target", metavar="TARGET", help=_TARGET)
    snapshot.add_argument("name", metavar="NAME", help="a name that is not taken yet")
    snapshot.add_argument("--remove", action="store_true", help="take this name away")
    snapshots.add_argument("--json", action="store_true", help="for programs: a list of objects")
    versions.add_argument(
        "file", metavar="FILE", help="in a mount, or data/photos/a.jpg; there now or not"
    )
    deleted.add_argument("path", nargs="?", metavar="PATH", help="a folder, from TARGET's path on")
    diff.add_argument("when", metavar="WHEN", help=_WHEN)
    diff.add_argument("when2", nargs="?", metavar="WHEN2", help="likewise (default: latest)")
    restore = add(
        "past",
        "restore",
        "PATH --at WHEN [--to DEST]",
        "bring back a file or a folder as it was",
        "syncer restore mnt/letter.odt --at 'yesterday 18:00'",
        "Needs no room and no download. What is at PATH is replaced, and stays in the history.",
    )
    restore.add_argument(
        "path", metavar="PATH", help="in a mount, or data/photos/a.jpg; there now or not"
    )
    restore.add_argument("--at", required=True, metavar="WHEN", help=_WHEN)
    restore.add_argument("--to", metavar="DEST", help="put it there instead; a path that is free")
    _add_prune(add)


def _add_prune(add: _Add) -> None:
    prune = add(
        "past",
        "prune",
        "TARGET --keep-... [--dry-run] [--json]",
        "thin out the history",
        "syncer prune mnt --keep-within 7d --keep-daily 30 --keep-monthly 24",
        "Says first what goes and how much that frees. Stays what any of the options keeps, the"
        " newest moment and named snapshots. What nothing shows any more leaves the server after"
        " the setting grace. The settings keep_within and its like do the same by themselves.",
    )
    prune.add_argument("target", metavar="TARGET", help=_TARGET)
    prune.add_argument(
        "--keep-within",
        metavar="TIME",
        help="all moments so long before the newest: 12h, 7d, 1y",
    )
    for name, period in (
        ("hourly", "hours"),
        ("daily", "days"),
        ("weekly", "weeks"),
        ("monthly", "months"),
        ("yearly", "years"),
    ):
        prune.add_argument(
            f"--keep-{name}",
            type=_number,
            default=0,
            metavar="N",
            help=f"the last moment of each of the last N {period} in which something changed",
        )
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    prune.add_argument("--json", action="store_true", help="for programs: an object")


def _add_settings(add: _Add) -> None:
    config = add(
        "actions",
        "config",
        "TARGET [KEY [VALUE]]",
        "show or change settings",
        "syncer config mnt max-size 20G",
    )
    config.add_argument("target", metavar="TARGET", help=_TARGET)
    config.add_argument("key", nargs="?", metavar="KEY", help="a setting; without: show all")
    config.add_argument("value", nargs="?", metavar="VALUE", help="its new value; without: show it")
    autostart = add(
        "actions",
        "autostart",
        "add|remove|list [DATA MOUNTPOINT] [--systemd]",
        "mount at login",
        "syncer autostart add data mnt",
        "As an entry of the desktop's autostart, or as a systemd user unit.",
    )
    autostart.add_argument(
        "action",
        choices=("add", "remove", "list"),
        metavar="add|remove|list",
        help="what to do; adding replaces what mounts at the same place",
    )
    autostart.add_argument("data", nargs="?", metavar="DATA", help="a data directory")
    autostart.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help="an empty folder")
    autostart.add_argument("--systemd", action="store_true", help="add: as a systemd user unit")


def _add_maintaining(add: _Add) -> None:
    fsck = add(
        "maintaining",
        "fsck",
        "TARGET [--repair] [--remote] [--read-data] [--json]",
        "look for damage, and repair it",
        "syncer fsck data --remote --repair",
        "Checks the database, the tree and its history, and the local copies. Ends with exit code"
        " 0 if all is well, 17 if there is damage, 18 if there was and all of it is repaired."
        " What has no place is put in lost+found. May be stopped at any moment, and run again."
        " While it is mounted, only local copies and the server are repaired.",
    )
    fsck.add_argument("target", metavar="TARGET", help=_TARGET)
    fsck.add_argument(
        "--repair",
        action="store_true",
        help="repair what can be repaired; a damaged database is built anew from the server and"
        " from this computer's own notes",
    )
    fsck.add_argument(
        "--remote", action="store_true", help="also look whether the server has everything"
    )
    fsck.add_argument(
        "--read-data",
        action="store_true",
        help="read and verify all contents: the local ones, and with --remote the server's",
    )
    fsck.add_argument("--json", action="store_true", help="for programs")


def _number(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 2000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number up to 2000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
