"""Memory that the engine takes in one piece."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pyengine.engine.weights.arena import Arena, resident_bytes, untouched

SMAPS = Path("/proc/self/smaps")
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


@pytest.mark.skipif(not (SMAPS.exists() and LARGE_PAGES.exists()), reason="Linux tells of mappings")
def test_untouched_memory_may_have_large_pages() -> None:
    memory = untouched(8 << 20)
    at = memory.data_ptr()
    for text in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        first, last = (int(x, 16) for x in text.split(" ", 1)[0].split("-"))
        if first <= at < last:
            break
    else:
        pytest.fail("no mapping holds the memory")
    assert text.split()[1] == "rw-p", (
        "shared memory has no large pages unless the system is told so"
    )
    flags = re.search(r"^VmFlags:(.*)$", text, re.MULTILINE)
    assert flags is not None
    assert "hg" in flags[1].split()


def test_an_arena_that_fits_gives_zeros_that_do_not_overlap() -> None:
    sizes = [1, 63, 64, 65, 4096, 7]
    arena = Arena.fitting(4 * n for n in sizes)
    tensors = [arena.take((n,), torch.float32) for n in sizes]
    base = tensors[0].untyped_storage().data_ptr()
    assert all(t.untyped_storage().data_ptr() == base for t in tensors)
    assert all(t.data_ptr() % 64 == 0 and not t.any() for t in tensors)
    for i, tensor in enumerate(tensors):
        tensor.fill_(i + 1)
    assert all(torch.equal(t, torch.full_like(t, i + 1)) for i, t in enumerate(tensors))


def test_what_was_written_is_resident():
    memory = untouched(64 << 20)
    assert resident_bytes(memory) == 0
    memory[5 << 20] = 1
    few = resident_bytes(memory)
    assert 0 < few <= 4 << 20  # one page, which may be a large one
    memory.fill_(1)
    assert resident_bytes(memory) == 64 << 20
