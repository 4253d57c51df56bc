"""What a program may take before it is stopped."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Bounds of one program and its tests.

    wall_s        seconds for all of it
    cpu_s         seconds of CPU, of each process
    memory_bytes  address space, of each process
    processes     processes and threads at a time, the program's own included
    file_bytes    each file, and what a process prints
    folder_bytes  all files together, where the room is of its own
    open_files    open files of a process
    """

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_bytes: int = 512 << 20
    processes: int = 8
    file_bytes: int = 4 << 20
    folder_bytes: int = 32 << 20
    open_files: int = 64
