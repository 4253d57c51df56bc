"""What docs/arithmetic.md measures: questions held out by content, tokens counted, its table."""

from __future__ import annotations

import sys
from pathlib import Path

import pyengine as pe
from pyengine.objectives import DPO, NLL
from pyengine.preferences import Comparison, Feedback, Group, Response

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from adding_model import HELD_OUT, sums  # noqa: E402
from arithmetic_improvement import TAUGHT, Counting, kept, smallest_gain, table  # noqa: E402
from gvm_beside_raft import table as gvm_table  # noqa: E402


def contents(questions):
    """The numbers of each sum in any order, once its answer is checked."""
    found = set()
    for question, answer in questions:
        a, b = map(int, question.removesuffix("=").split("+"))
        assert int(answer) == a + b
        found.add((min(a, b), max(a, b)))
    return found


def test_no_sum_is_in_two_lists_in_any_order():
    data = sums(0, TAUGHT)
    parts = [contents(part) for part in (data.taught, data.train, data.held_out)]
    assert [len(part) for part in parts] == [TAUGHT, 5050 - TAUGHT - HELD_OUT, HELD_OUT]
    assert len(set().union(*parts)) == 5050
    assert sums(1, TAUGHT).held_out != data.held_out


class Engine:
    def generate(self, prompts):
        return [Group([1], [Response([1, 2]), Response([3])]) for _ in prompts]

    def update(self, batch, objective):
        return {}


def test_tokens_that_are_learned_from_are_counted_once():
    """Of a prompt of 3 tokens and responses of 2, 1 and 4: a pair of the first and the last, twice,
    is 9; the two that were judged are 6."""
    counting = Counting(Engine())
    counting.engine.generate(["a", "b"])
    assert counting.sampled == 6
    group = Group([1, 2, 3], [Response([1, 2]), Response([1]), Response([1, 2, 3, 4])])
    pairs = [Comparison(0, 0, 2), Comparison(0, 2, 0)]
    counting.engine.update(pe.Preferences([group], pairs), DPO())
    assert counting.learned == 9
    feedback = Feedback.from_rewards([[1.0, 0.0, None]])
    counting.engine.update(pe.Preferences([group], (), feedback), NLL())
    assert counting.learned == 9 + 6


def test_the_page_has_the_table_of_the_rows():
    rows = kept(ROOT / "benchmarks" / "arithmetic_rows.jsonl")
    page = (ROOT / "docs" / "arithmetic.md").read_text(encoding="utf-8")
    assert len(rows) == 12
    assert table(rows) in page
    assert smallest_gain(rows) in page


def test_the_page_has_the_table_of_gvms_rows():
    rows = kept(ROOT / "benchmarks" / "gvm_rows.jsonl")
    page = (ROOT / "docs" / "arithmetic.md").read_text(encoding="utf-8")
    assert len(rows) == 15
    assert gvm_table(rows) in page


def test_updates_to_a_level_are_compared():
    """RAFT's level is the mean of .4, .5 and .6, reached after 15 updates, by GVM after 10."""
    raft = {"curve": {"0": 0.2, "5": 0.3, "10": 0.4, "15": 0.5, "20": 0.6}, "seconds": 1}
    gvm = {"curve": {"0": 0.2, "5": 0.4, "10": 0.5, "15": 0.6, "20": 0.7}, "seconds": 2}
    text = gvm_table({("raft", 0): raft, ("gvm", 0): gvm})
    assert "| 0 | 0.200 | 0.500 | 0.600 | 15 | 10 | 1.50 |" in text
    assert "for 1 of 1 seeds: shown" in text
