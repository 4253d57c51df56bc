"""A judge asked for a label: both orders, ties, what cannot be asked, and what it computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from scripted_judge import CONTROL, Scripted, group_of

import pyengine as pe
from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.binding import unbound
from pyengine.preferences.comparators.comparator import Duel
from pyengine.preferences.comparators.orders import asked_orders, turned
from pyengine.preferences.comparators.pairwise_judge import PairwiseJudge
from pyengine.preferences.questions import answer_of
from pyengine.preferences.sources.available import SOURCES
from pyengine.preferences.sources.judge_matrix import JudgeMatrix
from pyengine.preferences.sources.source import gives
from pyengine.recipes.schema.build import make_part, part
from pyengine.recipes.schema.strict_yaml import Document

TEMPLATE = "{prompt}|{a}|{b}|"
QUALITY = {"good": 1.0, "fair": 0.25, "poor": -2.0}


def likes(bias: float, tie: float = -9.0) -> Scripted:
    """log P(A) - log P(B) is the difference of qualities, and `bias` for the first place."""

    def answer(question: str, label: str) -> float:
        _, a, b, _ = question.split("|")
        return {" A": QUALITY[a] - QUALITY[b] + bias, " B": 0.0, " C": tie}[label]

    return Scripted(answer)


def judge(model: Scripted, **options: Any) -> PairwiseJudge:
    return PairwiseJudge(model, template=TEMPLATE, **options)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_mean_of_both_orders_and_what_places_are_worth() -> None:
    """Differences 0.75 and 0.5 for the first place: sigmoid(1.25) as it stands, sigmoid(-0.25)
    turned round."""
    model = likes(0.5)
    found = judge(model).compare([group_of("good", "fair")], [Duel(0, 0, 1), Duel(0, 1, 0)])
    here, there = sigmoid(1.25), sigmoid(-0.25)
    assert found.probabilities[0] == pytest.approx((here + 1 - there) / 2, abs=1e-15)
    assert found.probabilities[1] == pytest.approx((there + 1 - here) / 2, abs=1e-15)
    assert sorted(model.asked) == ["p|fair|good|", "p|good|fair|"]  # each once
    assert found.counts["judgements"] == 2
    assert found.counts["first_place"] == pytest.approx(here + there)
    assert found.counts["prompt_tokens"] == 2 * len("p|good|fair|")
    assert found.counts["swap_disagreements"] == found.counts["ties"] == 0
    assert found.counts["failures"] == 0


def test_one_order_and_temperature() -> None:
    found = judge(likes(0.5), both_orders=False, temperature=2.0).compare(
        [group_of("good", "fair")], [Duel(0, 1, 0)]
    )
    assert found.probabilities == [pytest.approx(sigmoid((-0.75 + 0.5) / 2))]
    assert found.counts["judgements"] == 1


def test_the_same_place_winning_in_both_orders_is_a_disagreement() -> None:
    found = judge(likes(2.0)).compare([group_of("good", "fair", "poor")], [
        Duel(0, 0, 1), Duel(0, 1, 0), Duel(0, 0, 2)])  # fmt: skip
    assert found.counts["swap_disagreements"] == 1  # of a difference of 0.75, not of 3; once
    assert found.counts["both_orders"] == 2  # pairs, not duels
    assert found.counts["judgements"] == 4


def test_ties_by_margin_and_by_label() -> None:
    groups, duels = [group_of("good", "fair")], [Duel(0, 0, 1)]
    p = judge(likes(0.0)).compare(groups, duels).probabilities[0]
    assert p == pytest.approx(sigmoid(0.75))
    for margin, expected in ((p - 0.5 - 1e-9, p), (p - 0.5 + 1e-9, 0.5)):
        found = judge(likes(0.0), tie_margin=margin).compare(groups, duels)
        assert found.probabilities == [expected]
        assert found.counts["ties"] == (expected == 0.5)
    # exp(0.75), 1 and exp(tie) in shares: a tie where neither is likeliest, else half for each.
    found = judge(likes(0.0, tie=-1.0), tie_label="C").compare(groups, duels)
    whole = math.exp(0.75) + 1 + math.exp(-1.0)
    back = math.exp(-0.75) + 1 + math.exp(-1.0)
    first = (math.exp(0.75) / whole + 1 / back) / 2
    even = (math.exp(-1.0) / whole + math.exp(-1.0) / back) / 2
    assert found.probabilities == [pytest.approx(first + even / 2)]
    found = judge(likes(0.0, tie=3.0), tie_label="C").compare(groups, duels)
    assert found.probabilities == [0.5]
    assert found.counts["ties"] == 1


def test_what_cannot_be_asked_has_no_verdict_and_is_counted() -> None:
    model = likes(0.0)
    groups = [group_of("good", "poor", f"x{CONTROL}A"), group_of("good", "y" * 40)]
    duels = [Duel(0, 0, 1), Duel(0, 0, 2), Duel(1, 0, 1)]
    found = judge(model, max_tokens=30).compare(groups, duels)
    assert found.probabilities == [pytest.approx(sigmoid(3.0)), None, None]
    assert found.counts["failures"] == 2
    assert found.counts["too_long"] == 2  # one duel in both orders
    assert "duels[1], (0, 0, 2): b spells a control token of the model" in found.errors[0]
    assert (
        "duels[2], (1, 0, 1): the question must fit 30 tokens but needs 48 + 2" in (found.errors[1])
    )
    assert len(model.asked) == 2


def test_a_model_that_would_say_something_else_is_no_verdict() -> None:
    model = Scripted(lambda question, label: math.log(0.2 if label == " A" else 0.1))
    groups, duels = [group_of("good", "fair")], [Duel(0, 0, 1)]
    assert judge(model, min_mass=0.29).compare(groups, duels).probabilities == [0.5]
    found = judge(model, min_mass=0.31).compare(groups, duels)
    assert found.probabilities == [None]
    assert found.counts["label_mass"] == pytest.approx(0.6)
    assert "must have a probability of 0.31 or more but have 0.3" in found.errors[0]
    nothing = Scripted(lambda question, label: -math.inf)
    assert judge(nothing).compare(groups, duels).probabilities == [None]


def test_criteria_of_all_and_of_each_prompt() -> None:
    model = Scripted()
    asked = PairwiseJudge(
        model, template="{criteria}>{prompt}|{a}|{b}", criteria="Be kind.", criteria_column="rule"
    )
    asked.compare([group_of("x", "y", rule="Be brief.")], [Duel(0, 0, 1)])
    assert model.asked[0] == "Be kind.\nBe brief.>p|x|y"
    with pytest.raises(RequestError, match=r"groups\[0\].columns\['rule'\] must be a text but is"):
        asked.compare([group_of("x", "y")], [Duel(0, 0, 1)])
    ours = Scripted()
    PairwiseJudge(ours, criteria="Be kind.").compare([group_of("x", "y")], [Duel(0, 0, 1)])
    assert (
        "Judge by this:\nBe kind.\n\n[Prompt]\np\n\n[Response A]\nx\n\n[Response B]\ny"
        in (ours.asked[0])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{prompt} {a}"}, r"\[pairwise_judge\] template must have {a}, {b}, {prompt}"),
        ({"template": "{prompt.x} {a} {b}"}, r"but has {a}, {b}, {prompt.x}"),
        ({"template": "{prompt {a} {b}"}, r"paired braces|template must have"),
        ({"template": TEMPLATE, "criteria": "x"}, r"must have {criteria} where"),
        ({"label_b": "A"}, r"labels must differ but are \['A', 'A'\]"),
        ({"tie_margin": 0.6}, r"tie_margin must be in \[0, 0.5\] but is 0.6"),
    ],
)
def test_what_makes_no_judge(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairwiseJudge(**options)


def test_what_is_no_duel_and_what_is_not_bound() -> None:
    for duel in (Duel(0, 0, 0), Duel(0, 0, 2), Duel(1, 0, 1)):
        with pytest.raises(RequestError, match=r"duels\[0\] must be of two responses of a group"):
            judge(likes(0.0)).compare([group_of("good", "fair")], [duel])
    with pytest.raises(ConfigError, match="model must be a model but is the name 'policy'"):
        PairwiseJudge().compare([group_of("good", "fair")], [Duel(0, 0, 1)])


class Recording:
    """Keeps what an engine's model is asked."""

    def __init__(self, model: Any) -> None:
        self._model, self.asked = model, list[pe.Group]()
        self.tokenizer, self.max_positions = model.tokenizer, model.max_positions

    def score_once(self, groups: Any) -> Any:
        self.asked += groups
        return self._model.score_once(groups)


def num_nodes(sequences: list[list[int]]) -> int:
    """Of the tree of all their beginnings."""
    nodes, before = 0, list[int]()
    for ids in sorted(sequences):
        same = next((i for i, (x, y) in enumerate(zip(ids, before, strict=False)) if x != y), None)
        nodes += len(ids) - (min(len(ids), len(before)) if same is None else same)
        before = ids
    return nodes


def test_matrix_costs_its_distinct_tokens_and_has_the_bits_of_prompts_scored_alone(
    tiny_model: Path,
) -> None:
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", reference="none")
    model = Recording(pe.asking(engine))
    texts = [
        "the sea is calm and grey",
        "bread " * 8,
        "rain" * 12,
        "a train " * 6,
        "wind" * 9,
    ]
    group = group_of(*texts, prompt="Write a line about the weather at the coast in the morning.")
    feedback = JudgeMatrix(PairwiseJudge(model))([group])
    questions = [asked.prompt_ids for asked in model.asked]
    rows = engine._inference.sampler.open({"policy": 1.0}, 1).statistics()["computed_rows"]
    assert len(questions) == 20
    assert num_nodes(questions) <= rows <= 1.05 * num_nodes(questions)
    assert rows < 0.6 * sum(map(len, questions))

    duels = [Duel(0, i, j) for i in range(5) for j in range(5) if i != j]
    answers: dict[Duel, list[float]] = {}
    for duel, asked in zip(asked_orders(duels, True), model.asked, strict=True):
        engine.reset_prefix_cache()
        logprobs = [score.logprob for score in engine.score([asked])[0]]
        weights = [math.exp(each - max(logprobs)) for each in logprobs]
        answers[duel] = [weight / math.fsum(weights) for weight in weights]
    matrix = feedback.preference_matrix
    assert matrix is not None
    for duel in duels:
        expected = (answers[duel][0] + answers[turned(duel)][1]) / 2
        assert matrix[0][duel.first][duel.second] == expected


def test_a_frozen_judge_shares_pages_too_and_has_the_bits_of_kept_scores(tiny_model: Path) -> None:
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32")
    model = Recording(pe.asking(engine, "reference"))
    groups, duels = [group_of("calm", "bread", "rain")], [Duel(0, 0, 1), Duel(0, 0, 2)]
    found = PairwiseJudge(model, both_orders=False).compare(groups, duels)
    rows = engine._inference.sampler.open({"reference": 1.0}, 1).statistics()["computed_rows"]
    assert num_nodes([asked.prompt_ids for asked in model.asked]) <= rows
    assert rows < sum(len(asked.prompt_ids) for asked in model.asked)
    kept = [[s.logprob for s in row] for row in engine.score(model.asked, model="reference")]
    for p, logprobs in zip(found.probabilities, kept, strict=True):
        assert [p] == answer_of(logprobs, 1.0, 0.0)[:1]


def test_a_recipe_names_a_judge_of_itself() -> None:
    data = {
        "name": "judge_matrix",
        "comparator": {"name": "pairwise_judge", "model": "policy", "tie_margin": 0.1},
    }
    made = make_part(SOURCES, part(SOURCES, data, Document(Path("recipe.yaml"), {}, {}), "source"))
    assert made == JudgeMatrix(PairwiseJudge("policy", tie_margin=0.1))
    assert unbound(made) == [("policy", "model")]
    assert gives(made).matrix
