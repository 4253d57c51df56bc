"""What one rank leaves and what several leave: the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks.together import run_ranks

HERE = Path(__file__).parent
Digests = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> Digests:
    found: Digests = json.loads(run_ranks(1, [HERE / "learning_job.py", tiny_model]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_leave_what_one_leaves(alone: Digests, tiny_model: Path, size: int) -> None:
    found: Digests = json.loads(run_ranks(size, [HERE / "learning_job.py", tiny_model]))
    assert found == alone


@pytest.mark.slow
def test_micro_batches_change_no_bit_of_a_shard(alone: Digests) -> None:
    for name in ("dpo", "aot"):
        for what in ("weights", "moments", "samples"):
            assert alone[name][what] == alone[f"{name} in parts"][what]
    assert len({digests["weights"] for digests in alone.values()}) == len(alone) - 2
