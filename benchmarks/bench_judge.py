"""A matrix of judgements, every two responses in both orders, beside transformers.

"transformers" is asked the same questions, each computed whole, batched, with logits of the last
position only. "pyengine-whole" computes each question whole too: its time beside that of
transformers is the ratio of the two forwards. Rates are of the questions' tokens; "of the tree" is
the tokens computed over the nodes of the questions' prefix tree, "saving" the questions' tokens
over those computed.
"""

from __future__ import annotations

from judge_jobs import (
    Counting,
    TransformersModel,
    assert_alike,
    computed_rows,
    num_nodes,
    texts_of,
)
from model_jobs import Models, Shape
from racing import Lane, Race

from pyengine.preferences.comparators.pairwise_judge import PairwiseJudge
from pyengine.preferences.sources.judge_matrix import JudgeMatrix

SHAPES = {
    "smoke": [Shape(1, 2, 8, 4)],
    "default": [Shape(1, 5, 64, 16)],
    "full": [Shape(1, 5, 256, 64), Shape(4, 5, 256, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "pyengine-whole", "transformers")


def judging(models: Models, shape: Shape, dtype: str, provider: str) -> Lane:
    engine = models.engine(dtype)
    groups = texts_of(engine, shape)
    ours = Counting(engine, share_prefixes=provider != "pyengine-whole")
    engine.reset_prefix_cache()
    before = computed_rows(engine)
    matrix = JudgeMatrix(PairwiseJudge(ours))(groups).preference_matrix
    computed, asked = computed_rows(engine) - before, sum(map(len, ours.asked))
    assert matrix is not None
    assert len(ours.asked) == shape.B * shape.n * (shape.n - 1)
    if provider == "transformers":
        theirs = JudgeMatrix(PairwiseJudge(TransformersModel(models.transformers(dtype), engine)))
        found = theirs(groups).preference_matrix
        assert found is not None
        assert_alike(matrix, found, dtype)
        return Lane(lambda: theirs(groups), asked)
    source = JudgeMatrix(PairwiseJudge(ours))

    def run() -> None:
        engine.reset_prefix_cache()
        source(groups)

    figures = {}
    if provider == "pyengine":
        figures = {"of the tree": computed / num_nodes(ours.asked), "saving": asked / computed}
    return Lane(run, asked, figures=figures)


def test_judge(shape: Shape, dtype: str, provider: str, models: Models, race: Race) -> None:
    race(
        lambda name, stack: judging(models, shape, dtype, name),
        **{"job": "judge matrix", "shape": shape, "dtype": dtype, "provider": provider},
    )
