"""Landlock: below which folders a program may read, and below which it may write.

Needs no rights; in the kernel since 5.13, where the system has switched it on. Source:
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence

from pyengine.preferences.sources.verifiers.sandbox.kernel import (
    PR_SET_NO_NEW_PRIVS,
    prctl,
    syscall,
)

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_GET_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
# Bits of access that a kernel knows: 13 first, then REFER, TRUNCATE, (nothing,) IOCTL_DEV.
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST = 16


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """What the kernel offers; 0 for nothing."""
    try:
        return syscall(_CREATE, None, 0, _GET_VERSION)
    except OSError:
        return 0


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """From now on nothing outside of these can be opened, made, moved or removed."""
    everything = (1 << _KNOWN.get(version(), _NEWEST)) - 1
    handled = ctypes.c_uint64(everything)
    ruleset = syscall(_CREATE, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    for path in readable:
        _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
    for path in writable:
        _allow(ruleset, path, everything)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall(_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(folder).st_mode):
        access &= _OF_FILES
    rule = _Beneath(access, folder)
    syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(folder)
