"""Every objective through the loop on a real tiny engine, with its feedback; the others by name."""

from __future__ import annotations

import hashlib

import pytest

import pyengine as pe
from pyengine import objectives
from pyengine.errors import ConfigError
from pyengine.preferences import AllPairs, Feedback, Gives

COLUMNS = (
    "safe", "visits", "values", "target_logps", "greedy_rewards", "weight", "off_policy"
)  # fmt: skip
TOKEN_COLUMNS = ("token_weight", "reward_mask")
# What neither a source nor a pairing gives today: further responses of a comparison, or its own
# probability. They run in Offline, on comparisons that hold them.
NOT_ONLINE = {
    "dpo_degree": "needs the chosen_degree response",
    "dpo_rationale": "needs the rationale response",
    "slic": "needs the reg response",
    "srpo": "needs the chosen_from_rejected response",
    "xpo": "needs the explore response",
}


def number(*parts: object) -> float:
    """In (0, 1), the same for the same parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return (1 + int.from_bytes(digest[:4], "big")) / 2**32 * 0.98


class Everything:
    """Judges by a digest of the tokens, and gives all that there is a name for."""

    name = "everything"
    gives = Gives(labels=True, matrix=True, columns=COLUMNS, token_columns=TOKEN_COLUMNS)

    def __call__(self, groups):
        rewards = [[number(r.token_ids) for r in g.responses] for g in groups]
        feedback = Feedback.from_rewards(rewards)
        feedback.labels = [[r > 0.5 for r in row] for row in rewards]
        feedback.preference_matrix = [
            [[0.5 + (a - b) / 2 for b in row] for a in row] for row in rewards
        ]
        feedback.columns = {
            name: [[number(name, r.token_ids) for r in g.responses] for g in groups]
            for name in COLUMNS
        }
        feedback.columns["safe"] = [[float(x > 0.5) for x in row] for row in rewards]
        feedback.token_columns = {
            name: [[[number(name, t) for t in r.token_ids] for r in g.responses] for g in groups]
            for name in TOKEN_COLUMNS
        }
        return feedback


def online(engine, objective, source=None):
    return pe.loops.Online(
        engine,
        ["The sea", "A train", "Bread"],
        source=source or Everything(),
        pairing=AllPairs(),
        objective=objective,
        sampling=pe.SamplingParams(n=3, max_tokens=5, seed=3),
        prompts_per_round=2,
    )


@pytest.mark.parametrize("name", [n for n in objectives.available() if n not in NOT_ONLINE])
def test_two_rounds(tiny_model, name):
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-3)
    reports = list(online(engine, objectives.get(name)).run(2))
    assert [r["step"] for r in reports] == [1, 2]
    assert all(r["skipped"] == 0 and r["grad_norm"] > 0 for r in reports)


@pytest.mark.parametrize(("name", "reason"), NOT_ONLINE.items())
def test_what_no_part_gives_is_refused_before_sampling(tiny_model, name, reason):
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32")
    with pytest.raises(ConfigError, match=reason):
        online(engine, objectives.get(name))


class Rewards:
    name = "rewards"

    def __call__(self, groups):
        return Feedback.from_rewards([[number(r.token_ids) for r in g.responses] for g in groups])


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("kto", "kto does not fit source rewards and pairing all_pairs: .*labels"),
        ("bfpo", "chosen_safe"),
        ("dro", "values"),
        ("weighted_token_dpo", "token_weight"),
    ],
)
def test_rewards_alone_are_refused_where_more_is_needed(tiny_model, name, lacks):
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32")
    with pytest.raises(ConfigError, match=lacks):
        online(engine, objectives.get(name), Rewards())
