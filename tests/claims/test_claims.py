"""The experiments of benchmarks/claims: what docs/claims.md says is what they show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "claims"))

from claim import Claim, outcome  # noqa: E402
from claims_page import CLAIMS, NOT_RUN, REWARD_MODELS, kept, page  # noqa: E402
from reward_models import EXPECTED  # noqa: E402

PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
TABLE, _, OF_REWARD_MODELS = PAGE.partition(REWARD_MODELS)


def cells(row: str) -> list[str]:
    return row.strip("| ").split(" | ")


ROWS = [cells(line) for line in TABLE.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize(
    "claim",
    [pytest.param(c, marks=[pytest.mark.slow] if c.slow else []) for c in CLAIMS],
    ids=lambda claim: "-".join(claim.title.split()[:3]),
)
def test_the_page_says_what_an_experiment_shows(claim: Claim) -> None:
    """Whether it is shown, and on how many seeds."""
    [row] = [row for row in ROWS if row[0] == f"{claim.title} ({claim.paper})"]
    found = outcome(claim)
    print(found.line())
    assert found.verdict == row[2]


def test_the_page_has_a_row_for_every_claim_and_no_other() -> None:
    assert [row[0] for row in ROWS] == [f"{c.title} ({c.paper})" for c in CLAIMS]
    assert [row[1].replace("\\|", "|") for row in ROWS] == [c.criterion for c in CLAIMS]


def test_the_page_has_the_reward_models() -> None:
    rows = [cells(line) for line in OF_REWARD_MODELS.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == list(EXPECTED)
    assert [row[-1] for row in rows[2:]] == ["yes"] * 4


def test_a_page_written_without_a_model_keeps_the_reward_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "claims.md"
    assert kept(path) == NOT_RUN
    path.write_text(page([], "| a | b |\n"), encoding="utf-8")
    assert kept(path) == "| a | b |\n"
    path.write_text(page([], kept(path)), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == page([], "| a | b |\n")
    assert "table is kept" in capsys.readouterr().out


def test_the_figure_is_there() -> None:
    assert "](claims.svg)" in TABLE
    assert (ROOT / "docs" / "claims.svg").stat().st_size > 5000
