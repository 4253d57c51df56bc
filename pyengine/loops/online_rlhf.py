"""Reinforcement learning from a preference model that is refitted as the policy moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops.loop import Report
from pyengine.loops.on_policy_rl import OnPolicyRL
from pyengine.loops.prompted import PromptedOptions

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group, Preferences
    from pyengine.preferences.sources.source import Source


class OnlineRLHF(OnPolicyRL):
    """A round is a week of online RLHF: the policy samples, some pairs are labelled, the preference
    model is refitted to all labels so far, and policy-gradient steps follow its rewards.

    source       a preference model that takes labels in, preferences' RefittedHead; what a round
                 has taught it is kept with the run
    eval_source  what judges the held-out prompts; it must be given with them, since rewards of a
                 model that is fitted to each round's samples cannot be compared
    others       see OnPolicyRL and Prompted

    Source: Bai et al., arXiv:2204.05862, section 4.5.
    """

    name: ClassVar[str] = "online_rlhf"

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
        if not _takes_labels(source):
            raise ConfigError(
                "[OnlineRLHF] source must be a preference model that takes labels in, such as "
                f"refitted_head, but is {getattr(source, 'name', type(source).__name__)}"
            )
        judge = options.get("eval_source")
        if options.get("eval_prompts") and (judge is None or _takes_labels(judge)):
            raise ConfigError(
                "[OnlineRLHF] eval_source must judge the held-out prompts, since the preference "
                "model changes from round to round, but there is none"
            )
        super().__init__(
            engine,
            prompts,
            source,
            objective,
            sampling,
            epochs=epochs,
            batch_size=batch_size,
            **options,
        )

    @property
    def _known(self) -> list[Any]:
        known: list[Any] = self.source.known  # type: ignore[attr-defined]
        return known

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        labels = self.source.labelled(groups, feedback)  # type: ignore[attr-defined]
        self._then.append(partial(self._known.extend, labels))
        return super()._batch(groups, feedback)

    def state_dict(self) -> dict[str, Any]:
        """See Prompted."""
        return super().state_dict() | {"labels": list(self._known)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Prompted."""
        super().load_state_dict(state)
        self._known[:] = state["labels"]


def _takes_labels(source: Any) -> bool:
    return hasattr(source, "labelled") and hasattr(source, "known")
