"""Reading, writing, truncating, mapping and syncing files."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
from pathlib import Path

from syncer.codec import BLOCK_BYTES
from tests.posix.case import CONTENT, Call, case, elsewhere, opened

TB = 1 << 40


def _file(call: object, flags: int = os.O_RDWR) -> Call:
    """A call that gets a descriptor of `file`."""

    def run(place: Path) -> object:
        with opened(place / "file", flags) as descriptor:
            return call(descriptor)  # type: ignore[operator]

    return run


def _hole(descriptor: int) -> bytes:
    os.pwrite(descriptor, b"end", 20)
    return os.pread(descriptor, 100, 0)


def _far(descriptor: int) -> tuple[int, bytes, bytes]:
    os.pwrite(descriptor, b"end", 3 * TB)
    size = os.fstat(descriptor).st_size
    return size, os.pread(descriptor, 4, TB), os.pread(descriptor, 4, 3 * TB)


def _nothing(descriptor: int) -> tuple[int, int]:
    return os.pwrite(descriptor, b"", 100), os.fstat(descriptor).st_size


def _across_blocks(descriptor: int) -> tuple[bytes, bytes]:
    os.pwrite(descriptor, b"across", BLOCK_BYTES - 3)
    return os.pread(descriptor, 6, BLOCK_BYTES - 3), os.pread(descriptor, 9, 3)


def _shrink_and_grow(descriptor: int) -> bytes:
    os.ftruncate(descriptor, 3)
    os.ftruncate(descriptor, 9)
    return os.pread(descriptor, 100, 0)


def _shrink_and_grow_blocks(descriptor: int) -> bool:
    os.pwrite(descriptor, b"x" * (2 * BLOCK_BYTES), 0)
    os.fsync(descriptor)
    os.ftruncate(descriptor, BLOCK_BYTES + 5)
    os.ftruncate(descriptor, 2 * BLOCK_BYTES)
    want = b"x" * (BLOCK_BYTES + 5) + bytes(BLOCK_BYTES - 5)
    return os.pread(descriptor, 2 * BLOCK_BYTES + 1, 0) == want


def _shrink_and_write_behind(descriptor: int) -> bytes:
    os.ftruncate(descriptor, 2)
    os.pwrite(descriptor, b"end", 5)
    return os.pread(descriptor, 100, 0)


def _truncate_through(name: str, size: int) -> Call:
    def run(place: Path) -> bytes:
        os.truncate(place / name, size)
        return (place / "file").read_bytes()

    return run


def _truncate_far(place: Path) -> tuple[int, bytes]:
    os.truncate(place / "file", 4 * TB)
    with opened(place / "file") as descriptor:
        return os.fstat(descriptor).st_size, os.pread(descriptor, 3, 4 * TB - 3)


def _ftruncate_read_only(place: Path) -> None:
    with opened(place / "file") as descriptor:
        os.ftruncate(descriptor, 1)


def _truncated_elsewhere(descriptor: int) -> bytes:
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    os.truncate(path, 3)
    os.pwrite(descriptor, b"x", 5)
    return Path(path).read_bytes()


def _vectors(descriptor: int) -> tuple[int, bytes, bytes]:
    count = os.writev(descriptor, [b"ab", b"", b"cde"])
    one, two = bytearray(2), bytearray(4)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.readv(descriptor, [one, two])
    return count, bytes(one), bytes(two)


def _shared_mapping(descriptor: int) -> tuple[bytes, bytes]:
    with mmap.mmap(descriptor, 0) as mapping:
        mapping[0:3] = b"CON"
        seen = os.pread(descriptor, 7, 0)
        os.pwrite(descriptor, b"!", 6)
        return seen, bytes(mapping)


def _mapping_after_close(place: Path) -> bytes:
    with opened(place / "file", os.O_RDWR) as descriptor:
        mapping = mmap.mmap(descriptor, 0)
    mapping[0:3] = b"CON"
    mapping.flush()
    mapping.close()
    return (place / "file").read_bytes()


def _private_mapping(descriptor: int) -> bytes:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[0:3] = b"CON"
    return os.pread(descriptor, 7, 0)


def _copy_range(place: Path) -> bytes:
    copy = opened(place / "copy", os.O_RDWR | os.O_CREAT)
    with opened(place / "file") as source, copy as target:
        os.copy_file_range(source, target, 4, 1, 2)
        return os.pread(target, 100, 0)


def _send(place: Path) -> bytes:
    copy = opened(place / "copy", os.O_RDWR | os.O_CREAT)
    with opened(place / "file") as source, copy as target:
        os.sendfile(target, source, 1, 100)
        return os.pread(target, 100, 0)


def _seeks(descriptor: int) -> tuple[int, int, int]:
    return (
        os.lseek(descriptor, -2, os.SEEK_END),
        os.lseek(descriptor, 1, os.SEEK_CUR),
        os.lseek(descriptor, 0, os.SEEK_HOLE),
    )


def _shared_offset(descriptor: int) -> bytes:
    other = os.dup(descriptor)
    try:
        os.read(other, 3)
        return os.read(descriptor, 100)
    finally:
        os.close(other)


def _allocate(descriptor: int) -> bytes:
    os.posix_fallocate(descriptor, 0, 10)
    return os.pread(descriptor, 100, 0)


def _sync_directory(place: Path) -> None:
    with opened(place / "dir") as descriptor:
        os.fsync(descriptor)
        os.fdatasync(descriptor)


def _mapped_by_two_processes(place: Path) -> tuple[bytes, bytes]:
    """What one process changes by a shared map, another one's map and reads show at once."""
    with opened(place / "file", os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as mapping:

        def change() -> bytes:
            with opened(place / "file", os.O_RDWR) as other, mmap.mmap(other, 0) as map_of_other:
                map_of_other[0:3] = b"CON"
                return bytes(mapping)

        return bytes(elsewhere(change)[:3]) + bytes(mapping[3:]), (place / "file").read_bytes()  # type: ignore[index]


def _mapped_and_unlinked(place: Path) -> bytes:
    """A map outlives the descriptor and the name."""
    with opened(place / "file", os.O_RDWR) as descriptor:
        mapping = mmap.mmap(descriptor, 0)
    os.unlink(place / "file")
    mapping[0:3] = b"CON"
    mapping.flush()
    found = bytes(mapping)
    mapping.close()
    return found


def _signal_of(touch: Call) -> Call:
    """The signal that ends a process which does this."""

    def run(place: Path) -> int:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            touch(place)
            os._exit(0)
        return os.WTERMSIG(os.waitpid(pid, 0)[1])

    return run


def _touch_behind_the_end(place: Path) -> None:
    with opened(place / "file", os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 3 * mmap.PAGESIZE)
        mapping = mmap.mmap(descriptor, 3 * mmap.PAGESIZE)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        assert mapping[0:7] == CONTENT
        mapping[2 * mmap.PAGESIZE]


def _writable_map_of_read_only(place: Path) -> None:
    with opened(place / "file") as descriptor:
        mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_WRITE)


def _beyond_the_limit(place: Path) -> tuple[int, int | None]:
    """A process's own limit on the size of files: what fits is written, then EFBIG."""

    def write() -> tuple[int, int | None]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        with opened(place / "file", os.O_WRONLY | os.O_APPEND) as descriptor:
            written = os.write(descriptor, b"x" * 100)
            try:
                os.write(descriptor, b"x")
            except OSError as error:
                return written, error.errno
        return written, None

    return elsewhere(write)  # type: ignore[return-value]


def _truncated_beyond_the_limit(place: Path) -> None:
    def truncate() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        os.truncate(place / "file", 11)

    elsewhere(truncate)


def _seen_by_others(place: Path) -> bytes:
    with opened(place / "file", os.O_WRONLY) as writer, opened(place / "file") as reader:
        os.write(writer, b"C")
        return os.read(reader, 100)


def _read_directory(place: Path) -> None:
    with opened(place / "dir") as descriptor:
        os.read(descriptor, 1)


CASES = [
    case("read: nothing at the end", _file(lambda fd: os.pread(fd, 5, 7)), b""),
    case("read: nothing behind the end", _file(lambda fd: os.pread(fd, 5, TB)), b""),
    case("read: fewer bytes near the end", _file(lambda fd: os.pread(fd, 5, 4)), b"ent"),
    case("read: EISDIR for a directory", _read_directory, fails=errno.EISDIR),
    case("write: a gap behind the end reads as zeros", _file(_hole), CONTENT + bytes(13) + b"end"),
    case("write: a gap of terabytes", _file(_far), (3 * TB + 3, bytes(4), b"end")),
    case("write: no bytes change nothing", _file(_nothing), (0, 7)),
    case("write: across the end of a block", _file(_across_blocks),
         (b"across", b"tent" + bytes(5))),
    case("write: seen at once through other descriptors", _seen_by_others, b"Content"),
    case("writev and readv keep the order", _file(_vectors), (5, b"ab", b"cden")),
    case("dup shares the offset", _file(_shared_offset), b"tent"),
    case("lseek from the end, and SEEK_HOLE at the end of data", _file(_seeks), (5, 6, 7)),
    case("lseek: EINVAL before the start", _file(lambda fd: os.lseek(fd, -1, os.SEEK_SET)),
         fails=errno.EINVAL),
    case("truncate: shrinking and growing shows zeros", _file(_shrink_and_grow),
         b"con" + bytes(6)),
    case("truncate: the same over blocks that are stored", _file(_shrink_and_grow_blocks), True),
    case("truncate: writing behind the new end shows zeros", _file(_shrink_and_write_behind),
         b"co" + bytes(3) + b"end"),
    case("truncate: by path is seen by an open descriptor", _file(_truncated_elsewhere),
         b"con" + bytes(2) + b"x"),
    case("truncate: through a symlink", _truncate_through("link", 3), b"con"),
    case("truncate: to nothing", _truncate_through("file", 0), b""),
    case("truncate: to terabytes", _truncate_far, (4 * TB, bytes(3))),
    case("truncate: EISDIR for a directory", _truncate_through("dir", 0), fails=errno.EISDIR),
    case("truncate: ENOENT for what is not there", _truncate_through("nothing", 0),
         fails=errno.ENOENT),
    case("truncate: EINVAL for less than nothing", _truncate_through("file", -1),
         fails=errno.EINVAL),
    case("ftruncate: EINVAL for a descriptor that only reads", _ftruncate_read_only,
         fails=errno.EINVAL),
    case("mmap: a shared mapping and the file are one", _file(_shared_mapping),
         (b"CONtent", b"CONten!")),
    case("mmap: a mapping lives on without its descriptor", _mapping_after_close, b"CONtent"),
    case("mmap: a private mapping changes nothing", _file(_private_mapping), CONTENT),
    case("mmap: shared by two processes", _mapped_by_two_processes, (b"CONtent", b"CONtent")),
    case("mmap: a mapping lives on without the file's name", _mapped_and_unlinked, b"CONtent"),
    case("mmap: SIGBUS behind the end of the file", _signal_of(_touch_behind_the_end),
         signal.SIGBUS),
    case("mmap: EACCES for a shared one to be written, of a descriptor that only reads",
         _writable_map_of_read_only, fails=errno.EACCES),
    case("write: EFBIG beyond the limit that the process has", _beyond_the_limit,
         (3, errno.EFBIG)),
    case("truncate: EFBIG beyond the limit that the process has", _truncated_beyond_the_limit,
         fails=errno.EFBIG),
    case("truncate: EFBIG for more than the largest file",
         _file(lambda fd: os.ftruncate(fd, (1 << 62) + 1)), fails=errno.EFBIG),
    case("copy_file_range copies", _copy_range, bytes(2) + b"onte"),
    case("sendfile copies", _send, b"ontent"),
    case("posix_fallocate makes the file longer, with zeros", _file(_allocate),
         CONTENT + bytes(3)),
    case("fsync and fdatasync of a file", _file(lambda fd: [os.fsync(fd), os.fdatasync(fd)]),
         [None, None]),
    case("fsync of a descriptor that only reads", _file(os.fsync, os.O_RDONLY)),
    case("fsync of a directory", _sync_directory),
]  # fmt: skip
