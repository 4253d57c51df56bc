"""Both responses as improvements on each other and on themselves: SRPO's second mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.data.grouping import RowTokenizer
from pyengine.data.prompt_templates import check_places
from pyengine.preferences.auxiliaries.appended import further_group, text_of, with_responses
from pyengine.preferences.groups import Comparison, Group, Preferences
from pyengine.rules import Rule, check_fields, checked

_TEXT = Rule("a text", lambda value: isinstance(value, str))
REVISE = (
    "{prompt}\n\nAn answer to this:\n{response}\n\nWrite a better answer. Give the answer only.\n"
)


@dataclass(frozen=True)
class Revisions:
    """The chosen and the rejected response, each after a prompt that shows one of the two.

    revise  prompt for the revision, with places {prompt} and {response}; of a chat, {prompt} is the
            last message's text, and the filled template takes its place. The sampler refine_chain
            with critique "" and the same `revise` is then the improvement at inference
    In the order of the objective srpo: chosen from rejected, rejected from chosen, chosen from
    chosen, rejected from rejected. A comparison's two further prompts are groups of their own,
    after those of the rows. Raises ConfigError for a template without its places, DataError for a
    revision that does not fit the model.
    Source: Choi et al., arXiv:2406.01660, section 3.
    """

    name: ClassVar[str] = "revisions"
    operands: ClassVar[int] = 4
    revise: str = checked(REVISE, _TEXT)

    def __post_init__(self) -> None:
        check_fields(self)
        check_places(self.name, "revise", self.revise, {"response"}, {"prompt", "response"})

    def __call__(
        self, data: Preferences, tokenizer: RowTokenizer, max_positions: int
    ) -> Preferences:
        """See Auxiliary."""
        further: list[Group] = []
        comparisons = []
        for i, c in enumerate(data.comparisons):
            first = len(data.groups) + len(further)
            further += [
                self._shown(data.groups[c.group], c, shown, tokenizer, max_positions, i)
                for shown in (c.winner, c.loser)
            ]
            after_chosen, after_rejected = first, first + 1
            places_of = ((after_rejected, 0), (after_chosen, 1), (after_chosen, 0),
                         (after_rejected, 1))  # fmt: skip
            comparisons.append(replace(c, auxiliary=places_of))
        return replace(with_responses(data, {}, further), comparisons=comparisons)

    def _shown(
        self,
        group: Group,
        c: Comparison,
        shown: int,
        tokenizer: RowTokenizer,
        max_positions: int,
        i: int,
    ) -> Group:
        """The prompt that shows one response, with the chosen and the rejected one after it."""
        where = f"revision of comparison {i}"
        shown_text = text_of(group, shown, tokenizer).strip()
        texts = [text_of(group, k, tokenizer) for k in (c.winner, c.loser)]
        return further_group(
            where, group, self.revise, shown_text, texts, tokenizer, max_positions, "revision"
        )
