"""What commands tell a person, from the keys that they tell programs. Pure text.

`STATUS_KEYS` documents the keys; docs/commands.md is made from it.
"""

from __future__ import annotations

import shlex
from typing import Any

from syncer import when
from syncer.values import size

STATUS_KEYS = {
    "safe": "whether everything that was written is on the server",
    "dirty_bytes": "bytes in blocks that are not on the server yet",
    "dirty_blocks": "the number of these blocks",
    "dirty_files": "files with changes that the server does not know yet; of very many, how many"
    " these were some seconds ago",
    "oldest_dirty_seconds": "age of the oldest change that the server does not know yet",
    "uploads_per_second": "blocks uploaded, on average over the last seconds",
    "upload_bytes_per_second": "bytes uploaded, likewise",
    "uploaded_bytes": "bytes uploaded since the mount began",
    "uploads_in_flight": "blocks that are being uploaded",
    "cache_bytes": "local data that counts against the limit",
    "cache_limit_bytes": "the limit (MAX_MB, `max_size`)",
    "cache_floor_bytes": "room that is left free on the local disk (`min_free`)",
    "cache_blocks": "blocks that are local",
    "cache_hits": "uses of blocks that were local, since the mount began",
    "cache_misses": "uses of blocks that had to be fetched, likewise",
    "fetched_blocks": "blocks fetched since the mount began",
    "fetched_bytes": "bytes fetched since the mount began",
    "evicted_blocks": "blocks evicted since the mount began",
    "pinned_bytes": "of the local data, what is pinned and so never evicted",
    "pinned_limit_bytes": "how much may be pinned; the rest of the limit is left for work",
    "unpinnable_bytes": "what pins reach beyond that; it is kept like everything else",
    "pins_error": 'why not all that is pinned is local; "" if nothing hinders it',
    "waiting": 'why writers wait, or would have to; "" if there is room',
    "metadata_bytes": "size of the metadata on the local disk; it comes on top of the limit",
    "files": "files, folders and all else in the collection",
    "file_bytes": "total size of the files",
    "open_files": "files that programs have open in the mount",
    "remote.location": "where the collection is kept",
    "remote.state": '"unknown" (not asked yet), "online", "offline", "foreign" (another repository'
    ' is there) or "error"',
    "remote.error": 'the last error in words; "" if there is none',
    "role": '"writer", "follower" (read-only) or "displaced" (another computer took over)',
    "generation": "how often the role of the writer changed hands",
    "writer": "name of the computer that writes",
    "published_epoch": "number of the last step of history on the server",
    "unpublished_epochs": "steps of history that the server does not know yet",
    "stranded_changes": "of a displaced writer: changes that stay on this computer",
    "unreadable_files": "files that could not be read lately, since no copy of a block is good",
    "damaged_blocks": "ids of blocks whose only copy is damaged",
    "errors": "errors of the mounted process that persist",
    "pid": "the mounted process; 0 if not mounted",
    "data": "the data directory",
    "mountpoint": 'where it is mounted; "" if it is not',
    "fuse": "version of libfuse; 0 if not mounted",
    "is_dead": "true, and only there, if the mount's process has died: the mount point answers"
    " nobody until `syncer umount` or the next `syncer mount`",
    "at": "only of a mount that shows the past (--at): its moment. Such an object has besides only"
    " `epoch`, `data`, `mountpoint`, `pid` and `fuse`",
}

FSCK_KEYS = {
    "state": '"clean", "damaged" or "repaired"',
    "damage": "pieces of damage that were found",
    "left": "those of them that are not repaired",
    "kinds": "for each kind of damage: how often it was `found`, and `repaired`",
    "findings": "the first 100 of each kind: `kind`, `text`, `repaired`",
    "notes": "what a person should know, and is no damage",
}
FSCK_STATUS = {"clean": 0, "damaged": 17, "repaired": 18}
"""The exit status of `fsck`, by the state."""


def status_lines(status: dict[str, Any]) -> list[str]:
    """The answer in the first line, what it rests on in the others."""
    if status.get("at"):
        shown, data = status["mountpoint"], status["data"]
        end = "" if status["pid"] else f" Or did: its process is gone; syncer umount {shown}"
        return [f"{shown} shows {data} as it was at {status['at']}, read-only.{end}"]
    remote = status["remote"]
    lines = [_answer(status), f"  mount     {_place(status)}", f"  remote    {_remote(remote)}"]
    if status["role"] != "writer":
        lines.append(f"  role      {_role(status)}")
    if status["role"] == "displaced" and status["stranded_changes"]:
        export = shlex.join(["syncer", "export", status["data"], "FOLDER"])
        lines.append(f"  stranded  {export} writes what is only here into a folder")
    if not status["safe"] and not _is_unknown(status):
        lines.append(f"  waiting   {_dirty(status)}")
    lines += [f"  cache     {_cache(status)}", f"  reads     {_reads(status)}"]
    lines.append(f"  holds     {_holds(status)}")
    if status["pinned_bytes"] or status["unpinnable_bytes"] or status["pins_error"]:
        lines.append(f"  pinned    {_pinned(status)}")
    if status["waiting"]:
        lines.append(f"  writers   wait: {status['waiting']}")
    if status["damaged_blocks"]:
        lines.append(f"  damaged   {len(status['damaged_blocks']):,} blocks have no good copy")
    lines += [
        f"  damaged   {_printable(path)}: no good copy of a part; see syncer fsck --remote"
        for path in status["unreadable_files"]
    ]
    lines += [f"  error     {error}" for error in status["errors"]]
    return lines


def _place(status: dict[str, Any]) -> str:
    mountpoint, data = status["mountpoint"], status["data"]
    if status.get("is_dead"):
        again = shlex.join(["syncer", "mount", data, mountpoint])
        return f"{mountpoint}: its process has died; mount it again: {again}"
    return mountpoint or f"{data} (not mounted)"


def _answer(status: dict[str, Any]) -> str:
    if status["role"] == "displaced" and status["stranded_changes"]:
        return (
            f"NOT everything is on the server: {_count(status['stranded_changes'], 'change')} stay"
            f" here, since {status['writer'] or 'another computer'} took over."
        )
    if status["safe"]:
        return "Everything is on the server."
    if _is_unknown(status):
        return "NOT known whether everything is on the server: another repository is in its place."
    parts = [_count(status["dirty_files"], "file")] if status["dirty_files"] else []
    parts.append(size(status["dirty_bytes"]) if status["dirty_blocks"] else "only names and dates")
    answer = f"NOT everything is on the server: {', '.join(parts)} to go"
    if status["remote"]["state"] in ("offline", "foreign", "error"):
        return f"{answer}; the server can't be used."
    rate = status["upload_bytes_per_second"]
    if status["dirty_blocks"] and rate >= 1:
        left = duration(status["dirty_bytes"] / rate)
        answer += f" (about {left} at {size(rate)}/s)"
    return f"{answer}."


def _is_unknown(status: dict[str, Any]) -> bool:
    """Whether nothing is to be uploaded to a server that nobody can find now."""
    is_foreign = status["remote"]["state"] == "foreign"
    return is_foreign and not status["dirty_blocks"] and not status["unpublished_epochs"]


def _remote(remote: dict[str, Any]) -> str:
    state = {"unknown": "not asked yet"}.get(remote["state"], remote["state"])
    text = f"{remote['location']}: {state}"
    return f"{text}; {remote['error']}" if remote["error"] else text


def _role(status: dict[str, Any]) -> str:
    writer = status["writer"] or "another computer"
    if status["role"] == "follower":
        return f"read-only; {writer} writes (mount --take-over makes this one the writer)"
    return f"read-only; {writer} took over"


def _dirty(status: dict[str, Any]) -> str:
    return (
        f"{_count(status['dirty_blocks'], 'block')} to upload,"
        f" {_count(status['unpublished_epochs'], 'step')} of history to publish;"
        f" the oldest change is {duration(status['oldest_dirty_seconds'])} old"
    )


def _cache(status: dict[str, Any]) -> str:
    used, limit = size(status["cache_bytes"]), size(status["cache_limit_bytes"])
    return f"{used} of {limit}, leaving at least {size(status['cache_floor_bytes'])} of the disk"


def _pinned(status: dict[str, Any]) -> str:
    text = f"{size(status['pinned_bytes'])} of at most {size(status['pinned_limit_bytes'])}"
    if status["unpinnable_bytes"]:
        text += f"; {size(status['unpinnable_bytes'])} more do not fit"
    if status["pins_error"]:
        text += f"; not all is local: {status['pins_error']}"
    return text


def _reads(status: dict[str, Any]) -> str:
    hits, misses = status["cache_hits"], status["cache_misses"]
    return f"{hits:,} blocks from the cache, {misses:,} from the server"


def _holds(status: dict[str, Any]) -> str:
    count = _count(status["files"], "file or folder", "files and folders")
    held = f"{count}, {size(status['file_bytes'])}"
    return f"{held}; {size(status['metadata_bytes'])} of metadata"


def exported(done: dict[str, Any]) -> str:
    """What ``syncer export`` has written."""
    failed = f"; {_count(len(done['failed']), 'file')} can't be read" if done["failed"] else ""
    return f"exported {_count(done['files'], 'file')}, {size(done['size_bytes'])}{failed}"


def evicted(done: dict[str, Any]) -> str:
    """What ``syncer evict`` has done, and what it left."""
    files = f" of {_count(done['files'], 'file')}" if done["files"] else ""
    text = f"freed {size(done['bytes'])} ({_count(done['blocks'], 'block')}{files})"
    kept = {
        "pinned (see: syncer unpin)": done["pinned_bytes"],
        "not uploaded yet": done["dirty_bytes"],
        "in use": done["busy_bytes"],
    }
    reasons = [f"{size(kept_bytes)} {why}" for why, kept_bytes in kept.items() if kept_bytes]
    return f"{text}; kept {', '.join(reasons)}" if reasons else text


def fetched(done: dict[str, Any]) -> str:
    """What ``syncer fetch`` has done, and what it left."""
    files, blocks = _count(done["files"], "file"), _count(done["blocks"], "block")
    text = f"fetched {size(done['bytes'])} ({blocks} of {files})"
    if done["skipped_files"]:
        skipped = f"{_count(done['skipped_files'], 'file')}, {size(done['skipped_bytes'])}"
        text += f"; skipped {skipped}: the limit has no room for them"
    return text


def pinned(done: dict[str, Any]) -> str:
    """What ``syncer pin`` has done."""
    text = f"pinned {_count(done['files'], 'file')}, {size(done['bytes'])}"
    if done["blocks"]:
        text += f"; fetched {size(done['fetched_bytes'])} ({_count(done['blocks'], 'block')})"
    if done["refused_bytes"]:
        text += f"; {size(done['refused_bytes'])} do not fit any more"
    return text


def pins_lines(found: dict[str, Any]) -> list[str]:
    """What ``syncer pins`` tells."""
    lines = [
        f"{_count(pin['files'], 'file'):>12}  {size(pin['bytes']):>8}  {_local(pin):>13}"
        f"  {_shown(pin['path'])}"
        for pin in found["pins"]
    ]
    return [*lines, f"pinned: {_pinned(found)}"]


def _local(pin: dict[str, Any]) -> str:
    if pin["local_files"] == pin["files"]:
        return "all local"
    return f"{size(pin['local_bytes'])} local"


def ls_line(item: dict[str, Any]) -> str:
    """One of ``syncer ls``."""
    what = "" if item["size"] is None else size(item["size"])
    cached = "" if item["cached_bytes"] is None else size(item["cached_bytes"])
    pin = "pinned" if item["pinned"] else ""
    return f"{what:>8}  {item['state'] or '-':<7}  {cached:>8}  {pin:<6}  {_shown(item['name'])}"


def snapshot_line(snapshot: dict[str, Any]) -> str:
    """One of ``syncer snapshots``."""
    taken = when.written(snapshot["time_ns"])
    own = size(snapshot["own_bytes"])
    return f"{taken}  {snapshot['files']:>9,} files  {own:>8}  {snapshot['name']}"


def prune_plan(plan: dict[str, Any], *, is_dry: bool) -> str:
    """What ``syncer prune`` says before it does it."""
    goes = f"{plan['pruned_moments']:,} of {_count(plan['moments'], 'moment')}"
    room = f"{size(plan['freed_bytes'])} in {_count(plan['freed_blocks'], 'block')}"
    return f"{'would remove' if is_dry else 'removing'} {goes}, which frees {room}"


def pruned(done: dict[str, Any]) -> str:
    """What ``syncer prune`` has done."""
    trashed = f"{size(done['trashed_bytes'])} to the trash"
    if done["grace_seconds"] and done["trashed_blocks"]:
        trashed += f" for {duration(done['grace_seconds'])}"
    return (
        f"removed {_count(done['rows'], 'row')} of history; on the server: {trashed},"
        f" {size(done['deleted_bytes'])} deleted"
    )


def version_line(version: dict[str, Any]) -> str:
    """One of ``syncer versions``."""
    return f"{version['when']}  {size(version['size']):>8}  {version['change']}"


def deleted_line(gone: dict[str, Any]) -> str:
    """One of ``syncer deleted``."""
    what = "folder" if gone["is_folder"] else size(gone["size"])
    return f"{gone['when']}  {what:>8}  {_shown(gone['path'])}"


def difference_line(difference: dict[str, Any]) -> str:
    """One of ``syncer diff``."""
    return f"{difference['change']} {_shown(difference['path'])}"


def restored(done: dict[str, Any]) -> str:
    """What ``syncer restore`` has done."""
    return f"{_count(done['files'], 'entry', 'entries')}, {size(done['bytes'])}"


def _shown(path: str) -> str:
    """A path for a line of its own: what can't be shown is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in path
    )


def _count(number: int, noun: str, many: str = "") -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {many or noun + 's'}"


def duration(seconds: float) -> str:
    """A time for a person, in one unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"


def fsck_lines(found: dict[str, Any]) -> list[str]:
    """What `fsck` found; the last line is the answer."""
    lines = [
        f"{'repaired' if one['repaired'] else 'DAMAGE'}: {one['kind']}: {one['text']}"
        for one in found["findings"]
    ]
    for kind, counts in found["kinds"].items():
        untold = counts["found"] - sum(one["kind"] == kind for one in found["findings"])
        if untold:
            lines.append(f"and {untold:,} more: {kind}")
    lines += [f"note: {text}" for text in found["notes"]]
    answers = {
        "clean": "No damage found.",
        "repaired": f"All damage found ({found['damage']:,}) is repaired.",
        "damaged": f"{_count(found['left'], 'piece')} of damage; see syncer fsck --help.",
    }
    return [_printable(line) for line in [*lines, answers[found["state"]]]]


def _printable(text: str) -> str:
    """Names may hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
