"""docs/systems.md is what its generator writes of the rows, recipes, claims and results on file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from systems.catalogue import BASELINES, System, load_families  # noqa: E402
from systems.page import Known, claims_of, known, page, recipes_of, row  # noqa: E402
from systems.results import ends, figure, merged, tokens_sampled, written  # noqa: E402

from pyengine.cli.parts import _REGISTRIES  # noqa: E402
from pyengine.recipes.schema.summary import Summary  # noqa: E402

FAMILIES = load_families()
SYSTEMS = [s for family in FAMILIES for s in family.systems]
FACTS = known()


def test_the_page_is_what_the_generator_writes() -> None:
    """`python benchmarks/systems/page.py --write docs/systems.md` makes it so."""
    assert (ROOT / "docs" / "systems.md").read_text(encoding="utf-8") == page(FAMILIES, FACTS)


def test_there_are_125_published_systems_once_each() -> None:
    published = [s for f in FAMILIES if f.file != BASELINES for s in f.systems]
    assert len(published) == 125
    assert [s.name for s in published if not s.title] == []
    names = [name for s in SYSTEMS for name in s.names]
    assert len(set(names)) == len(names)
    papers = [s.paper for s in SYSTEMS if s.paper is not None]
    assert len(set(papers)) == len(papers)
    assert [p for p in papers if not re.fullmatch(r"arXiv:\d{4}\.\d{5}", p)] == []


def test_every_packaged_recipe_is_of_a_system() -> None:
    names = {name for s in SYSTEMS for name in s.names}
    assert sorted(set(FACTS.recipes) - names) == []


def test_every_system_has_a_recipe_or_says_what_is_missing() -> None:
    """And one with a recipe has an experiment on its claim, or says why there is none."""
    without = [s for s in SYSTEMS if not recipes_of(s, FACTS)]
    assert [s.name for s in without if not (s.missing or s.parts)] == []
    quiet = [s for s in SYSTEMS if not (FACTS.claims.get(s.paper or "") or s.not_shown)]
    assert [s.name for s in quiet if s not in without] == []


def test_parts_that_rows_name_are_there() -> None:
    names = {registry.kind: registry.names() for registry in _REGISTRIES}
    named = [(k, n) for s in SYSTEMS for k, parts in s.parts.items() for n in parts]
    assert [(kind, name) for kind, name in named if name not in names[kind]] == []


def test_results_are_of_recipes_that_are_there() -> None:
    recipes = {r.name for several in FACTS.recipes.values() for r in several}
    assert sorted(set(FACTS.results) - recipes) == []


def test_claims_are_read_with_their_papers_and_verdicts() -> None:
    text = (
        "| claim | criterion | shown | figures |\n|---|---|---|---|\n"
        "| a (b) holds (arXiv:2401.00001) | x < 1 | yes (5 of 5 seeds) | x 0.5 |\n"
        "| c \\| d (arXiv:2401.00001) | y | **no** (1 of 5 seeds) | y 2 |\n"
    )
    assert claims_of(text) == {"arXiv:2401.00001": [("a (b) holds", True), ("c | d", False)]}


def test_a_row_has_recipe_parts_claim_figures_and_command() -> None:
    system = System("SPO", "It converges.", title="Title", paper="arXiv:2401.00001")
    summary = Summary(
        "spo", "does", "SPO", None, None, "online", {"objective": "dpo", "reward": "vader"},
        ("packaged:p.jsonl",),
    )  # fmt: skip
    result = {
        "recipe": "spo", "status": "done", "seconds": 40.6,
        "first": {"eval/objective/scores": 0.25, "eval/objective/scores_stderr": 0.125},
        "last": {"eval/objective/scores": 0.5},
    }  # fmt: skip
    facts = Known({"SPO": [summary]}, {"arXiv:2401.00001": [("a | b", False)]}, {"spo": result})
    assert row(system, facts) == (
        "| **SPO**<br>[Title](https://arxiv.org/abs/2401.00001) (arXiv:2401.00001) "
        "| recipe `spo`: loop online; objective dpo; reward vader; data p.jsonl "
        "| It converges. "
        "| small run `spo`: held-out reward 0.250 ± 0.125 to 0.500, 41 s<br>**not** shown: a \\| b "
        "| `pyengine align spo --small` |"
    )


def test_a_row_without_recipe_says_so() -> None:
    system = System(
        "T", "Claim.", title="Title", parts={"samplers": ["gold"]}, missing="A tree search."
    )
    assert row(system, Known({}, {})) == (
        "| **T**<br>Title (number not verified) | no recipe<br>samplers: gold<br>"
        "missing: A tree search. | Claim. | not shown: no recipe runs it "
        "| `pyengine parts samplers gold` |"
    )


def test_figures_are_first_and_last_values() -> None:
    rows = [
        {"round": 0, "eval/loss": 0.7},
        {"round": 1, "loss": 0.69, "tokens_per_s": 50.0, "time/generate_s": 2.0, "other": 1},
        {"round": 2, "loss": None, "eval/loss": 0.6, "tokens_per_s": 10.0, "time/generate_s": 0.5},
    ]
    first, last = ends(rows)
    assert first == {"eval/loss": 0.7, "loss": 0.69}
    assert last == {"eval/loss": 0.6, "loss": 0.69}
    assert tokens_sampled(rows) == 105
    done = {"status": "done", "first": first, "last": last}
    assert figure(done) == "held-out loss 0.700 to 0.600"
    assert figure({"status": "failed", "message": "no"}) == "failed: no"


def test_new_results_take_the_place_of_old_ones() -> None:
    old = [{"recipe": "b", "seconds": 1}, {"recipe": "c", "seconds": 1}]
    new = [{"recipe": "c", "seconds": 2}, {"recipe": "a", "seconds": 2}]
    rows = merged(old, new)
    assert [(r["recipe"], r["seconds"]) for r in rows] == [("a", 2), ("b", 1), ("c", 2)]
    assert written(rows[:1]) == '{"rows": [\n{"recipe": "a", "seconds": 2}\n]}\n'


@pytest.mark.parametrize("text", ["works", "TODO"])
def test_no_row_promises(text: str) -> None:
    """What runs, tests say; what is shown, figures."""
    texts = [t or "" for s in SYSTEMS for t in (s.missing, s.not_shown)]
    assert [t for t in texts if text in t] == []
