"""The two Python bindings of libfuse, made equal and quick.

`fusepy` (libfuse 2) and `mfusepy` (libfuse 3) each have a class FUSE that registers callbacks
and runs libfuse's loop. The subclasses here replace its methods wherever something would be lost
or slow: bytes are moved between libfuse's buffers and ours without a copy in Python, handles reach
truncate, chmod and utimens, rename keeps its flags, directories are listed with attributes, and
only an errno ever leaves a callback.

Sources: libfuse's fuse.h and fuse_common.h for flags and structures; what was measured stands in
docs/performance.md.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from syncer.errors import MountError
from syncer.kernel import Invalidator, answer_init, is_dying, request_of, sleeps_of
from syncer.libfuse import MountOptions, library_of
from syncer.metadata.node import Node
from syncer.mount import CODEC, Operations, Refusal
from syncer.statbuf import StatBuffer
from syncer.threadstate import keep
from syncer.vfs.caller import Caller
from syncer.vfs.calls import Caching, Target

log = logging.getLogger(__name__)

_CAP_ATOMIC_O_TRUNC = 1 << 3
_CAP_SPLICE_READ = 1 << 9
_CAP_READDIRPLUS = 1 << 13
_CAP_READDIRPLUS_AUTO = 1 << 14
_CAP_WRITEBACK_CACHE = 1 << 16
_CAP_HANDLE_KILLPRIV = 1 << 20
_FILL_DIR_PLUS = 2
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_MAX_WRITE_BYTES = 1 << 20
#: Requests that the kernel may have under way through its cache (reads ahead of and for programs,
#: write-back); local reads need some of them while others wait for the network: see `flights`.
#: With more, many small writes at once slow each other down.
_MAX_BACKGROUND = 128
#: Above it the kernel begins no further write-back of its own accord.
_CONGESTED_BACKGROUND = 48
#: Callers that wait for the network, or for room, must never use up libfuse's threads: its default
#: is 10. Beyond the second number, those without work end: the kernel hands its requests to all
#: that wait for one by turns, so each further one is one more stack, and one more buffer of 1 MiB,
#: that is not in the processor's cache.
_MAX_THREADS = 1024
_IDLE_THREADS = 8
_ENTRIES_PER_CALL = 128
#: With so many names of a folder go their attributes, for which a program that wants names alone
#: waits three times as long; with more only where it looks at the files while it reads on.
_NAMES_WITH_ATTRIBUTES = 10_000


def serve(
    version: int,
    operations_of: Callable[[Callable[[], Caller]], Operations],
    mountpoint: str,
    options: MountOptions,
) -> None:
    """Mount and serve until the file system is unmounted.

    `operations_of` makes the operations, given a function that tells who calls. Raises
    MountError if the mount fails, and what kept the operations from starting. Run it in a thread
    that is not the main one: then neither libfuse nor its bindings touch the process's signal
    handlers.
    """
    binding = _load(version)
    binding.options = options
    failures: list[BaseException] = []
    binding.failures = failures
    module = binding.module

    def caller() -> Caller:
        uid, gid, _ = module.fuse_get_context()
        return Caller(uid, gid)

    def is_abandoned() -> bool:
        try:
            return is_dying(module.fuse_get_context()[2])
        except ValueError:
            # Not one of libfuse's threads.
            return False

    operations = operations_of(caller)
    operations.set_abandoned_probe(is_abandoned)
    operations.set_asked(
        lambda: request_of(module.fuse_get_context()[2]),
        lambda: module.fuse_get_context()[2],
        sleeps_of,
    )
    arguments = _arguments(version, module, options)
    try:
        binding(
            _Callable(operations) if version == 2 else operations,
            _latin(mountpoint),
            encoding=CODEC,
            foreground=True,
            **arguments,
        )
    except RuntimeError as error:
        if not failures:
            raise MountError(f"{mountpoint} could not be mounted (libfuse says {error})") from error
    if failures:
        raise failures[0]


def _load(version: int) -> Any:
    """Our subclass of a binding's FUSE, for one libfuse version.

    Both bindings decide at import time which library to use, so one process uses one of them.
    """
    library = library_of(version)
    if library is None:
        raise MountError(f"libfuse {version} is missing")
    os.environ["FUSE_LIBRARY_PATH"] = library
    if version == 3:
        import mfusepy  # type: ignore[import-untyped]

        return _subclass(_Calls3, mfusepy)
    import fuse

    return _subclass(_Calls2, fuse)


def _subclass(calls: type[_Common], module: Any) -> Any:
    attributes = {"module": module, "stat": StatBuffer(module.c_stat)}
    return type("Fuse", (calls, module.FUSE), attributes)


def _arguments(version: int, module: Any, options: MountOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "fsname": _latin(options.source).replace("\\", "\\\\").replace(",", "\\,"),
        "subtype": options.subtype,
        "default_permissions": True,
    }
    seconds = _cache_seconds(options)
    if version == 2:
        arguments.update(
            use_ino=True,
            big_writes=True,
            max_write=131072,
            max_readahead=1 << 20,
            # This library can't make the kernel forget a hard link's attributes.
            attr_timeout=0.0,
            entry_timeout=seconds,
            max_background=_MAX_BACKGROUND,
            congestion_threshold=_CONGESTED_BACKGROUND,
        )
    elif module.fuse_version_minor >= 12:
        arguments.update(max_threads=_MAX_THREADS, max_idle_threads=_IDLE_THREADS)
    for option in options.extra:
        key, _, value = option.partition("=")
        arguments[key] = value or True
    return arguments


def _latin(path: str) -> str:
    """A path in the codec in which both bindings hand strings to libfuse."""
    return os.fsencode(path).decode(CODEC)


def _cache_seconds(options: MountOptions) -> float:
    """How long the kernel may trust names and attributes: all changes pass through it."""
    return 3600.0 if options.is_writer else 1.0


class _Callable:
    """fusepy calls its operations object with the operation's name."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operations, name)

    def __call__(self, operation: str, *arguments: Any) -> Any:
        return getattr(self._operations, operation)(*arguments)


def _times(buffer: Any, now_ns: int) -> tuple[int | None, int | None]:
    """(atime, mtime) from libfuse's two timespecs; None where one is to stay."""

    def one(timespec: Any) -> int | None:
        if timespec.tv_nsec == _UTIME_OMIT:
            return None
        if timespec.tv_nsec == _UTIME_NOW:
            return now_ns
        return int(timespec.tv_sec) * 1_000_000_000 + int(timespec.tv_nsec)

    if not buffer:
        return now_ns, now_ns
    return one(buffer.contents.actime), one(buffer.contents.modtime)


def _or_refuse(init: Callable[..., None]) -> Callable[..., None]:
    """For a callback `init`: libfuse would take its error for data of ours, and serve all the
    same."""

    @functools.wraps(init)
    def run(fuse: _Common, *arguments: Any) -> None:
        try:
            init(fuse, *arguments)
        except BaseException as error:
            fuse.refuse(error)

    return run


class _Common:
    """What both subclasses share. `self.operations` is an Operations (fusepy: wrapped)."""

    operations: Operations | Refusal
    options: MountOptions
    failures: list[BaseException]
    """What kept the operations from starting; `serve` raises it."""
    module: Any
    """The binding's own module."""
    stat: StatBuffer

    def _wrapper(self, function: Callable[..., int | None], *arguments: Any) -> int:
        """Run a callback; only an errno leaves it."""
        keep()
        try:
            result = function(*arguments) or 0
            if stale := self.operations.stale_paths():
                self.invalidate(stale)
            return result
        except Exception as error:
            return self._failed(error, function.__name__)
        except BaseException:
            # Whatever it is (SystemExit in a library), libfuse's C code can't take it.
            log.exception("%s was interrupted", function.__name__)
            return -errno.EIO

    def _failed(self, error: Exception, operation: str) -> int:
        """What libfuse gets for a call that failed. What it had changed by then is to show."""
        number = self.operations.error_number(error, operation)
        try:
            if stale := self.operations.stale_paths():
                # Pages that are being written can't be forgotten before the call is over.
                self.invalidate(stale, waits=operation != "write")
        except Exception as second:
            self.operations.error_number(second, operation)
        return -number

    def refuse(self, error: BaseException) -> None:
        """The operations could not start: end libfuse's loop, and serve nothing until it ends."""
        self.failures.append(error)
        # Before libfuse answers the kernel: requests come as soon as it does.
        self.operations = Refusal()
        self.module.fuse_exit()

    def invalidate(self, paths: list[bytes], *, waits: bool = True) -> None:
        """Have the kernel forget what it knows of these paths, if the binding can tell it."""

    def open(self, path: bytes, fip: Any) -> None:
        info = fip.contents
        info.fh, caching = self.operations.open_file(path, info.flags)
        info.keep_cache = caching is Caching.KEEP
        info.direct_io = caching is Caching.NONE

    def create(self, path: bytes, mode: int, fip: Any) -> None:
        info = fip.contents
        info.fh = self.operations.create_file(path, mode, info.flags)
        info.keep_cache = 1

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        info = fip.contents
        # The kernel names an owner of locks where it keeps nothing of what it reads.
        if info.lock_owner:
            return self.operations.read_into(info.fh, _memory(buf, size), offset)
        return self.operations.read_pages(info.fh, _memory(buf, size), offset)

    def write(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        info = fip.contents
        if not info.writepage:
            appends = bool(info.flags & os.O_APPEND)
            return self.operations.write_from(info.fh, _memory(buf, size), offset, appends)
        written = self.operations.take_pages(info.fh, _memory(buf, size), offset)
        # The kernel can't forget these pages before this call is over; `flush` waits for it.
        if stale := self.operations.stale_paths():
            self.invalidate(stale, waits=False)
        return written

    def _getattr(self, path: bytes | None, buf: Any, fip: Any) -> None:
        self.stat.fill(buf.contents, self.operations.attributes(_target(path, fip)))

    def _chown(self, target: Target, uid: int, gid: int) -> None:
        # -1 comes as the largest unsigned number.
        self.operations.set_owner(target, _signed(uid), _signed(gid))

    def _utimens(self, target: Target, buf: Any) -> None:
        self.operations.set_times(target, *_times(buf, self.operations.now_ns()))

    def _readdir(self, fill: Callable[[bytes, Node, int], int], offset: int, handle: int) -> None:
        """Deliver entries from number `offset` on until libfuse's buffer is full.

        Each entry goes with the number of the next one. With 0 instead, libfuse would keep the
        whole directory in memory and look every name up once more.
        """
        if offset == 0:
            self.operations.rewind(handle)
        if offset < 2:
            for number, node in enumerate(self.operations.dot_entries(handle)):
                if number >= offset and fill(b"." * (number + 1), node, number + 1):
                    return
        position = max(0, offset - 2)
        is_full = False
        while not is_full:
            first, rows = self.operations.entries(handle, position, _ENTRIES_PER_CALL)
            position = first
            is_full = not rows
            for name, node in rows:
                if fill(name, node, position + 3):
                    is_full = True
                    break
                position += 1
            self.operations.delivered(handle, [name for name, _ in rows[: position - first]])


def _memory(pointer: Any, size: int) -> memoryview:
    """libfuse's buffer as a writable view, without a copy; valid during the callback only."""
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    return memoryview((ctypes.c_char * size).from_address(address or 0)).cast("B")


def _target(path: bytes | None, fip: Any) -> Target:
    """What a call is about: the open file if libfuse names one, else the path."""
    if fip:
        return int(fip.contents.fh)
    if path is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return path


def _signed(number: int) -> int:
    return -1 if number == 0xFFFF_FFFF else number


class _Calls3(_Common):
    """What the subclass of mfusepy's FUSE adds."""

    #: How often the kernel has asked for attributes; two threads may count one for two.
    _looks = 0

    @_or_refuse
    def init_fuse_3(self, conn: Any, config: Any) -> None:
        settings, wanted = config.contents, conn.contents
        seconds = _cache_seconds(self.options)
        settings.use_ino = 1
        settings.nullpath_ok = 1
        settings.entry_timeout = settings.attr_timeout = seconds
        settings.negative_timeout = seconds if self.options.is_writer else 0.0
        flags = wanted.want | wanted.capable & _CAP_READDIRPLUS
        if self.options.writeback and self.options.is_writer:
            flags |= wanted.capable & _CAP_WRITEBACK_CACHE
        # Data is wanted in memory, not in a pipe; the kernel clears suid bits by chmod; and between
        # an open with O_TRUNC and the truncation it looks whether the file is a running program.
        unwanted = _CAP_SPLICE_READ | _CAP_HANDLE_KILLPRIV | _CAP_ATOMIC_O_TRUNC
        # Left to choose, the kernel asks for bare names once a program reads on without looking at
        # what it has read. Most that want attributes read all names first: cp, find, rsync, tar.
        wanted.want = flags & ~(unwanted | _CAP_READDIRPLUS_AUTO)
        wanted.max_write = _MAX_WRITE_BYTES
        wanted.max_background = _MAX_BACKGROUND
        wanted.congestion_threshold = _CONGESTED_BACKGROUND
        wanted.time_gran = 1
        library = self.module._libfuse
        fuse = library.fuse_get_context().contents.fuse
        self._invalidator = Invalidator(library, fuse)
        self.operations.set_cache_dropper(self._invalidator.hand_over)
        # Before the answer: libfuse's other threads serve requests as soon as the kernel has it.
        self.operations.start()
        answer_init(library, fuse, wanted)

    def invalidate(self, paths: list[bytes], *, waits: bool = True) -> None:
        self._invalidator.run(paths, waits=waits)

    def getattr_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> None:
        self._looks += 1
        self._getattr(path, buf, fip)

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> None:
        self.operations.set_mode(_target(path, fip), mode)

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> None:
        self._chown(_target(path, fip), uid, gid)

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> None:
        self.operations.set_size(_target(path, fip), length)

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> None:
        self._utimens(_target(path, fip), buf)

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> None:
        self.operations.move(old, new, flags)

    def fallocate(self, path: bytes | None, mode: int, offset: int, length: int, fip: Any) -> None:
        self.operations.allocate(fip.contents.fh, mode, offset, length)

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        return self.operations.seek(fip.contents.fh, offset, whence)

    def copy_file_range(
        self,
        path_in: bytes | None,
        fip_in: Any,
        offset_in: int,
        path_out: bytes | None,
        fip_out: Any,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        source, target = fip_in.contents.fh, fip_out.contents.fh
        return self.operations.copy(source, offset_in, target, offset_out, length)

    def readdir_fuse_3(
        self, path: bytes | None, buf: Any, filler: Any, offset: int, fip: Any, flags: int
    ) -> None:
        stat = self.module.c_stat()
        is_looked_at = self.operations.is_looked_at(fip.contents.fh, self._looks)

        def fill(name: bytes, node: Node, next_offset: int) -> int:
            if is_looked_at or next_offset <= _NAMES_WITH_ATTRIBUTES:
                self.stat.fill(stat, node)
                return int(filler(buf, name, stat, next_offset, _FILL_DIR_PLUS))
            stat.st_ino = node.id
            stat.st_mode = node.mode
            return int(filler(buf, name, stat, next_offset, 0))

        self._readdir(fill, offset, fip.contents.fh)


class _Calls2(_Common):
    """What the subclass of fusepy's FUSE adds."""

    @_or_refuse
    def init(self, conn: Any) -> None:
        self.operations.start()

    def getattr(self, path: bytes, buf: Any) -> None:
        self._getattr(path, buf, None)

    def fgetattr(self, path: bytes | None, buf: Any, fip: Any) -> None:
        self._getattr(path, buf, fip)

    def chmod(self, path: bytes, mode: int) -> None:
        self.operations.set_mode(path, mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self._chown(path, uid, gid)

    def truncate(self, path: bytes, length: int) -> None:
        self.operations.set_size(path, length)

    def ftruncate(self, path: bytes | None, length: int, fip: Any) -> None:
        self.operations.set_size(_target(path, fip), length)

    def utimens(self, path: bytes, buf: Any) -> None:
        self._utimens(path, buf)

    def rename(self, old: bytes, new: bytes) -> None:
        self.operations.move(old, new, 0)

    def readdir(self, path: bytes | None, buf: Any, filler: Any, offset: int, fip: Any) -> None:
        stat = self.module.c_stat()

        def fill(name: bytes, node: Node, next_offset: int) -> int:
            self.stat.fill(stat, node)
            return int(filler(buf, name, stat, next_offset))

        self._readdir(fill, offset, fip.contents.fh)
