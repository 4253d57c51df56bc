"""Distinct n-grams, self-BLEU and embedding distance by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pyengine.errors import ConfigError, RequestError
from pyengine.evaluation.diversity import Diversity, distinct, embedding_distance
from pyengine.evaluation.self_bleu import bleu, self_bleu
from pyengine.preferences import Feedback, Group, Response


def test_distinct_counts_over_all_responses():
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 5
    assert distinct(texts, 2) == 2 / 3  # ab, ba, ab
    assert distinct(texts, 4) is None


def test_bleu_by_hand():
    """the cat sat on | the cat sat: p1 3/4, p2 (2+1)/(3+1), p3 (1+1)/(2+1), p4 (0+1)/(1+1)."""
    words, reference = ["the", "cat", "sat", "on"], ["the", "cat", "sat"]
    assert bleu(words, [reference]) == pytest.approx((3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # The other way round all n-grams are found, and the text is short: exp(1 - 4/3).
    assert bleu(reference, [words]) == pytest.approx(math.exp(-1 / 3))
    assert bleu(words, [words]) == pytest.approx(1)
    assert bleu(["x"], [words]) == 0.0
    assert bleu([], [words]) == 0.0


def test_a_word_counts_as_often_as_one_reference_has_it():
    assert bleu(["a", "a"], [["a"], ["b", "a"]], max_order=1) == pytest.approx(0.5)


def test_self_bleu_is_one_for_equal_texts_and_none_for_a_single_one():
    assert self_bleu([["a", "b", "c", "d"]] * 3) == pytest.approx(1)
    assert self_bleu([["a"]]) is None
    assert self_bleu([["a", "b"], ["c", "d"]]) == 0.0


def test_embedding_distance():
    # cosines 0, 1/sqrt2, 1/sqrt2
    vectors = [[1, 0], [0, 2], [3, 3]]
    assert embedding_distance(vectors) == pytest.approx(1 - 2 / math.sqrt(2) / 3)
    with pytest.raises(RequestError, match="a length > 0"):
        embedding_distance([[0.0, 0.0], [1.0, 0.0]])
    with pytest.raises(RequestError, match=r"of one size but are of \[1, 2\]"):
        embedding_distance([[1.0], [1.0, 0.0]])


def test_figures_are_means_over_prompts_of_several_responses():
    groups = [
        Group([1], [Response([1, 2], text="x y"), Response([1, 2], text="x y")]),
        Group([1], [Response([1, 2], text="x y"), Response([3], text="z")]),
        Group([1], [Response([1], text="x")]),
    ]
    feedback = Feedback.from_rewards([[0, 0], [0, 0], [0]])
    figures = Diversity(max_order=2)(groups, feedback)
    assert figures["unique"].value == 0.75
    assert figures["unique"].n == 2
    assert figures["distinct_1"].value == pytest.approx((2 / 4 + 3 / 3) / 2)
    assert figures["distinct_2"].value == pytest.approx((1 / 2 + 1) / 2)
    assert figures["self_bleu"].value == pytest.approx((1 + 0) / 2)
    tokens = Diversity(unit="tokens", max_order=1)(groups, feedback)
    assert tokens["distinct_1"].value == pytest.approx((2 / 4 + 3 / 3) / 2)
    with pytest.raises(RequestError, match=r"groups\[0\].columns\['e'\] must have a vector"):
        Diversity(embeddings="e")(groups, feedback)
    for group in groups:
        group.columns["e"] = [[1.0, 0.0]] * len(group.responses)
    figures = Diversity(embeddings="e", max_order=1)(groups, feedback)
    assert figures["embedding_distance"].value == pytest.approx(0)


def test_embedding_distance_by_a_model_s_hidden_states():
    """Two directions at a right angle, and two that are the same: 1 and 0."""

    class Directions:
        def hidden_states(self, groups, pool):
            assert (pool, len(groups)) == ("last", 2)
            rows = ([[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 3.0]])
            return [[torch.tensor(v) for v in row] for row in rows]

    groups = [Group([1], [Response([1], text="a"), Response([2], text="b")]) for _ in range(2)]
    feedback = Feedback.from_rewards([[0.0, 0.0]] * 2)
    measure = Diversity(max_order=1, model=Directions())
    assert measure(groups, feedback)["embedding_distance"].value == pytest.approx(0.5)
    assert measure.rehearsal == Diversity(max_order=1)
    with pytest.raises(ConfigError, match="one of embeddings and model must be None"):
        Diversity(embeddings="e", model="policy")
    with pytest.raises(ConfigError, match="model must be a model but is the name 'policy'"):
        Diversity(model="policy")(groups, feedback)
