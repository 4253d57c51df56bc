"""A head fitted to pairs on hidden states: its optimum, its spread, what it gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from loops.loop_cases import ByDigest, make

from pyengine.errors import CheckpointError, ConfigError, DataError
from pyengine.loops import ExpertIteration, Online
from pyengine.objectives import DPO, NLL
from pyengine.preferences import Comparison, Feedback, Group, Response
from pyengine.preferences.sources.bradley_terry_fit import fitted_head
from pyengine.preferences.sources.reward_probe import RewardProbe


def test_the_fit_is_where_the_gradient_is_zero():
    """sum_i w_i sigmoid(-d_i theta) d_i = l2 (theta - start), for few pairs of many numbers."""
    random = np.random.default_rng(0)
    d, w = random.normal(size=(12, 30)), random.integers(0, 3, 12).astype(float)
    start = random.normal(size=30)
    theta = fitted_head(d, w, start, 0.3)
    slope = (w / (1 + np.exp(d @ theta))) @ d - 0.3 * (theta - start)
    assert np.abs(slope).max() < 1e-8
    large = fitted_head(100 * d, w, np.zeros(30), 1e-4)  # pairs that can be separated
    assert np.isfinite(large).all()
    assert ((d @ large)[w > 0] > 0).all()


@dataclass
class Letters:
    """A model whose state of a response counts its letters a and b."""

    max_positions: int = 100
    tokenizer: Any = None

    def __post_init__(self):
        self.tokenizer = self

    def encode_prompt(self, prompt):
        return [ord(c) for c in prompt]

    def encode_completion(self, prompt, completion):
        return self.encode_prompt(prompt), [ord(c) for c in completion]

    def decode_completion(self, ids):
        return "".join(map(chr, ids))

    def hidden_states(self, groups, pool="last"):
        return [
            [
                torch.tensor([float(r.token_ids.count(ord(c))) for c in "ab"])
                if r.token_ids
                else None
                for r in g.responses
            ]
            for g in groups
        ]


ROWS = [
    {"prompt": "p", "chosen": "aa", "rejected": "bb"},
    {"prompt": "q", "chosen": "aab", "rejected": "abb"},
    {"prompt": "r", "chosen": "a", "rejected": "b"},
]


def probe(**changes):
    return RewardProbe(ROWS, model=Letters(), **({"heads": 5} | changes))


GROUPS = [Group([1], [Response([ord(c) for c in text]) for text in ("aaa", "ab", "bbb", "")])]


def test_particles_prefer_what_the_pairs_do():
    found = probe(prior=0.1)(GROUPS)
    particles = [found.columns[f"particle_{t + 1}"][0] for t in range(5)]
    assert all(row[0] > row[1] > row[2] and row[3] is None for row in particles)
    assert found.rewards[0][0] == pytest.approx(sum(row[0] for row in particles) / 5)
    assert found.status == [["value", "value", "value", "abstain"]]
    values = [row[0] for row in particles]
    assert found.columns["reward_std"][0][0] == pytest.approx(np.std(values))
    assert found.counts_by_name == {"pairs_fitted": 3, "pairs_dropped": 0}
    assert probe(prior=0.1)(GROUPS).columns == found.columns
    assert probe(prior=0.1, seed=1)(GROUPS).columns != found.columns
    assert probe(most_rows=2)(GROUPS).counts_by_name["pairs_fitted"] == 2


def test_dropout_drops_the_same_in_every_response():
    """One head; a pass that keeps a place doubles it: r(ab) is the mean of r(aa) and r(bb)."""
    found = probe(heads=1, dropout=0.5, passes=8)(
        [Group([1], [Response([ord(c) for c in text]) for text in ("aa", "ab", "bb")])]
    )
    rows = [found.columns[f"particle_{t + 1}"][0] for t in range(8)]
    assert all(b == pytest.approx((a + c) / 2) for a, b, c in rows)
    assert {(a == 0, c == 0) for a, _, c in rows} >= {(True, False), (False, True)}


def test_a_source_beside_it_gives_the_rewards():
    class Length:
        def __call__(self, groups):
            return Feedback.from_rewards([[float(len(r.token_ids)) for r in g.responses]
                                          for g in groups])  # fmt: skip

    both = probe(source=Length())
    found = both(GROUPS)
    assert found.rewards == [[3.0, 2.0, 3.0, 0.0]]
    assert found.columns["reward_std"][0][3] is None
    assert both.gives.columns == ("reward_std", *both.particles)


def test_labels_that_are_learned_change_the_fit_and_are_its_state():
    """Labels that say the opposite: "bb" is better than "aa", often enough to turn the order."""
    source, fresh = probe(refit=True), probe(refit=True)
    before = source(GROUPS).rewards[0]
    groups = [Group([2], [Response([97, 97]), Response([98, 98])]) for _ in range(9)]
    pairs = [Comparison(g, 1, 0) for g in range(9)] + [Comparison(0, 0, 1, weight=0.0)]
    assert (source.learns, probe().learns) == (True, False)
    source.learn(groups, pairs)
    found = source(GROUPS)
    assert before[0] > before[2]
    assert found.rewards[0][0] < found.rewards[0][2]
    assert found.counts_by_name == {"pairs_fitted": 3, "pairs_dropped": 0, "pairs_learned": 9}
    fresh.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert fresh(GROUPS) == found


def test_a_loop_keeps_what_its_source_has_learned():
    def online(engine=None):
        return make(Online, DPO(), engine, source=probe(source=ByDigest(), refit=True))

    whole, first = online(), online()
    list(whole.run(3))
    list(first.run(1))
    state = json.loads(json.dumps(first.state_dict()))
    assert len(state["source"]["learned"]) == 3
    rest = online(first.engine)
    rest.load_state_dict(state)
    list(rest.run(2))
    assert rest.state_dict() == whole.state_dict()
    with pytest.raises(CheckpointError, match="must be as in the saved run, whose source has a s"):
        make(Online, DPO()).load_state_dict(state)
    with pytest.raises(ConfigError, match="source must not learn from pairs, of which the loop m"):
        make(ExpertIteration, NLL(), source=probe(refit=True))
    make(ExpertIteration, NLL(), source=probe())


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="heads must be 2 or more, or dropout greater than 0"):
        probe(heads=1)
    with pytest.raises(ConfigError, match=r"dropout must be in \[0, 1\) but is 1"):
        probe(dropout=1.0)
    with pytest.raises(ConfigError, match="rows must be a rows but is the name 'packaged:x'"):
        RewardProbe("packaged:x", model=Letters(), heads=2)(GROUPS)
    same = [{"prompt": "p", "chosen": "a", "rejected": "a"}]
    with pytest.raises(DataError, match="at least one row must remain but 0 of 1 were too long"):
        RewardProbe(same, model=Letters(), heads=2)(GROUPS)
