"""The geometric mixture of the policy and another model, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source
from pyengine.rules import OPEN_FRACTION, WHOLE, check_fields, checked
from pyengine.samplers.joining import joined, with_origin
from pyengine.samplers.model_names import MODEL
from pyengine.samplers.sampler import Generates, derived_ids


@dataclass(frozen=True)
class Mixture:
    """Samples whose logits are (1 - alpha) * policy + alpha * other, beside some of the policy.

    alpha           share of the other model, in (0, 1)
    other           "reference" or a snapshot's name
    policy_samples  how many of the n responses are the policy's own; they come first
    The mixture's responses have origin "mixture" and both models' log-probs in `model_logprobs`;
    `logprobs` are the policy's. Raises ConfigError for policy_samples >= n.
    Source: Munos et al., arXiv:2312.00886, section 4 (Nash-MD).
    """

    name: ClassVar[str] = "mixture"
    needs_source: ClassVar[bool] = False
    alpha: float = checked(0.125, OPEN_FRACTION)
    other: str = checked("reference", MODEL)
    policy_samples: int = checked(1, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group. Raises ConfigError."""
        if self.policy_samples >= params.n:
            raise ConfigError(
                f"[mixture] policy_samples must be less than n ({params.n}) but is "
                f"{self.policy_samples}"
            )
        return params.n

    def origins(self, params: SamplingParams) -> list[str]:
        """Of a group's responses."""
        own = self.policy_samples
        return ["policy"] * own + ["mixture"] * (params.n - own)

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """The policy's responses, then the mixture's: one generate call for each."""
        mixed = self.size(params) - self.policy_samples
        parts = []
        if self.policy_samples:
            own = dataclasses.replace(params, n=self.policy_samples)
            parts.append(
                with_origin(engine.generate(prompts, own, request_ids=request_ids), "policy")
            )
        drawn = engine.generate(
            prompts,
            dataclasses.replace(params, n=mixed),
            request_ids=derived_ids(request_ids, 1),
            models={"policy": 1 - self.alpha, self.other: self.alpha},
        )
        return joined(*parts, with_origin(drawn, "mixture"))
