"""Both responses with parts taken out, and how much was: SPO's degrees."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.data.grouping import RowTokenizer
from pyengine.data.prompt_templates import check_places
from pyengine.preferences.auxiliaries.appended import further_group, text_of, with_responses
from pyengine.preferences.groups import Group, Preferences
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.rules import WHOLE, Rule, check_fields, checked

_TEXT = Rule("a text", lambda value: isinstance(value, str))
_LEVELS = Rule("a whole number in 2..10", lambda value: type(value) is int and 2 <= value <= 10)
ASK = (
    "{prompt}\n\nAn answer to this, of which words may be missing:\n{response}\n\n"
    "How much is missing, from 0 (nothing) to the most?\n"
)
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Degrees:
    """How much a copy of the chosen response lacks, and one of the rejected response.

    A degree d of 0 .. levels - 1 is drawn for each; d / levels of the words are taken out, those
    that the fewest responses of the data have, long ones first among them. The further response is
    the number d, after a prompt that shows what is left.

    levels  how many degrees there are; 2..10
    ask     the prompt, with places {prompt} and {response}; of a chat as `revisions` has it
    seed    with the response's tokens the key of the draw
    In the order of the objective dpo_degree. The prompts are groups of their own, after those of
    the rows. Raises ConfigError for a template without its places, DataError for what does not fit
    the model. How the paper finds key content, and its levels, could not be checked.
    Source: "Self-supervised preference optimization", arXiv:2409.17791.
    """

    name: ClassVar[str] = "degrees"
    operands: ClassVar[int] = 2
    levels: int = checked(4, _LEVELS)
    ask: str = checked(ASK, _TEXT)
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)
        check_places(self.name, "ask", self.ask, {"response"}, {"prompt", "response"})

    def __call__(
        self, data: Preferences, tokenizer: RowTokenizer, max_positions: int
    ) -> Preferences:
        """See Auxiliary."""
        compared = {(c.group, k) for c in data.comparisons for k in (c.winner, c.loser)}
        texts = {(g, k): text_of(data.groups[g], k, tokenizer) for g, k in sorted(compared)}
        common = Counter(word for text in texts.values() for word in set(_words(text)))
        place, further = {}, list[Group]()
        for (g, k), text in texts.items():
            place[g, k] = len(data.groups) + len(further), 0
            where = f"degree of response {k} of prompt {g}"
            degree = self._degree(data.groups[g], k)
            left = without(text, degree / self.levels, common)
            further.append(
                further_group(
                    where, data.groups[g], self.ask, left, [str(degree)], tokenizer,
                    max_positions, self.name,
                )
            )  # fmt: skip
        comparisons = [
            replace(c, auxiliary=(place[c.group, c.winner], place[c.group, c.loser]))
            for c in data.comparisons
        ]
        return replace(with_responses(data, {}, further), comparisons=comparisons)

    def _degree(self, group: Group, k: int) -> int:
        draw = keyed_random(self.name, self.seed, group.prompt_ids, group.responses[k].token_ids)
        return draw.randrange(self.levels)


def without(text: str, share: float, common: Counter[str]) -> str:
    """A text without that share of its words, rounded up: the rarest by `common`."""
    words = _words(text)
    order = sorted(range(len(words)), key=lambda i: (common[words[i]], -len(words[i]), i))
    gone = set(order[: math.ceil(share * len(words))])
    return " ".join(m[0] for i, m in enumerate(_WORD.finditer(text)) if i not in gone)


def _words(text: str) -> list[str]:
    """One for each stretch without blanks, as words are counted."""
    return [m[0].strip(".,;:!?\"'()").lower() for m in _WORD.finditer(text)]
