"""What stat(2) tells of a node, in the structures of both bindings."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from syncer.metadata.node import Node
from syncer.statbuf import StatBuffer

#: Each process uses one of the bindings; which library is loaded makes no difference here.
_DECLARED = """
import json
import {module} as binding
print(json.dumps([name for name, _ in binding.c_stat._fields_]))
"""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Stat(ctypes.Structure):
    """As glibc has it for x86-64, in another order and with a narrow field."""

    _fields_ = (
        ("st_dev", ctypes.c_ulong),
        ("st_mode", ctypes.c_ushort),
        ("st_ino", ctypes.c_ulong),
        ("st_uid", ctypes.c_uint),
        ("st_gid", ctypes.c_uint),
        ("st_nlink", ctypes.c_uint),
        ("st_rdev", ctypes.c_ulong),
        ("st_mtimespec", _Timespec),
        ("st_atimespec", _Timespec),
        ("st_ctimespec", _Timespec),
        ("st_size", ctypes.c_long),
        ("st_blksize", ctypes.c_long),
        ("st_blocks", ctypes.c_long),
        ("reserved", ctypes.c_long * 3),
    )


class _Ordered(ctypes.Structure):
    """The order of x86-64."""

    _fields_ = tuple(
        (name, dict(_Stat._fields_)[name])
        for name in (
            "st_dev", "st_ino", "st_nlink", "st_mode", "st_uid", "st_gid", "st_rdev", "st_size",
            "st_blksize", "st_blocks", "st_atimespec", "st_mtimespec", "st_ctimespec", "reserved",
        )
    )  # fmt: skip


NODE = Node(
    (1 << 62) + 7, 9, 0o100644, 4_000_000_000, 1001, 2049, 3, 5_000_000_001,
    1_700_000_000_123_456_789, -1, 1_600_000_000_000_000_001, 1_500_000_000_000_000_000, None, 12,
)  # fmt: skip


@pytest.mark.parametrize("structure", [_Stat, _Ordered])
def test_every_field_is_where_the_structure_has_it(
    structure: type[_Stat] | type[_Ordered],
) -> None:
    stat: Any = structure()
    ctypes.memset(ctypes.addressof(stat), 0xFF, ctypes.sizeof(stat))
    StatBuffer(structure).fill(stat, NODE)
    assert (stat.st_ino, stat.st_mode, stat.st_nlink) == (NODE.id, NODE.mode, 3)
    assert (stat.st_uid, stat.st_gid, stat.st_rdev) == (4_000_000_000, 1001, 2049)
    assert (stat.st_size, stat.st_blksize) == (5_000_000_001, 131072)
    assert stat.st_blocks == 12 * 2048, "the blocks that are no holes, in units of 512 bytes"
    assert (stat.st_atimespec.tv_sec, stat.st_atimespec.tv_nsec) == (1_700_000_000, 123_456_789)
    assert (stat.st_mtimespec.tv_sec, stat.st_mtimespec.tv_nsec) == (-1, 999_999_999)
    assert (stat.st_ctimespec.tv_sec, stat.st_ctimespec.tv_nsec) == (1_600_000_000, 1)
    assert (stat.st_dev, list(stat.reserved)) == (0, [0, 0, 0])


def test_no_more_blocks_than_the_size_are_told() -> None:
    stat = _Stat()
    StatBuffer(_Stat).fill(stat, NODE._replace(size=1025))
    assert stat.st_blocks == 3


@pytest.mark.parametrize(("module", "library"), [("fuse", "2"), ("mfusepy", "3")])
def test_both_bindings_declare_what_is_written(module: str, library: str) -> None:
    name = {"2": "libfuse.so.2", "3": "libfuse3.so.3"}[library]
    done = subprocess.run(
        [sys.executable, "-c", _DECLARED.format(module=module)],
        env={**os.environ, "FUSE_LIBRARY_PATH": name},
        capture_output=True,
        text=True,
        check=True,
    )
    declared = json.loads(done.stdout)
    assert {field for field, _ in _Stat._fields_} - {"reserved"} <= set(declared)
