"""How different the responses to one prompt are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from pyengine.errors import ConfigError, RequestError
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.self_bleu import ngram_counts, self_bleu
from pyengine.evaluation.standard_errors import mean_figure
from pyengine.preferences.binding import POOLS, HasHiddenStates, Pool, bound, check_bound
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group, Response
from pyengine.rules import COUNT, Rule, check_fields, checked, one_of, or_none

_NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")


def distinct(texts: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Different n-grams of all texts together / their n-grams; None where there are none.

    Source: Li et al., arXiv:1510.03055, section 4.
    """
    counts = [ngram_counts(text, n) for text in texts]
    total = sum(sum(count.values()) for count in counts)
    return len(set().union(*counts)) / total if total else None


def embedding_distance(vectors: Sequence[Sequence[float]]) -> float | None:
    """Mean of 1 - cosine over every two vectors; None for fewer than two.

    Raises RequestError for a vector of length 0 or another size.
    """
    norms = [math.sqrt(math.fsum(v * v for v in vector)) for vector in vectors]
    if not all(norm > 0 and math.isfinite(norm) for norm in norms):
        raise RequestError("[embedding_distance] vectors must have a length > 0 but one has not")
    if len({len(vector) for vector in vectors}) > 1:
        raise RequestError(
            "[embedding_distance] vectors must be of one size but are of "
            f"{sorted({len(vector) for vector in vectors})}"
        )
    distances = [
        1
        - math.fsum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))
        / (norms[i] * norms[j])
        for i in range(len(vectors))
        for j in range(i)
    ]
    return math.fsum(distances) / len(distances) if distances else None


@dataclass(frozen=True)
class Diversity:
    """How different a prompt's responses are: distinct n-grams, self-BLEU, embedding distance.

    unit        what n-grams are of: "words" of the text between blanks, or "tokens"
    max_order   "distinct_<n>" for n up to it, and self-BLEU's longest n-grams
    embeddings  column of the groups with a vector for each response: "embedding_distance", the mean
                of 1 - cosine, is given where this is named, or `model` is
    model       whose hidden states are the vectors instead: "policy", which is the model as it is
                then, "reference", a snapshot's name or a model's place. A judge that stays the same
                makes figures of different times comparable
    pool        of a model: the "last" token's hidden state, or their "mean"
    Also gives "unique", the share of different responses. All are means over prompts of at least
    two responses; n-grams longer than every response have no figure, and rewards are not looked at.
    Raises RequestError for words of a response without
    text, or a group without the column.
    Source: Li et al., arXiv:1510.03055 (distinct); Zhu et al., arXiv:1802.01886 (self-BLEU).
    """

    name: ClassVar[str] = "diversity"
    unit: str = checked("words", one_of("words", "tokens"))
    max_order: int = checked(4, COUNT)
    embeddings: str | None = checked(None, or_none(_NAME))
    model: HasHiddenStates | str | None = bound("model", None)
    pool: Pool = checked("last", one_of(*POOLS))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model is not None and self.embeddings is not None:
            raise ConfigError(
                f"[{self.name}] one of embeddings and model must be None but both are given"
            )
        if self.pool != "last" and self.model is None:
            raise ConfigError(
                f"[{self.name}] pool is used with a model but is {self.pool!r} without one"
            )

    @property
    def rehearsal(self) -> Diversity:
        """The same without a model: it is tried on responses that are made up."""
        return replace(self, model=None, pool="last")

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """See the class."""
        check_bound(self)
        several = [(g, group) for g, group in enumerate(groups) if len(group.responses) > 1]
        texts = [
            [self._read(f"groups[{g}].responses[{k}]", r) for k, r in enumerate(group.responses)]
            for g, group in several
        ]
        table: dict[str, list[float | None]] = {
            f"distinct_{n}": [distinct(row, n) for row in texts]
            for n in range(1, self.max_order + 1)
        }
        table["self_bleu"] = [self_bleu(row, self.max_order) for row in texts]
        table = {name: row for name, row in table.items() if any(v is not None for v in row)}
        table["unique"] = [len(set(map(tuple, row))) / len(row) for row in texts]
        if self.embeddings is not None:
            table["embedding_distance"] = [
                embedding_distance(self._vectors(g, group)) for g, group in several
            ]
        elif self.model is not None:
            model = cast(HasHiddenStates, self.model)
            states = model.hidden_states([group for _, group in several], self.pool)
            table["embedding_distance"] = [
                embedding_distance([v.tolist() for v in row if v is not None]) for row in states
            ]
        return {name: mean_figure(f"diversity, {name}", row) for name, row in table.items()}

    def _read(self, where: str, response: Response) -> Sequence[Hashable]:
        if self.unit == "tokens":
            return response.token_ids
        if response.text is None:
            raise RequestError(
                f"[diversity] {where}.text must be a text but is None: decode it, or take "
                "unit = 'tokens'"
            )
        return response.text.split()

    def _vectors(self, g: int, group: Group) -> Any:
        vectors = group.columns.get(self.embeddings or "")
        if vectors is None or len(vectors) != len(group.responses):
            raise RequestError(
                f"[diversity] groups[{g}].columns[{self.embeddings!r}] must have a vector for each "
                f"of {len(group.responses)} responses but "
                + ("is not there" if vectors is None else f"has {len(vectors)}")
            )
        return vectors
