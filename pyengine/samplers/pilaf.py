"""PILAF: pairs from the policy, or one from beyond it and one from between it and the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import keyed_uniforms
from pyengine.preferences.sources.source import Source
from pyengine.rules import SHARE, check_fields, checked
from pyengine.samplers.joining import joined, with_origin
from pyengine.samplers.model_names import MODEL
from pyengine.samplers.sampler import Generates, derived_ids


@dataclass(frozen=True)
class Pilaf:
    """Policy-interpolated pairs: plain, or from beyond the policy and from short of it.

    beta   of the DPO that learns from them, in (0, 1]
    other  "reference" or a snapshot's name
    Half of the prompts, drawn by lot, get plain samples. Of the others half the responses are from
    (1 + beta) * policy - beta * other, half from (1 - beta) * policy + beta * other, logits that
    are combined token by token. `n` must be even. Origins are "policy", "extrapolated" and
    "interpolated", in this order within a group. Raises ConfigError for an odd n.
    Source: Feng et al., arXiv:2502.04270, algorithm 1.
    """

    name: ClassVar[str] = "pilaf"
    needs_source: ClassVar[bool] = False
    beta: float = checked(0.1, SHARE)
    other: str = checked("reference", MODEL)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group. Raises ConfigError."""
        if params.n % 2:
            raise ConfigError(f"[pilaf] n must be even but is {params.n}")
        return params.n

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """At most three generate calls, whatever the number of prompts."""
        half = dataclasses.replace(params, n=self.size(params) // 2)
        tossed = [keyed_uniforms(self.name, params.seed, i)[0] < 0.5 for i in request_ids]
        plain = [i for i, is_plain in enumerate(tossed) if is_plain]
        moved = [i for i, is_plain in enumerate(tossed) if not is_plain]
        ids = [request_ids[i] for i in moved]
        result: dict[int, Group] = {}
        if plain:
            drawn = engine.generate(
                [prompts[i] for i in plain], params, request_ids=[request_ids[i] for i in plain]
            )
            result |= zip(plain, with_origin(drawn, "policy"), strict=True)
        if moved:
            sides = [
                with_origin(
                    engine.generate(
                        [prompts[i] for i in moved],
                        half,
                        request_ids=derived_ids(ids, draw),
                        models={"policy": 1 + shift, self.other: -shift},
                    ),
                    origin,
                )
                for draw, (origin, shift) in enumerate(
                    (("extrapolated", self.beta), ("interpolated", -self.beta)), 1
                )
            ]
            result |= zip(moved, joined(*sides), strict=True)
        return [result[i] for i in range(len(prompts))]
