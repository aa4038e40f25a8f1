"""What a long history costs: `python -m tests.bench.history [--files N] [--epochs N]`.

A history is built through the tree's own calls: files in folders of a thousand, and then epochs
that each change as many files as make every file change once. The same present without its past is
what it is compared with. Figures are processor time, so that a busy machine does not matter, and
ratios: how fast it is with the history, where 1 is as fast as without.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from syncer.blocks.fetch import block_key
from syncer.codec import BLOCK_BYTES, split_ids
from syncer.maintain.figures import freed
from syncer.metadata import naming, pruning
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.history import History
from syncer.metadata.moments import Moments
from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree
from tests.mounted import BINDINGS, mounted

_FOLDER_FILES = 1000
_FILE = stat.S_IFREG | 0o644
_FOLDER = stat.S_IFDIR | 0o755
_SECOND_NS = 10**9


class _Collection:
    """One metadata database, opened anew: nothing of it is in memory."""

    def __init__(self, path: Path) -> None:
        self.db = Database(path)
        if self.db.get_meta("machine") is None:
            self.db.set_meta("machine", 7)
            self.db.set_meta("next_node", 100)
            self.db.set_meta("published", 0)
        self.now_ns = 1_700_000_000 * _SECOND_NS
        self.epochs = Epochs(self.db, lambda: self.now_ns)
        self.contents = Contents(self.db, self.epochs)
        self.tree = Tree(self.db, self.epochs, self.contents)
        self.history = History(self.db)
        self.moments = Moments(self.db, self.epochs, self.tree, self.history, lambda: self.now_ns)

    def close_epoch(self) -> int:
        self.now_ns += 60 * _SECOND_NS
        return self.epochs.close()

    def publish(self) -> None:
        """As if all of it were on a server."""
        with self.db.transaction():
            self.db.execute("DELETE FROM outbox")
            self.db.set_meta("published", self.epochs.open - 1)

    def write(self, node: Node, block_id: bytes) -> None:
        """What a file's flush commits."""
        with self.db.transaction():
            self.contents.set_blocks(node.id, {0: block_id})
            self.tree.save(node.changed(size=BLOCK_BYTES, mtime_ns=self.now_ns))


@contextmanager
def _opened(path: Path) -> Iterator[_Collection]:
    collection = _Collection(path)
    with closing(collection.db):
        yield collection


def _build(path: Path, files: int, epochs: int) -> None:
    with _opened(path) as made:
        made.tree.make_root(1000, 1000)
        _fill(made, files, epochs)
        made.publish()
        made.db.checkpoint()


def _fill(made: _Collection, files: int, epochs: int) -> None:
    draw = random.Random(1)
    root = made.tree.node(ROOT)
    assert root is not None
    numbers: list[int] = []
    for first in range(0, files, _FOLDER_FILES):
        with made.db.transaction():
            folder = made.tree.create(root, b"%06d" % first, _FOLDER, 1000, 1000)
            for number in range(first, min(files, first + _FOLDER_FILES)):
                node = made.tree.create(folder, b"%06d.jpg" % number, _FILE, 1000, 1000)
                made.write(node, draw.randbytes(16))
                numbers.append(node.id)
    made.close_epoch()
    draw.shuffle(numbers)
    share = max(1, files // epochs)
    for epoch in range(1, epochs):
        with made.db.transaction():
            for number in numbers[epoch * share % files :][:share]:
                changed = made.tree.node(number)
                assert changed is not None
                made.write(changed, draw.randbytes(16))
            # One file changes each time, as a log does.
            log = made.tree.node(numbers[0])
            assert log is not None
            made.write(log, draw.randbytes(16))
        made.close_epoch()


def _without_past(path: Path, copy: Path) -> None:
    shutil.copyfile(path, copy)
    with _opened(copy) as made:
        with made.db.transaction():
            for table in ("node", "name", "content", "xattr"):
                made.db.execute(f"DELETE FROM {table}_past")
            made.db.execute("DELETE FROM epoch WHERE seq < (SELECT max(seq) FROM epoch)")
        made.db.execute("VACUUM")
        made.db.checkpoint()


def _seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def _now_operations(collection: _Collection, count: int) -> dict[str, float]:
    """Seconds for each kind of operation on the present, in the same order for each collection."""
    tree, draw = collection.tree, random.Random(2)
    folders = [node for _, node in tree.entries(ROOT, b"", 10_000)]
    files = [
        (folder.id, name)
        for folder in draw.sample(folders, min(len(folders), 20))
        for name, _ in tree.entries(folder.id, b"", 2 * _FOLDER_FILES)
    ]
    chosen = draw.sample(files, min(count, len(files)))

    def look() -> None:
        for parent, name in chosen:
            number = tree.lookup(parent, name)
            assert number is not None and tree.node(number) is not None

    def write() -> None:
        for parent, name in chosen:
            number = tree.lookup(parent, name)
            node = tree.node(number) if number else None
            assert node is not None
            collection.write(node, draw.randbytes(16))

    def rename() -> None:
        for parent, name in chosen:
            tree.rename(parent, name, parent, name + b"~")

    def create() -> None:
        above = tree.node(chosen[0][0])
        assert above is not None
        for number in range(count):
            tree.create(above, b"new%d" % number, _FILE, 1000, 1000)

    def unlink() -> None:
        for parent, name in chosen:
            tree.unlink(parent, name + b"~", keep=False)

    tree.forget()
    works = {"look": look, "write": write, "rename": rename, "create": create, "unlink": unlink}
    return {kind: _seconds(work) for kind, work in works.items()}


def _walk(entries: Callable[[int, bytes], list[tuple[bytes, Node]]]) -> int:
    waiting, count = [ROOT], 0
    while waiting:
        folder, after = waiting.pop(), b""
        while rows := entries(folder, after):
            after = rows[-1][0]
            count += len(rows)
            waiting += [node.id for _, node in rows if node.is_dir]
    return count


def _tell(what: str, figure: str) -> None:
    print(f"{what:52} {figure}", flush=True)


def _compare_now(folder: Path, rounds: int = 10) -> None:
    best: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        # Whoever comes second finds the processor's caches as the other has left them.
        for kind in ("short", "long")[:: 1 if number % 2 else -1]:
            copy = folder / f"{kind}-{number}"
            shutil.copyfile(folder / kind, copy)
            with _opened(copy) as made:
                for name, seconds in _now_operations(made, 2000).items():
                    least = best.setdefault(name, {}).get(kind, 1e9)
                    best[name][kind] = min(least, seconds)
            for end in ("", "-wal", "-shm"):
                copy.with_name(copy.name + end).unlink(missing_ok=True)
    for name, seconds_by in best.items():
        _tell(f"{name} now, with a history", f"{seconds_by['short'] / seconds_by['long']:.2f}")


def _look_back(path: Path) -> None:
    with _opened(path) as made:
        made.now_ns = made.history.time_ns(made.history.newest())
        middle = made.history.newest() // 2
        name = made.moments.written(middle)
    with _opened(path) as made:
        made.now_ns = 2_000_000_000 * _SECOND_NS

        def enter() -> None:
            epoch = made.moments.find(name)
            assert made.moments.is_fixed(name) and made.history.node(ROOT, epoch)
            assert made.history.entries(ROOT, b"", 256, epoch)

        _tell("enter a moment", f"{_seconds(enter) * 1000:.1f} ms")
    with _opened(path) as made:
        ((parent, name_bytes),) = made.db.query(
            "SELECT parent, name FROM name WHERE node ="
            " (SELECT id FROM node_past GROUP BY id ORDER BY count(*) DESC LIMIT 1)"
        )
        versions = made.history.versions_of_name(parent, name_bytes)
        seconds = _seconds(lambda: made.history.versions_of_name(parent, name_bytes))
        _tell(f"versions of a file that has {len(versions):,}", f"{seconds * 1000:.1f} ms")
    with _opened(path) as made:
        now: list[float] = []
        then: list[float] = []
        for _ in range(3):
            now.append(
                _seconds(lambda: _walk(lambda folder, after: made.tree.entries(folder, after, 256)))
            )
            then.append(
                _seconds(
                    lambda: _walk(
                        lambda folder, after: made.history.entries(folder, after, 256, middle)
                    )
                )
            )
        _tell("list all folders of a moment, in the metadata alone", f"{min(now) / min(then):.2f}")


def _processor_seconds(pid: int) -> float:
    """What a process has used so far: proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _find(folder: Path, files: int, epochs: int) -> None:
    """`find -size`, which asks for attributes as well, over a mount of such a collection."""
    with mounted(folder, BINDINGS[-1], limit="100") as mount:
        mount.umount()
        with _opened(mount.data / "metadata.db") as made:
            _fill(made, files, epochs)
            made.publish()
            middle = made.history.newest() // 2
            made.now_ns = 2_000_000_000 * _SECOND_NS
            then = mount.path / ".snapshots" / made.moments.written(middle)
        used: dict[Path, list[float]] = {mount.path: [], then: []}
        for _ in range(5):
            for top, seconds in used.items():
                # A new mount, so that the kernel remembers nothing.
                mount.remount()
                before = _processor_seconds(mount.pid)
                subprocess.run(["find", top, "-size", "+9G"], check=True)
                seconds.append(_processor_seconds(mount.pid) - before)
        ratio = min(used[mount.path]) / min(used[then])
        _tell(f"find in a moment of {files:,} files, as of find now", f"{ratio:.2f}")


def _prune_half(path: Path) -> None:
    """Prune the older half of the moments while another thread looks and writes."""
    with _opened(path) as made:
        newest = made.history.newest()
        made.now_ns = made.history.time_ns(newest) + 60 * _SECOND_NS
        middle = newest // 2
        estimate = _seconds(lambda: freed(made.db, middle, ()))
        _tell("say what it frees", f"{estimate:.1f} s")
        with made.db.transaction():
            pruning.decide(made.tree, middle, ())
        made.close_epoch()
        made.publish()
        found = pruning.pending(made.db)
        assert found is not None
        is_over = threading.Event()
        waits: list[float] = []

        def use() -> None:
            draw = random.Random(3)
            numbers = [row[0] for row in made.db.query("SELECT id FROM node LIMIT 5000")]
            while not is_over.is_set():
                began = time.monotonic()
                node = made.tree.node(draw.choice(numbers))
                if node is not None and node.is_file:
                    made.write(node, draw.randbytes(16))
                waits.append(time.monotonic() - began)

        user = threading.Thread(target=use)
        steps: list[float] = []
        rows = 0
        began = time.monotonic()
        user.start()
        try:
            for work in (
                pruning.forget_moments(made.db, found, lambda *span: None),
                pruning.remove_unseen(made.db, lambda *span: None),
            ):
                while True:
                    start = time.thread_time()
                    count = next(work, None)
                    if count is None:
                        break
                    rows += count
                    steps.append(time.thread_time() - start)
                    # As `Pruner` does, so that others have their turn.
                    time.sleep(min(steps[-1], 0.05))
            took = time.monotonic() - began
        finally:
            is_over.set()
            user.join()
        pruning.finish(made.db, found)
        _tell(f"prune half of it: {rows:,} rows", f"{sum(steps):.1f} s, by the clock {took:.1f} s")
        _tell("its longest step", f"{max(steps) * 1000:.0f} ms")
        waits.sort()
        half, most = waits[len(waits) // 2] * 1000, waits[len(waits) * 99 // 100] * 1000
        _tell(
            f"meanwhile {len(waits):,} writes: half, 99 of 100 within",
            f"{half:.1f} ms, {most:.0f} ms",
        )

        def read_names() -> None:
            with made.db.snapshot() as reader:
                for first_bytes in naming.passes(reader):
                    naming.named(reader, first_bytes)

        _tell("look which blocks are named", f"{_seconds(read_names):.1f} s")


def _prune_mounted(folder: Path, files: int, epochs: int) -> None:
    """The command, with an object for each block in a local remote, while the mount is in use."""
    with mounted(folder, BINDINGS[-1], limit="100", settings={"grace": "0"}) as mount:
        mount.umount()
        with _opened(mount.data / "metadata.db") as made:
            made.now_ns = time.time_ns() - (epochs + 1) * 60 * _SECOND_NS
            with made.db.transaction():
                # Time never goes back from here on.
                made.db.execute("UPDATE epoch SET time_ns = ?", (made.now_ns,))
            _fill(made, files, epochs)
            made.publish()
            rows = made.db.query("SELECT data FROM content UNION SELECT data FROM content_past")
        for block_id in {key for (data,) in rows for key in split_ids(data)}:
            path = Path(mount.remote) / block_key(block_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 1000)
        mount.mount()
        is_over = threading.Event()
        waits: list[float] = []

        def use() -> None:
            while not is_over.is_set():
                began = time.monotonic()
                (mount.path / f"new{len(waits) % 100}").write_bytes(b"x" * 5000)
                waits.append(time.monotonic() - began)

        user = threading.Thread(target=use)
        user.start()
        began, before = time.monotonic(), _processor_seconds(mount.pid)
        try:
            said = mount.run("prune", mount.path, "--keep-within", f"{max(1, epochs // 120)}h")
        finally:
            took = time.monotonic() - began
            used = _processor_seconds(mount.pid) - before
            is_over.set()
            user.join()
        print(said.strip())
        _tell("the command, with the server's part", f"{took:.1f} s, of the processor {used:.1f} s")
        waits.sort()
        half, most = waits[len(waits) // 2] * 1000, waits[len(waits) * 99 // 100] * 1000
        _tell(
            f"meanwhile {len(waits):,} files written: half, 99 of 100 within",
            f"{half:.1f} ms, {most:.0f} ms",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = _seconds(lambda: _build(folder / "long", arguments.files, arguments.epochs))
        _tell(f"build {arguments.epochs:,} epochs, {arguments.files:,} files", f"{seconds:.0f} s")
        _without_past(folder / "long", folder / "short")
        size = (folder / "long").stat().st_size / (folder / "short").stat().st_size
        _tell("size of the database, as of that without", f"{size:.2f}")
        _compare_now(folder)
        _look_back(folder / "long")
        (folder / "mounted").mkdir()
        _find(folder / "mounted", arguments.files // 5, arguments.epochs // 5)
        _prune_half(folder / "long")
        (folder / "pruned").mkdir()
        _prune_mounted(folder / "pruned", arguments.files, arguments.epochs)


if __name__ == "__main__":
    main()
