"""Who may publish: the repository's description, its machines, and its chain of writers.

One machine at a time is the repository's writer. Each time the role changes hands, the generation
goes up by one, in two steps:

    writers/00000002         the claim: which machine; created exclusively, so only one wins
    writers/00000002.start   the start: after which epoch of which generation it goes on

Beside them lie marks, which keep two data directories from using one machine id: see `identity`.

The new writer claims, then follows the log to its end, then writes the start. The former writer
puts a segment, then looks whether somebody has claimed, and counts the segment as published only
if nobody has. So a segment that it counted was there before the claim, and the new writer sees
it: what was once published stays. What comes later than the claim may miss the start; it is then
a branch, which readers ignore.

Until a claim has its start, nobody knows where the former generation ends; readers wait. A
machine that dies in between leaves a claim that the next one simply passes over. The chain is
therefore read backwards, from the newest start through the generations that each goes on from.
Some disks can't create a whole file exclusively (`Remote.create`). A death leaves an empty claim
there, which is passed over in the same way: nobody's, unless its maker lives, and is displaced.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from syncer.codec import BLOCK_BYTES, PIECE_BYTES
from syncer.errors import (
    CorruptError,
    DisplacedError,
    ExistsError,
    ForeignError,
    FormatError,
    MissingError,
)
from syncer.exchange.wire import MAX_JSON_BYTES, decode_json, encode_json, log_folder
from syncer.metadata.db import Database
from syncer.metadata.node import node_base
from syncer.remote.base import CONFIG_KEY, Remote

_HASH = "xxh3-128"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: More changes of the writer than any person makes; a list that is longer is an attack.
_MAX_GENERATIONS = 10_000
_NODES_PER_MACHINE = 1 << 40


@dataclass(frozen=True)
class RepositoryInfo:
    """What `syncer.json` says; it never changes."""

    uuid: str
    #: Of all hashes, 63 bits.
    seed: int


@dataclass(frozen=True)
class Claim:
    """That a machine wants to be, or is, the writer of a generation."""

    generation: int
    #: 0: it is empty, and nobody knows.
    machine: int
    name: str


@dataclass(frozen=True)
class Link:
    """One generation of the chain: `machine` wrote the epochs behind `after`, up to `end`."""

    generation: int
    machine: int
    name: str
    after: int
    #: Key of the segment that ends with `after`, "" if that is 0.
    parent: str
    #: Its last epoch that counts; None: it may still write.
    end: int | None


@dataclass(frozen=True)
class Chain:
    """What `writers/` says, newest generation last."""

    newest: Claim | None
    links: tuple[Link, ...]

    @property
    def is_changing_hands(self) -> bool:
        """Whether the newest claim lacks its start, so that the end of the chain is unknown."""
        settled = self.links[-1].generation if self.links else 0
        return self.newest is not None and self.newest.generation != settled

    def has(self, generation: int, machine: int) -> bool:
        """Whether it was, or is, this machine that writes a generation."""
        return any((link.generation, link.machine) == (generation, machine) for link in self.links)

    def link_of(self, epoch: int) -> Link | None:
        """Who wrote, or is to write, this epoch."""
        for link in reversed(self.links):
            if epoch > link.after:
                return link
        return None


def new_machine(remote: Remote | None = None) -> int:
    """A random machine id of 63 bits whose node numbers no machine of the repository uses."""
    taken = set() if remote is None else {node_base(other) for other in _machines(remote)}
    while True:
        machine = secrets.randbits(63)
        if machine and node_base(machine) not in taken:
            return machine


def shares_numbers(remote: Remote, machine: int) -> bool:
    """Whether another machine of the repository makes nodes with the same numbers."""
    others = (other for other in _machines(remote) if other != machine)
    return any(node_base(other) == node_base(machine) for other in others)


def next_node(db: Database, machine: int) -> int:
    """The number behind those of all nodes of a machine's that the database knows."""
    newest = base = node_base(machine)
    for table in ("node", "node_past"):
        row = db.query_one(
            f"SELECT max(id) FROM {table} WHERE id BETWEEN ? AND ?",
            (base, base + _NODES_PER_MACHINE - 1),
        )
        newest = max(newest, row[0] or 0 if row else 0)
    return newest + 1


def _machines(remote: Remote) -> list[int]:
    names = (re.fullmatch(r"([0-9a-f]{16})\.json", entry.name) for entry in remote.list("machines"))
    return [int(match[1], 16) for match in names if match]


def note_machine(remote: Remote, machine: int, name: str, role: str, epoch: int) -> None:
    """Tell the others that this machine exists, and up to which epoch it knows the history."""
    body = encode_json(name=_clean(name), role=role, seen_ns=time.time_ns(), epoch=epoch)
    remote.put(f"machines/{machine:016x}.json", body)


def _clean(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:255]


def init_repository(
    remote: Remote, machine: int, name: str, before_claim: Callable[[], None] = lambda: None
) -> RepositoryInfo:
    """Make a repository in the remote's folder, with `machine` (called `name`) as its writer.

    If a former call was cut off when nobody was the writer yet, this one goes on from there,
    whoever made it; behind the claim, which `before_claim` is called before, only one for the same
    machine does. Raises ExistsError if there is a repository already, ForeignError if there is
    something else.
    """
    info = _describe_repository(remote) if remote.is_empty() else read_repository(remote)
    writers = Writers(remote, info)
    newest = writers.look().newest
    if newest is not None and not _is_begun_by(remote, newest, machine):
        raise ExistsError(f"{remote.name} is a repository already; use clone")
    # With the place of its segments: else whoever waits for the first one waits for that as well,
    # which takes six round trips.
    remote.make_folders([log_folder(machine)])
    note_machine(remote, machine, name, "writer", 0)
    before_claim()
    try:
        writers.claim(machine, name)
    except DisplacedError as error:
        raise ExistsError(f"{remote.name} has just become a repository ({error})") from error
    return info


def _describe_repository(remote: Remote) -> RepositoryInfo:
    import uuid  # of no use once there is a repository

    info = RepositoryInfo(str(uuid.uuid4()), secrets.randbits(63))
    remote.make_root()
    body = encode_json(
        uuid=info.uuid,
        seed=info.seed,
        hash=_HASH,
        block_bytes=BLOCK_BYTES,
        piece_bytes=PIECE_BYTES,
    )
    try:
        remote.create(CONFIG_KEY, body)
    except ExistsError:
        # Somebody else begins at the same time; the claim decides.
        return read_repository(remote)
    return info


def _is_begun_by(remote: Remote, claim: Claim, machine: int) -> bool:
    """Whether a claim is that of a machine which has only just made this repository."""
    is_own = (claim.generation, claim.machine) == (1, machine)
    return is_own and next(remote.list(log_folder(machine)), None) is None


def read_repository(remote: Remote) -> RepositoryInfo:
    """The description of the repository in the remote's folder.

    Raises MissingError if the folder is missing or empty, ForeignError if it holds something
    else, FormatError if a newer syncer made it, CorruptError if its description is damaged.
    """
    try:
        data = remote.get(CONFIG_KEY, 0, MAX_JSON_BYTES + 1)
    except MissingError:
        if remote.is_empty():
            raise MissingError(f"there is no repository in {remote.name}") from None
        raise ForeignError(
            f"{remote.name} holds something else than a repository; choose an empty or a new folder"
        ) from None
    seed, block_bytes, piece_bytes, identity, hash_name = decode_json(
        data, CONFIG_KEY, ("seed", "block_bytes", "piece_bytes"), ("uuid", "hash")
    )
    if (block_bytes, piece_bytes, hash_name) != (BLOCK_BYTES, PIECE_BYTES, _HASH):
        raise FormatError(f"{remote.name} was made by a newer syncer; install that version")
    if not _UUID.fullmatch(identity):
        raise CorruptError(f"{CONFIG_KEY} is damaged: impossible uuid")
    return RepositoryInfo(identity, seed)


def is_description_of(info: RepositoryInfo, data: bytes) -> bool:
    """Whether `syncer.json` with this content is that repository's; see `Remote.expect`.

    Raises CorruptError if it is damaged, FormatError if a newer syncer made it.
    """
    (identity,) = decode_json(data, CONFIG_KEY, (), ("uuid",))
    return bool(identity == info.uuid)


def set_up_database(db: Database, info: RepositoryInfo, machine: int, role: str = "writer") -> None:
    """Make a new, empty database that of a machine of the repository; no epoch is known yet."""
    with db.transaction():
        db.set_meta("uuid", info.uuid)
        db.set_meta("seed", info.seed)
        db.set_meta("machine", machine)
        db.set_meta("next_node", node_base(machine) + 1)
        db.set_meta("role", role)
        db.set_meta("writer", machine if role == "writer" else 0)
        db.set_meta("generation", 1 if role == "writer" else 0)
        db.set_meta("published", 0)
        db.set_meta("checkpoint", 0)
        db.set_meta("parent_segment", "")


class Writers:
    """Reads and prolongs the chain of writers. Used by one thread at a time."""

    def __init__(self, remote: Remote, info: RepositoryInfo, until: int | None = None) -> None:
        """With `until`, the chain ends with this generation, as a machine that was displaced then
        knows it."""
        self._remote = remote
        self._info = info
        self._until = until
        # What is under writers/ never changes once it is there; only a remote that goes back to an
        # older state loses some, and may get others in their places.
        self._claims: dict[int, Claim] = {}
        self._starts: dict[int, tuple[int, int, str]] = {}
        # As of the last look: names, with sizes and times of change.
        self._listed: dict[str, tuple[int, float]] = {}
        self._marks: set[tuple[int, str]] = set()

    def look(self) -> Chain:
        """The chain as it is now: one listing, and each object in it is read only once.

        Raises CorruptError or FormatError.
        """
        entries = self._remote.list("writers")
        names = {entry.name: (entry.size_bytes, entry.mtime_seconds) for entry in entries}
        if len(names) > 2 * _MAX_GENERATIONS:
            raise CorruptError("writers/ holds impossibly many objects")
        marks = (re.fullmatch(r"([0-9a-f]{16})\.([0-9a-f]{32})", name) for name in names)
        self._marks = {(int(mark[1], 16), mark[2]) for mark in marks if mark}
        same = {name for name, found in names.items() if self._listed.get(name) == found}
        self._listed = names
        self._claims = {each: self._claims[each] for each in self._claims if _name(each) in same}
        self._starts = {
            each: self._starts[each] for each in self._starts if f"{_name(each)}.start" in same
        }
        for name in names:
            match = re.fullmatch(r"([0-9]{8})(\.start)?", name)
            if match is None or not int(match[1]):
                continue
            generation = int(match[1])
            if match[2] and generation not in self._starts:
                self._starts[generation] = self._read_start(generation)
            elif not match[2] and not self._is_read(generation):
                has_start = f"{name}.start" in names
                self._claims[generation] = self._read_claim(generation, may_be_empty=not has_start)
        if self._until is not None:
            links = tuple(link for link in self._links() if link.generation <= self._until)
            return Chain(self._claims.get(self._until), links)
        newest = self._claims[max(self._claims)] if self._claims else None
        return Chain(newest, self._links())

    def marks(self, machine: int) -> set[str]:
        """The tokens of a machine's marks as of the last look; see `identity`."""
        return {token for owner, token in self._marks if owner == machine}

    def _links(self) -> tuple[Link, ...]:
        settled = self._starts.keys() & self._claims.keys()
        generation = max(settled, default=0)
        links: list[Link] = []
        end: int | None = None
        while generation:
            if generation not in settled:
                raise CorruptError(f"{_key(generation)}: generation {generation} is missing")
            previous, after, parent = self._starts[generation]
            if end is not None and after > end:
                raise CorruptError(f"{_key(generation)}.start is damaged: impossible epoch")
            claim = self._claims[generation]
            links.append(Link(generation, claim.machine, claim.name, after, parent, end))
            generation, end = previous, after
        return tuple(reversed(links))

    def _is_read(self, generation: int) -> bool:
        return generation in self._claims and self._claims[generation].machine != 0

    def _read_claim(self, generation: int, *, may_be_empty: bool = False) -> Claim:
        key = _key(generation)
        data = self._remote.get(key, 0, MAX_JSON_BYTES + 1)
        if not data and may_be_empty:
            return Claim(generation, 0, "another computer")
        machine, identity, name = decode_json(data, key, ("machine",), ("uuid", "name"))
        self._check_uuid(key, identity)
        return Claim(generation, machine, name)

    def _read_start(self, generation: int) -> tuple[int, int, str]:
        key = f"{_key(generation)}.start"
        data = self._remote.get(key, 0, MAX_JSON_BYTES + 1)
        previous, after, identity, parent = decode_json(
            data, key, ("previous", "after"), ("uuid", "parent")
        )
        self._check_uuid(key, identity)
        # That it goes down is what ends the walk along the chain.
        if previous >= generation:
            raise CorruptError(f"{key} is damaged: impossible generation")
        return previous, after, parent

    def _check_uuid(self, key: str, identity: str) -> None:
        if identity != self._info.uuid:
            raise CorruptError(f"{key} belongs to another repository")

    def later_claim(self, generation: int) -> str:
        """The key of a claim that is there if, and only if, somebody has claimed a later
        generation: none is left out, and none goes away."""
        return _key(generation + 1)

    def claim(self, machine: int, name: str) -> Claim:
        """Claim the next generation; or take up the claim that this machine has made already.

        Raises DisplacedError if another machine does so at the same time, and wins.
        """
        newest = self.look().newest
        if newest is not None and newest.machine == machine:
            return newest
        generation = newest.generation + 1 if newest else 1
        body = encode_json(
            uuid=self._info.uuid, machine=machine, name=_clean(name), time_ns=time.time_ns()
        )
        if generation == 1:
            # There is nothing to follow first, and whoever wins begins at the same place.
            self._put_start(generation, 0, 0, "")
        try:
            self._remote.create(_key(generation), body)
        except ExistsError:
            winner = self._read_claim(generation, may_be_empty=True)
            raise DisplacedError(f"{winner.name} has taken over at the same time") from None
        return Claim(generation, machine, name)

    def settle(self, generation: int, previous: int, after: int, parent: str) -> None:
        """Write the start of a claimed generation: it goes on behind epoch `after` of `previous`.

        Raises DisplacedError if another machine has claimed since; the start then counts for
        nothing.
        """
        self._put_start(generation, previous, after, parent)
        newest = self.look().newest
        if newest is None or newest.generation != generation:
            name = newest.name if newest else "nobody"
            raise DisplacedError(f"{name} has taken over at the same time")

    def _put_start(self, generation: int, previous: int, after: int, parent: str) -> None:
        body = encode_json(uuid=self._info.uuid, previous=previous, after=after, parent=parent)
        self._remote.put(f"{_key(generation)}.start", body)


def _name(generation: int) -> str:
    return f"{generation:08d}"


def _key(generation: int) -> str:
    return f"writers/{_name(generation)}"


def mark_key(machine: int, token: str) -> str:
    """Where a data directory at work leaves its mark."""
    return f"writers/{machine:016x}.{token}"
