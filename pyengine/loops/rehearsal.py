"""Whether the parts of a loop fit together, found out before a model is loaded.

The objective is tried on a made-up round: what the source says it gives, paired by the pairing.
What it would refuse in the first update it refuses here, in the same words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyengine.engine.learn.training import rehearsed
from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.groups import Group, Preferences, Response
from pyengine.preferences.sources.source import gives

if TYPE_CHECKING:
    from pyengine.objectives.core.objective import Objective
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.sources.source import Source

_TOKENS = 4


def check_parts(
    source: Source,
    pairing: Pairing,
    objective: Objective,
    *,
    samples: int,
    prompts: int,
    has_reference: bool,
    models: bool = True,
) -> None:
    """Raises ConfigError, naming the parts, where the objective lacks something in such rounds.

    samples        responses a prompt
    prompts        prompts a round
    has_reference  whether the engine has a reference
    models         whether the loop keeps snapshots under the names the objective asks for
    """
    groups = [made_up_group(g, samples) for g in range(min(prompts, 3))]
    feedback = gives(source).example(groups)
    comparisons = pairing(groups, feedback).comparisons
    who = f"{objective.name} does not fit source {_name(source)} and pairing {_name(pairing)}"
    if objective.models and not models:
        raise ConfigError(f"[loop] {who}: it needs snapshots called {', '.join(objective.models)}")
    if objective.needs_mismatched and prompts < 2:
        raise ConfigError(
            f"[loop] {who}: it estimates a KL over responses of other prompts, so that "
            f"prompts_per_round must be >= 2 but is {prompts}"
        )
    try:
        rehearsed(Preferences(groups, comparisons, feedback), objective, has_reference)
    except (RequestError, ValueError) as error:
        raise ConfigError(f"[loop] {who}: {error}") from error


def made_up_group(index: int, samples: int) -> Group:
    """A prompt with different sampled responses."""
    responses = [
        Response([index, *([k] * (_TOKENS - 1))], [-1.0] * _TOKENS, [-1.0] * _TOKENS)
        for k in range(samples)
    ]
    return Group([index], responses)


def _name(part: Any) -> str:
    return getattr(part, "name", None) or type(part).__name__
