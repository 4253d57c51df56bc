"""How likely each response is under the policy that a reward asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from pyengine.preferences.binding import AsksModel, bound, check_bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.source import Gives, gives
from pyengine.rules import POSITIVE, check_fields, checked


@dataclass(frozen=True)
class TiltedTarget:
    """A source's feedback with log p of every response: p = reference * e^(reward / beta) / Z.

    Z of a prompt is estimated of its own responses, as the mean of reference e^(reward / beta) /
    sampler over those that have a reward, the sampler being their own log-probs: unbiased, and the
    better the more of them there are. The column "target_logps" is what fdpg takes. A response
    without tokens or log-probs of its own has failed.

    source     what gives the rewards
    reference  the model that the target is a tilt of
    beta       > 0, in the reward's unit: the smaller, the further from the reference
    Source: Go et al., arXiv:2302.08215, section 4 (the target of RLHF with a KL penalty).
    """

    name: ClassVar[str] = "tilted_target"
    source: Any = bound("source")
    reference: AsksModel | str = bound("model", "reference")
    beta: float = checked(0.1, POSITIVE)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def gives(self) -> Gives:
        """What the source gives, and the column."""
        own = gives(self.source)
        return replace(own, columns=tuple(dict.fromkeys((*own.columns, "target_logps"))))

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(self.source)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return ask_ahead([self.source], groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The source's feedback, with the column; a call of the reference."""
        check_bound(self)
        feedback: Feedback = self.source(groups)
        scores = cast(AsksModel, self.reference).score(groups)
        column: list[list[float | None]] = []
        errors = list(feedback.errors)
        for g, group in enumerate(groups):
            for k, response in enumerate(group.responses):
                if feedback.status[g][k] == "value" and not _is_sampled(response):
                    feedback.status[g][k], feedback.rewards[g][k] = "error", None
                    errors.append(
                        f"[{self.name}] groups[{g}].responses[{k}]: must have tokens and the "
                        "log-probs that they were sampled with but has not"
                    )
            logps = [score.logprob for score in scores[g]]
            column.append(self._target(group, feedback.rewards[g], logps))
        feedback.errors = errors[:MAX_ERRORS]
        feedback.columns["target_logps"] = column
        return feedback

    def _target(
        self, group: Group, rewards: Sequence[float | None], reference: Sequence[float]
    ) -> list[float | None]:
        tilted = [
            None if reward is None else logp + reward / self.beta
            for reward, logp in zip(rewards, reference, strict=True)
        ]
        weights = [
            value - math.fsum(response.logprobs or ())
            for value, response in zip(tilted, group.responses, strict=True)
            if value is not None
        ]
        if not weights:
            return tilted
        top = max(weights)
        log_z = top + math.log(math.fsum(math.exp(w - top) for w in weights) / len(weights))
        return [None if value is None else value - log_z for value in tilted]


def _is_sampled(response: Response) -> bool:
    tokens = len(response.token_ids)
    return bool(tokens) and response.logprobs is not None and len(response.logprobs) == tokens
