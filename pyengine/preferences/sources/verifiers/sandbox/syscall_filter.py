"""A seccomp filter: which calls of the kernel a program may not make, for good and in all children.

A socket ends the process (SIGSYS), so that it is seen whoever catches the error; the rest fails
with EPERM or ENOSYS. Numbers are the kernel's, for x86_64 and aarch64; others have no filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from pyengine.preferences.sources.verifiers.sandbox.kernel import (
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECCOMP,
    prctl,
)

_COLUMN = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_X32 = 0x40000000  # the calls of x86_64's other numbering begin here
_SECCOMP_MODE_FILTER = 2
_NEW_NAMESPACES = 0x7E020080
_CLONE = (56, 220)

_NETWORK = {"socket": (41, 198)}
_MISSING = {  # ENOSYS: libraries then take another way
    "clone3": (435, 435),  # its flags cannot be seen; clone's can
    "memfd_create": (319, 279),  # memory that no limit counts
    "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425),  # sockets and files past this filter
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_FORBIDDEN = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    "fanotify_init": (300, 262), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip
# Where the program shares processes and files with others of its user: their signals, and what
# Landlock does not see of files. None: aarch64 has no call of that name.
_SHARED: dict[str, tuple[int, int | None]] = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "prlimit64": (302, 261), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "ioprio_set": (251, 30),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip


def available() -> bool:
    """Whether the numbers of this machine's calls are known."""
    return os.uname().machine in _COLUMN


def instructions(machine: str, shared: bool) -> bytes:
    """The filter's program, in the kernel's form.

    shared  the program shares processes and files with others
    """
    column = _COLUMN[machine]
    denied: list[tuple[int | None, int]] = []
    denied += [(number[column], _KILL) for number in _NETWORK.values()]
    denied += [(number[column], _ERRNO | errno.ENOSYS) for number in _MISSING.values()]
    denied += [(number[column], _ERRNO | errno.EPERM) for number in _FORBIDDEN.values()]
    if shared:
        denied += [(number[column], _ERRNO | errno.EPERM) for number in _SHARED.values()]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCH[column]), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for call, verdict in denied:
        if call is not None:
            code += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, verdict)]
    # clone: the low half of its first argument holds the flags
    code += [(_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
    code += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(shared: bool) -> None:
    """This thread and all that come of it are under the filter from now on."""
    code = instructions(os.uname().machine, shared)
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))
