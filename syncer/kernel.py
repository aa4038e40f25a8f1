"""What libfuse does not tell the kernel (of libfuse 3: one flag at the start, and what has changed
since), and what the kernel does not tell libfuse: what a caller asked for, and whether it still
waits or has been killed."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import queue
import re
import signal
import struct
import threading
from pathlib import Path
from typing import Any

from syncer.vfs.caller import Request

log = logging.getLogger(__name__)

#: Flags with the same bits in libfuse's "want" and in the protocol: ASYNC_READ, ATOMIC_O_TRUNC,
#: EXPORT_SUPPORT, HAS_IOCTL_DIR, AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO, ASYNC_DIO,
#: WRITEBACK_CACHE, PARALLEL_DIROPS.
_SHARED_FLAGS = tuple(1 << bit for bit in (0, 3, 4, 11, 12, 13, 14, 15, 16, 18))
_BIG_WRITES = 1 << 5
_MAX_PAGES = 1 << 22
_HANDLE_KILLPRIV_V2 = 1 << 28
_FIRST_REQUEST = 2
_INVALIDATE_SECONDS = 1.0
#: machine -> number of unlink, unlinkat, rename, renameat and renameat2, as far as it has them.
_REQUESTS = {
    "x86_64": {
        "87": Request.REMOVAL, "263": Request.REMOVAL,
        "82": Request.RENAME, "264": Request.RENAME, "316": Request.RENAME,
    },
    "aarch64": {"35": Request.REMOVAL, "38": Request.RENAME, "276": Request.RENAME},
}  # fmt: skip
#: What the kernel holds may be much, and storing it may wait for room.
_HAND_OVER_SECONDS = 60.0
_SIGKILL_BIT = 1 << (signal.SIGKILL - 1)
#: In /proc/PID/stat, behind the name.
_FLAGS_FIELD, _EXIT_CODE_FIELD = 6, 49
_PF_EXITING = 4


def is_dying(thread_id: int) -> bool:
    """Whether a thread, of any process, is gone, or will be when the call that it is in returns.

    The kernel lets a killed program wait for the answer to a request that was handed out, and an
    interrupt would come for harmless signals as well. A signal that ends a program, whatever its
    number, becomes a SIGKILL that is pending in each of its threads: proc(5), SigPnd. 0 stands
    for the kernel itself, and for processes that can't be seen from here.
    """
    if not thread_id:
        return False
    try:
        status = Path(f"/proc/{thread_id}/status").read_text(errors="replace")
    except OSError:
        return _is_gone(thread_id)
    pending = re.findall(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)", status, re.MULTILINE)
    return any(int(mask, 16) & _SIGKILL_BIT for mask in pending) or _is_ending(thread_id)


def _is_ending(thread_id: int) -> bool:
    """Whether a signal has ended the thread, and it is about to close its files: then none is
    pending any more. What ends by itself waits for these: whoever calls it takes that for done.

    The flags and the exit code of proc(5), /proc/PID/stat; the latter is 0 if it may not be seen.
    """
    try:
        fields = Path(f"/proc/{thread_id}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return _is_gone(thread_id)
    is_exiting = int(fields[_FLAGS_FIELD]) & _PF_EXITING
    return bool(is_exiting and os.WIFSIGNALED(int(fields[_EXIT_CODE_FIELD])))


def _is_gone(thread_id: int) -> bool:
    """Not merely hidden, as /proc may be told to do with other users' processes."""
    try:
        os.kill(thread_id, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def answer_init(library: Any, fuse: int, conn: Any) -> None:
    """Answer the kernel's INIT in libfuse's place, with one flag that libfuse lacks before 3.17.

    Without HANDLE_KILLPRIV_V2 the kernel asks for the attribute security.capability before each
    single write(2), though it only gathers the written bytes: one callback for 128 bytes. With it,
    the file system clears the set-user-id and set-group-id bits itself (`Vfs.write`), and writes
    cost no callback: 50 times faster for 128 bytes, 7 times for 4 KiB.

    libfuse is in the middle of answering, and has fixed what it will do: what it can't know are
    flags that concern the kernel alone. Its own answer comes second, finds no request that waits
    (ENOENT) and is taken for one that was interrupted. The number of INIT, the first request of
    a connection, is the first even number. If anything is otherwise, nothing is lost: libfuse's
    answer counts. Source: fuse_init_out in the kernel's include/uapi/linux/fuse.h, protocol 7.36.
    """
    if conn.proto_major != 7 or conn.proto_minor < 36:
        return
    flags = _HANDLE_KILLPRIV_V2 | _BIG_WRITES | _MAX_PAGES
    flags |= sum(flag for flag in _SHARED_FLAGS if conn.want & flag)
    answer = struct.pack(
        "<IIIIHHIIHHI28x",
        conn.proto_major,
        conn.proto_minor,
        conn.max_readahead,
        flags,
        conn.max_background,
        conn.congestion_threshold,
        conn.max_write,
        conn.time_gran,
        conn.max_write // mmap.PAGESIZE,
        0,
        0,
    )
    library.fuse_get_session.restype = ctypes.c_void_p
    library.fuse_get_session.argtypes = [ctypes.c_void_p]
    library.fuse_session_fd.argtypes = [ctypes.c_void_p]
    descriptor = library.fuse_session_fd(library.fuse_get_session(fuse))
    header = struct.pack("<IiQ", 16 + len(answer), 0, _FIRST_REQUEST)
    try:
        os.write(descriptor, header + answer)
    except OSError as error:
        log.info("small writes will be slow: INIT could not be answered (%s)", error)


class Invalidator:
    """The thread `syncer-invalidator`: the kernel may answer a notice only when the request
    during which it was sent is over, so no request's own thread may send it."""

    def __init__(self, library: Any, fuse: int) -> None:
        self._invalidate_path = library.fuse_invalidate_path
        self._invalidate_path.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._fuse = fuse
        self._work: queue.SimpleQueue[tuple[list[bytes], threading.Event]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="syncer-invalidator", daemon=True).start()

    def run(self, paths: list[bytes], *, waits: bool) -> None:
        """Tell the kernel, and wait for it, but never long: it may be waiting for us."""
        done = threading.Event()
        self._work.put((paths, done))
        if waits:
            done.wait(_INVALIDATE_SECONDS)

    def hand_over(self, paths: list[bytes]) -> bool:
        """Have the kernel write what it holds of files, and forget it; False: it takes too long.

        In a thread of its own: others' notices need not wait for it.
        """
        thread = threading.Thread(
            target=self._tell, args=(paths,), name="syncer-hand-over", daemon=True
        )
        thread.start()
        thread.join(_HAND_OVER_SECONDS)
        return not thread.is_alive()

    def _run(self) -> None:
        while True:
            paths, done = self._work.get()
            try:
                self._tell(paths)
            except Exception:
                log.exception("the kernel could not be told what has changed")
            done.set()

    def _tell(self, paths: list[bytes]) -> None:
        for path in paths:
            self._invalidate_path(self._fuse, path)


def request_of(thread: int) -> Request:
    """Which call a program's thread waits for: proc(5), /proc/PID/syscall.

    UNKNOWN where the kernel does not let this process look (Yama's ptrace_scope, for users other
    than root; another PID namespace), or the machine's numbers are not known here.
    """
    try:
        with open(f"/proc/{thread}/syscall") as file:
            number = file.read().split(" ", 1)[0]
    except OSError:
        return Request.UNKNOWN
    return _REQUESTS.get(os.uname().machine, {}).get(number, Request.UNKNOWN)


def sleeps_of(thread: int) -> int | None:
    """How often a program's thread has gone to sleep, if it sleeps now: proc(5), /proc/PID/status,
    which everybody may read. None if it does not sleep, or can't be seen."""
    try:
        status = Path(f"/proc/{thread}/status").read_text(errors="replace")
    except OSError:
        return None
    is_asleep = re.search(r"^State:\s*[SD]", status, re.MULTILINE)
    sleeps = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
    return int(sleeps[1]) if is_asleep and sleeps else None
