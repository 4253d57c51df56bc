"""What parts ask of others: models, functions and parts that a recipe names and a run has.

In a recipe such a field is text, the name of a model or a function, or a nested part. A part can be
made and checked with it; before it is used, `bind` puts the object in its place. From Python the
object is given at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

from pyengine.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pyengine.preferences.groups import Group

T = TypeVar("T")

Binding = Literal[
    "model",
    "reward_model",
    "function",
    "rows",
    "source",
    "sources",
    "comparator",
    "ranking",
    "selections",
]
MANY = {"sources": "source", "selections": "selection"}  # lists of parts within a part
NESTED = ("source", "comparator", "ranking", *MANY)  # parts within a part
# What stands for a response: its last token's hidden state, or the mean over its tokens'.
Pool = Literal["last", "mean"]
POOLS = get_args(Pool)
# What is read of a response: such a vector, or the hidden states of all its tokens.
Rows = Literal["last", "mean", "tokens"]


class HasLogprobs(Protocol):
    """Log-probs of one response: (R,) float32, and their sum."""

    @property
    def token_logprobs(self) -> Tensor: ...

    @property
    def logprob(self) -> float: ...


class AsksModel(Protocol):
    """A model that sources may ask: `pe.asking(engine)` makes one of an Engine."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def max_positions(self) -> int: ...

    def score(self, groups: Sequence[Group]) -> Sequence[Sequence[HasLogprobs]]:
        """Log-probs of every response; each group's prompt is computed once."""

    def sample(
        self,
        prompts: Sequence[Any],
        *,
        n: int = 1,
        max_tokens: int = 128,
        temperature: float = 1.0,
        seed: int = 0,
        request_ids: Sequence[int] | None = None,
    ) -> list[Group]:
        """n responses to each prompt: text, chat messages or token ids."""


@runtime_checkable
class HasHiddenStates(Protocol):
    """A model that parts may ask for vectors of responses, as `pe.asking(engine)` is one."""

    def hidden_states(
        self, groups: Sequence[Group], pool: Rows = "last"
    ) -> Sequence[Sequence[Tensor | None]]:
        """(D,) float32 of every response, of R tokens (R, D); None of one without tokens."""


class Bindings(Protocol):
    """What a run has under the names that a recipe gives."""

    def model(self, name: str) -> AsksModel:
        """ "policy", "reference", a snapshot's name, or a model of its own by its place."""

    def reward_model(self, name: str) -> Any:
        """A reward model by its place."""

    def function(self, name: str) -> Callable[..., Any]:
        """A function that ships with pyengine, or the user's where code is allowed."""

    def rows(self, name: str) -> Sequence[Any]:
        """The rows of a data file."""


def bound(kind: Binding, default: Any = dataclasses.MISSING) -> Any:
    """A field of a part that `bind` fills: see the module."""
    if kind not in get_args(Binding):
        raise ConfigError(f"[bound] kind must be one of {get_args(Binding)} but is {kind!r}")
    return dataclasses.field(default=default, metadata={"bound": kind})


def bound_fields(part: Any) -> dict[str, Binding]:
    """Field -> what it is filled with, of a part or its class."""
    return {f.name: f.metadata["bound"] for f in dataclasses.fields(part) if "bound" in f.metadata}


def bind(part: T, bindings: Bindings) -> T:
    """The part with objects in the place of every name in it, parts within it too."""
    if not dataclasses.is_dataclass(part):
        return part
    filled: dict[str, Any] = {}
    for name, kind in bound_fields(part).items():
        value = getattr(part, name)
        if kind in MANY:
            filled[name] = tuple(bind(each, bindings) for each in value)
        elif kind in NESTED:
            filled[name] = bind(value, bindings)
        elif isinstance(value, str):
            filled[name] = getattr(bindings, kind)(value)
    return dataclasses.replace(part, **filled) if filled else part  # type: ignore[type-var]


def unbound(part: Any) -> list[tuple[str, Binding]]:
    """(name, kind) of everything that the part asks for by name, parts within it too."""
    if not dataclasses.is_dataclass(part):
        return []
    found: list[tuple[str, Binding]] = []
    for name, kind in bound_fields(part).items():
        value = getattr(part, name)
        if kind in NESTED:
            for each in value if kind in MANY else (value,):
                found += unbound(each)
        elif isinstance(value, str):
            found.append((value, kind))
    return found


def within(part: Any) -> Iterator[Any]:
    """The part, and all parts within it; what is no dataclass names them in `asks`."""
    yield part
    nested: list[Any] = list(getattr(part, "asks", ()))
    if dataclasses.is_dataclass(part):
        for name, kind in bound_fields(part).items():
            if kind in NESTED:
                value = getattr(part, name)
                nested += value if kind in MANY else [value]
    for each in nested:
        yield from within(each)


def check_bound(part: Any) -> None:
    """Raises ConfigError where a part is asked before `bind` has given it its objects."""
    for name, kind in bound_fields(part).items():
        value = getattr(part, name)
        if kind not in NESTED and isinstance(value, str):
            raise ConfigError(
                f"[{part.name}] {name} must be a {kind} but is the name {value!r}: give the object"
            )
