"""The seccomp filter's program, read as the kernel reads it: what each call comes to."""

from __future__ import annotations

import errno
import struct

import pytest

from pyengine.preferences.sources.verifiers.sandbox.syscall_filter import instructions

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
READ = {"x86_64": 0, "aarch64": 63}
SOCKET = {"x86_64": 41, "aarch64": 198}
SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
CLONE = {"x86_64": 56, "aarch64": 220}
KILL_CALL = {"x86_64": 62, "aarch64": 129}
PTRACE = {"x86_64": 101, "aarch64": 117}
CLONE3, IO_URING_SETUP = 435, 425


def refused(number: int) -> int:
    return 0x00050000 | number


def verdict(machine: str, call: int, *, shared: bool = False, arch: int = 0, flags: int = 0) -> int:
    """Runs the program on struct seccomp_data {nr, arch, instruction pointer, arguments}."""
    data = struct.pack("=IIQQ", call, arch or ARCH[machine], 0, flags)
    code = list(struct.iter_unpack("=HBBI", instructions(machine, shared)))
    place, accumulator = 0, 0
    while True:
        kind, yes, no, k = code[place]
        place += 1
        if kind == 0x06:  # return
            return int(k)
        if kind == 0x20:  # load a word
            [accumulator] = struct.unpack_from("=I", data, k)
            continue
        holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: accumulator & k != 0}[kind]
        place += yes if holds else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_calls_come_to(machine: str) -> None:
    assert verdict(machine, READ[machine]) == ALLOW
    assert verdict(machine, SOCKET[machine]) == KILL
    assert verdict(machine, SOCKETPAIR[machine]) == ALLOW  # reaches nobody
    assert verdict(machine, PTRACE[machine]) == refused(errno.EPERM)
    for call in (CLONE3, IO_URING_SETUP):
        assert verdict(machine, call) == refused(errno.ENOSYS)
    assert verdict(machine, KILL_CALL[machine]) == ALLOW
    assert verdict(machine, KILL_CALL[machine], shared=True) == refused(errno.EPERM)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_process_may_begin_others_but_no_namespaces(machine: str) -> None:
    fork, thread, new_user, new_net = 0x01200011, 0x3D0F00, 0x10000011, 0x40000000
    assert [verdict(machine, CLONE[machine], flags=f) for f in (fork, thread)] == [ALLOW] * 2
    for flags in (new_user, new_net, 0x80):  # the last one: time
        assert verdict(machine, CLONE[machine], flags=flags) == refused(errno.EPERM)


def test_other_numberings_of_calls_end_the_process() -> None:
    """i386's and x32's socket, which have other numbers."""
    assert verdict("x86_64", 359, arch=0x40000003) == KILL
    assert verdict("x86_64", 0x40000000 | 41) == KILL
    assert verdict("aarch64", 281, arch=0x40000028) == KILL
