"""Log-probs of policy and reference as columns, for the measures that compare the two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group


def with_reference(groups: Sequence[Group], feedback: Feedback, engine: Any) -> Feedback:
    """The feedback with columns "policy_logps" and "reference_logps", sums of each response, and
    the token column "reference_logprobs".

    engine  whose `score` gives them
    """
    scores = {name: engine.score(groups, model=name) for name in ("policy", "reference")}
    columns, token_columns = dict(feedback.columns), dict(feedback.token_columns)
    for name, table in scores.items():
        columns[f"{name}_logps"] = [[math.fsum(_logprobs(s)) for s in row] for row in table]
    token_columns["reference_logprobs"] = [
        [_logprobs(s) for s in row] for row in scores["reference"]
    ]
    return dataclasses.replace(feedback, columns=columns, token_columns=token_columns)


def _logprobs(score: Any) -> list[float]:
    return [float(value) for value in score.token_logprobs]
