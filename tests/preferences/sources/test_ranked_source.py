"""Tournaments as a source: batched rounds, counts, missing verdicts, answers that are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.binding import bind, bound, unbound
from pyengine.preferences.comparators.by_reward import ByReward
from pyengine.preferences.comparators.comparator import Compared
from pyengine.preferences.comparators.simulated_annotator import SimulatedAnnotator
from pyengine.preferences.rankings.available import RANKINGS
from pyengine.preferences.rankings.borda import Borda
from pyengine.preferences.rankings.knockout import Knockout
from pyengine.preferences.rankings.win_rate import WinRate
from pyengine.preferences.sources.available import SOURCES
from pyengine.preferences.sources.ranked_source import RankedSource, entrants
from pyengine.recipes.schema.build import make_part, part
from pyengine.recipes.schema.strict_yaml import Document
from pyengine.registry import Registry


def last_token(groups):
    return Feedback.from_rewards([[float(r.token_ids[-1]) for r in g.responses] for g in groups])


class Watched:
    """Prefers the larger last token, and keeps every batch it was asked; silent about a token."""

    def __init__(self, silent=()):
        self.batches, self.silent = [], set(silent)

    def compare(self, groups, duels):
        self.batches.append(list(duels))
        found, errors = [], []
        for g, i, j in duels:
            a, b = (groups[g].responses[k].token_ids[-1] for k in (i, j))
            missing = {a, b} & self.silent
            found.append(None if missing else 0.5 if a == b else float(a > b))
            errors += [f"[watched] no answer on {token}" for token in missing]
        return Compared(found, errors, {"calls": float(len(duels))})


def make(*rows):
    return [Group([g], [Response([1, k]) for k in row]) for g, row in enumerate(rows)]


def test_a_knockout_of_16_asks_15_comparisons_in_4_batches_for_64_prompts():
    watched = Watched()
    groups = make(*[range(16)] * 64)
    feedback = RankedSource(watched, Knockout())(groups)
    assert len(watched.batches) == 4
    assert [len(batch) for batch in watched.batches] == [64 * 8, 64 * 4, 64 * 2, 64]
    of = [sum(g == group for batch in watched.batches for g, _, _ in batch) for group in range(64)]
    assert of == [15] * 64
    assert [max(range(16), key=row.__getitem__) for row in feedback.rewards] == [15] * 64
    assert feedback.counts_by_name["comparisons"] == 64 * 15
    assert feedback.counts_by_name["rounds"] == 4
    assert feedback.counts_by_name["calls"] == 64 * 15
    assert feedback.counts_by_name["no_verdict"] == 0


@pytest.mark.parametrize("name", RANKINGS.names())
def test_every_ranking_finds_the_best_of_groups_of_any_size(name):
    rows = [[3, 1, 2], [], [5], [4, 9, 6, 8, 7], [2, 1]]
    feedback = RankedSource(ByReward(last_token, scale=0.1), RANKINGS.make(name))(make(*rows))
    for row, rewards, status in zip(rows, feedback.rewards, feedback.status, strict=True):
        if len(row) < 2:
            assert status == ["abstain"] * len(row)
            continue
        known = {k: r for k, r in enumerate(rewards) if r is not None}
        assert max(known, key=known.__getitem__) == row.index(max(row))
        assert feedback.counts_by_name["no_verdict"] == 0


@pytest.mark.parametrize("name", RANKINGS.names())
def test_a_response_without_a_verdict_has_no_reward(name):
    """Token 4 is never judged; the best of the others still is the best."""
    feedback = RankedSource(Watched(silent=[4]), RANKINGS.make(name))(make([1, 4, 3, 2]))
    [rewards], [status] = feedback.rewards, feedback.status
    assert rewards[1] is None
    assert status[1] in ("error", "abstain")
    assert feedback.counts_by_name["no_verdict"] > 0
    assert feedback.errors[0] == "[watched] no answer on 4"
    if name != "knockout":  # where 4 may have kept one of the others from a match
        known = {k: r for k, r in enumerate(rewards) if r is not None}
        assert max(known, key=known.__getitem__) == 2


def test_the_matrix_of_all_pairs():
    source = RankedSource(Watched(silent=[9]), Borda())
    assert source.gives.matrix
    [matrix] = source(make([1, 3, 9])).preference_matrix
    assert matrix == [[0.5, 0.0, None], [1.0, 0.5, None], [None, None, 0.5]]
    assert not RankedSource(Watched(), WinRate(opponents=1)).gives.matrix
    assert RankedSource(Watched(), Knockout())(make([1, 3])).preference_matrix is None


def test_the_same_answers_enter_once_and_share_a_score():
    texts = ["so #### 7", "then #### 7 ", "#### 8", "none", "none"]
    [group] = make([7, 7, 8, 1, 2])
    for response, text in zip(group.responses, texts, strict=True):
        response.text = text
    assert entrants(group, "####") == [[0, 1], [2], [3], [4]]
    assert entrants(group, "") == [[0], [1], [2], [3, 4]]
    watched = Watched()
    feedback = RankedSource(watched, Knockout(), answer_after="####")([group])
    assert feedback.counts_by_name["identical"] == 1
    assert feedback.counts_by_name["comparisons"] == 3
    assert feedback.rewards[0][0] == feedback.rewards[0][1]
    matrix = RankedSource(Watched(), Borda(), answer_after="####")([group]).preference_matrix[0]
    assert matrix[0][1] is None  # they never met
    assert matrix[2][0] == matrix[2][1] == 1.0


def test_a_response_without_tokens_does_not_enter():
    [group] = make([2, 1])
    group.responses.append(Response([]))
    feedback = RankedSource(Watched(), Borda())([group])
    assert feedback.status == [["value", "value", "abstain"]]
    assert feedback.preference_matrix[0][2] == [None, None, None]


def test_asking_again_asks_the_source_again():
    """A judge that failed is asked anew by the loop; what it said before is not kept."""
    calls = []

    def source(groups):
        calls.append(len(groups))
        return last_token(groups)

    ranked, groups = RankedSource(ByReward(source), Knockout()), make([1, 2, 3, 4])
    assert ranked(groups).rewards == ranked(groups).rewards
    assert calls == [1, 1]


def test_the_rankings_are_all_there():
    assert isinstance(RANKINGS, Registry)
    assert RANKINGS.names() == [
        "borda", "bradley_terry", "copeland", "curatron", "enhanced_borda", "knockout",
        "pairs_beam", "sparse_windows", "swiss", "win_rate",
    ]  # fmt: skip


@dataclass(frozen=True)
class OfModel:
    """Rewards by a model that a run binds."""

    name: ClassVar[str] = "of_model"
    model: Any = bound("model")

    def __call__(self, groups):
        return self.model(groups)


def test_names_within_its_parts_are_bound():
    """From a recipe: the model of the source of the comparator of the source."""
    gold = SimulatedAnnotator((OfModel("policy"), OfModel("reference")), annotators=2)
    made = RankedSource(gold, Knockout())
    assert unbound(made) == [("policy", "model"), ("reference", "model")]
    names = SimpleNamespace(model=lambda name: last_token)
    filled = bind(made, names)
    assert unbound(filled) == []
    assert filled(make([1, 3, 2])).rewards[0][1] == 2.0
    recipe = Document(Path("recipe.yaml"), {}, {})
    data = {"name": "ranked", "comparator": "by_reward", "ranking": {"name": "knockout"}}
    with pytest.raises(ConfigError, match=r"source\.comparator: .*by_reward needs source"):
        part(SOURCES, data, recipe, "source")
    of_function = {"name": "by_reward", "source": {"name": "function", "function": "vader"}}
    data = {"name": "ranked", "comparator": of_function, "ranking": "borda"}
    from_recipe = make_part(SOURCES, part(SOURCES, data, recipe, "source"))
    assert unbound(from_recipe) == [("vader", "function")]
    assert from_recipe.gives.matrix
