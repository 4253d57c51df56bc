"""Segments of a response in its tokens, and several sources' rewards at their ends."""

from __future__ import annotations

import pytest
from samplers.letters import LettersTokenizer

from pyengine.errors import ConfigError
from pyengine.preferences import Group, Response, RewardFunction
from pyengine.preferences.sources.segment_rewards import SegmentRewards, segments_of

TEXT = "Hi, you. Go!\n\nOn"


class Pairs(LettersTokenizer):
    """A token is two letters, 1000 * the first + the second."""

    def decode_completion(self, ids):
        return "".join(chr(i // 1000) + chr(i % 1000) for i in ids if i)


class Model:
    """What holds a tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def letters(text: str) -> Response:
    return Response([*map(ord, text), 0], text=text)


def spans(kind, response, tokenizer):
    return [(s.first, s.last, s.text) for s in segments_of(response, kind, tokenizer)]


def test_segments_by_letters():
    """The end token, 16, belongs to what comes last; line ends without a text are none."""
    of = LettersTokenizer()
    sentences = [(0, 7, "Hi, you."), (8, 11, "Go!"), (12, 16, "On")]
    assert spans("sentence", letters(TEXT), of) == sentences
    clauses = [(0, 2, "Hi,"), (3, 7, "you."), (8, 11, "Go!"), (12, 16, "On")]
    assert spans("clause", letters(TEXT), of) == clauses
    assert spans("response", letters(TEXT), of) == [(0, 16, TEXT)]
    assert spans("sentence", letters("3.5 is it"), of) == [(0, 9, "3.5 is it")]
    assert spans("sentence", letters(" "), of) == [(0, 1, " ")]


def test_a_token_in_two_segments_ends_the_first():
    pairs = [1000 * ord(a) + ord(b) for a, b in ("a.", " b", "c.", " d")]
    assert spans("sentence", Response(pairs), Pairs()) == [(0, 0, "a."), (1, 2, "bc."), (3, 3, "d")]
    odd = [1000 * ord(a) + ord(b) for a, b in ("xa", ". ", "b!")]
    assert spans("sentence", Response(odd), Pairs()) == [(0, 1, "xa."), (2, 2, "b!")]


def count(completions):
    return [float(len(c)) for c in completions]


def hates_go(completions):
    return [None if "Go" in c else 1.0 for c in completions]


def fails(completions):
    return [float("nan") if c.startswith("On") else 1.0 for c in completions]


def source(functions, **options):
    sources = [RewardFunction(f) for f in functions]
    return SegmentRewards(sources, model=Model(LettersTokenizer()), **options)


GROUPS = [Group([1], [letters(TEXT), letters("No."), Response([])])]


def test_rewards_at_the_ends_by_hand():
    """Lengths 8, 3, 2 of the sentences times 0.5 at 7, 11 and 16; of the whole 1 at the last token,
    where the second source abstains on the first response."""
    made = source([count, hates_go], segments=("sentence", "response"), weights=(0.5, 2.0))
    feedback = made(GROUPS)
    first, second, empty = feedback.token_columns["token_rewards"][0]
    assert {t: r for t, r in enumerate(first) if r} == {7: 4.0, 11: 1.5, 16: 1.0}
    assert second == [0.0, 0.0, 0.0, 1.5 + 2.0]
    assert empty is None
    assert feedback.rewards == [[6.5, 3.5, None]]
    assert feedback.status == [["value", "value", "abstain"]]
    assert feedback.components == {"count": [[13.0, 3.0, None]], "hates_go": [[None, 1.0, None]]}
    assert feedback.counts_by_name["segments"] == 6
    feedback.check_tokens([[17, 4, 0]])


def test_a_segment_that_fails_is_the_response_s_failure():
    feedback = source([fails], segments=("sentence",))(GROUPS)
    assert feedback.status == [["error", "value", "abstain"]]
    assert feedback.rewards == [[None, 1.0, None]]
    assert "reward must be finite" in feedback.errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": ()}, "segments must have one a source, 1, but has 0"),
        ({"segments": ("word",)}, "segments must be of clause, sentence, response but one is"),
        ({"segments": ("clause",), "weights": (1.0, 2.0)}, "weights must have one a source, 1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        source([count], **options)
