"""The experiments of benchmarks/claims that take a moment: what docs/claims.md says is what is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "claims"))

import estimation  # noqa: E402
import iteration  # noqa: E402
from claim import Claim, outcome  # noqa: E402

PAGE = (ROOT / "docs" / "claims.md").read_text()
CLAIMS = [*iteration.CLAIMS, *estimation.CLAIMS]
SLOW = ("IPO stays", "the likelihood of whole rankings", "rDPO undoes")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title.split()[0])
def test_the_page_says_what_an_experiment_shows(claim: Claim) -> None:
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| {claim.title} (")]
    if claim.title.startswith(SLOW):
        pytest.skip("seconds: benchmarks/claims/run.py runs it")
    shown = row.split(" | ")[2].startswith("yes")
    assert outcome(claim).passed == shown
