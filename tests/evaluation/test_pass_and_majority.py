"""pass@k and maj@k by hand, and against all subsets."""

from __future__ import annotations

import itertools

import pytest

from pyengine.errors import ConfigError, RequestError, RewardError
from pyengine.evaluation.maj_at_k import MajAtK, maj_at_k, majority
from pyengine.evaluation.pass_at_k import PassAtK, pass_at_k
from pyengine.preferences import Feedback, Group, Response


def groups_of(*texts):
    return [Group([1], [Response([k], text=t) for k, t in enumerate(row)]) for row in texts]


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c, k):
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_is_a_mean_over_prompts_that_have_samples_enough():
    # pass@2: of (1, 0, 0) 1 - C(2,2)/C(3,2) = 2/3, of (1, 1, None) 1; the third has one sample.
    # Mean 5/6; deviations +-1/6: variance 2/36, error sqrt(2/36 / 2) = 1/6.
    feedback = Feedback.from_rewards([[1, 0, 0], [1, 1, None], [0.4, None, None]])
    groups = groups_of("abc", "abc", "abc")
    figures = PassAtK(ks=[1, 2])(groups, feedback)
    assert figures["pass@2"].value == pytest.approx(5 / 6)
    assert figures["pass@2"].standard_error == pytest.approx(1 / 6)
    assert figures["pass@2"].n == 2
    assert figures["pass@1"].value == pytest.approx((1 / 3 + 1 + 0) / 3)
    with pytest.raises(RewardError, match=r"\[pass_at_k, k = 4\] at least one prompt .* 0 of 3"):
        PassAtK(ks=[4])(groups, feedback)


def test_labels_say_what_is_right_where_there_are_some():
    feedback = Feedback.from_rewards([[0.9, 0.1]])
    feedback.labels = [[False, True]]
    assert PassAtK()(groups_of("ab"), feedback)["pass@1"].value == 0.5
    feedback.labels = [[False, False]]
    assert PassAtK()(groups_of("ab"), feedback)["pass@1"].value == 0.0


def test_a_tie_of_answers_is_shared():
    right = [True, True, False, False]
    assert majority(["7", "7", "3", "5"], right) == 1.0
    assert majority(["7", "7", "3", "3"], right) == 0.5  # two answers of two votes, one is right
    assert majority(["7", None, None, "3"], right) == 0.5
    assert majority([None] * 4, right) == 0.0


def test_maj_at_k_goes_through_all_subsets():
    # Of 7 7 3, right right wrong: {7,7} 1, {7,3} twice 1/2: mean 2/3. k = 3: 1.
    answers, right = ["7", "7", "3"], [True, True, False]
    assert maj_at_k(answers, right, 2) == pytest.approx(2 / 3)
    assert maj_at_k(answers, right, 3) == 1.0
    with pytest.raises(RequestError, match=r"k must be in \[1, 3\], the samples, but is 4"):
        maj_at_k(answers, right, 4)


def test_many_subsets_are_drawn_by_a_key():
    answers = ["7"] * 8 + ["3"] * 8
    right = [a == "7" for a in answers]
    first, again, other = (maj_at_k(answers, right, 5, key) for key in ("a", "a", "b"))
    assert first == again != other
    assert first == pytest.approx(0.5, abs=0.06)  # 4 standard errors of 1000 draws


def test_maj_at_k_reads_texts_or_a_column():
    feedback = Feedback.from_rewards([[1, 1, 0], [0, None, 0]])
    groups = groups_of(["= 7", "7.0 ", "= 3"], ["1", "2", "2"])
    figure = MajAtK(ks=[2])(groups, feedback)["maj@2"]
    assert (figure.value, figure.n) == (pytest.approx((2 / 3 + 0) / 2), 2)
    for group in groups:
        group.columns["final"] = ["x", "y", "y"]
    # "y" is right for half of those that say it: {x,y} (1 + 1/1)/2 or with the wrong one 1/2; {y,y}
    # 1/2.
    figure = MajAtK(ks=[2], column="final")(groups[:1], Feedback.from_rewards([[1, 1, 0]]))
    assert figure["maj@2"].value == pytest.approx((1 + 0.5 + 0.5) / 3)
    with pytest.raises(RequestError, match=r"columns\['answer'\] must be a list of one answer"):
        MajAtK(ks=[2], column="answer")(groups, feedback)


@pytest.mark.parametrize("ks", [[], [0], "4", [2.0], None])
def test_ks_are_checked(ks):
    with pytest.raises(ConfigError, match=r"\[pass_at_k\] ks must be a list of integers >= 1"):
        PassAtK(ks=ks)
