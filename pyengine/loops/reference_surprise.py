"""How surprising each token is to the reference: weights of tokens that no one wrote down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyengine.errors import ConfigError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Preferences


def with_reference_surprise(engine: Any, data: Preferences, names: Sequence[str]) -> Preferences:
    """The data with token columns of -log p under the reference, over the largest of its response.

    In [0, 1]: 1 is the token of a response that the reference expected least; 0 everywhere where it
    was certain of all. The log-probs are those that updates take, computed once.

    names  of the columns, which are all alike
    Raises ConfigError where the engine has no reference.
    """
    if not names:
        return data
    if not engine.has_reference:
        raise ConfigError(
            "[token_columns] the engine must have a reference, whose log-probs they are of, but "
            "has none"
        )
    scores = engine.score(data.groups, model="reference")
    table = [[surprise(list(map(float, s.token_logprobs))) for s in row] for row in scores]
    feedback = data.feedback
    if feedback is None:
        feedback = Feedback.from_rewards([[None] * len(g.responses) for g in data.groups])
    columns = dict(feedback.token_columns)
    for name in names:
        columns[name] = [list(row) for row in table]
    return replace(data, feedback=replace(feedback, token_columns=columns))


def surprise(logprobs: Sequence[float]) -> list[float]:
    """-log p of each token over the largest; zeros where there is none above 0."""
    most = max((-value for value in logprobs), default=0.0)
    return [0.0 if most <= 0 else -value / most for value in logprobs]
