"""On-policy reinforcement learning: rewards of samples, and policy-gradient steps on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops.loop import Report
from pyengine.loops.prompted import Prompted, PromptedOptions
from pyengine.preferences.groups import Preferences
from pyengine.preferences.subset import Unit

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source


class OnPolicyRL(Prompted):
    """A round samples sampling.n responses to each of its prompts and takes steps on all of them,
    good and bad, whose advantages the objective makes of their rewards.

    objective   of responses: GRPO, RLOO, Reinforce, PPO, ... Where it corrects for the sampler, the
                sampler stays the policy that drew the round, in all epochs
    epochs      over a round's prompts (PPO's epochs)
    batch_size  prompts an optimizer step, each with all its responses, since advantages compare
                them; None: all of the round's
    others      see Prompted

    Source: Shao et al., arXiv:2402.03300; Ahmadian et al., arXiv:2402.14740; Schulman et al.,
    arXiv:1707.06347, algorithm 1.
    """

    name: ClassVar[str] = "on_policy_rl"

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        objective: Any,
        sampling: Any,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.epochs, self.batch_size = epochs, batch_size
        if (
            batch_size is not None
            and getattr(objective, "advantage_estimator", "") == "reinforce_pp"
        ):
            raise ConfigError(
                f"[OnPolicyRL] batch_size must be None with {objective.name}, which normalises "
                f"advantages over the whole round (reinforce_pp), but is {batch_size!r}"
            )
        super().__init__(engine, prompts, source, objective, sampling, **options)

    @property
    def example(self) -> Unit:
        """Whole groups: see batch_size."""
        return "group"

    def _fixed(self) -> dict[str, Any]:
        return super()._fixed() | {"epochs": self.epochs, "batch_size": self.batch_size}

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        return Preferences(groups, (), feedback), {}
