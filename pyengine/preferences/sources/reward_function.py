"""Reward functions: the user's own code, whose failures are counted and never trained on."""

from __future__ import annotations

import asyncio
import copy
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.isolation import Read, describe, judge, outcome_of
from pyengine.preferences.sources.source import AskedBy

_OWN_ARGUMENTS = ("prompts", "completions", "prompt_ids", "completion_ids")


class RewardFunction:
    """Judge groups with `f(prompts, completions, **columns) -> list[float | None]`, sync or async.

    f is called by keyword with those of these that it names (all of them if it takes **kwargs);
    every value is a list with one item per response, group after group:
      prompts         the prompt as the user gave it: text, messages, or token ids
      completions     the response's text; for a prompt of messages
                      [{"role": "assistant", "content": text}]
      prompt_ids, completion_ids   token ids
      <column>        a further field of the data row; None where a group lacks it
    It returns one number per response; None abstains. NaN, infinity, a magnitude above 1e38 and
    anything that is not a number are errors of that sample; a list of another length is an error
    of every sample.

    If the call raises, f is called again for one response at a time, so that only those that fail
    are errors: a reward must therefore depend on its own response only. All calls together have
    timeout_s seconds; then the samples without a result are errors, the engine goes on, and the
    thread that still runs f is left behind. f gets copies and cannot change the groups; it runs in
    a thread of its own. A KeyboardInterrupt passes through.

    asked_by  which of several ranks call f: each for its own responses, or the first for all

    Raises ConfigError for an f whose arguments cannot be served, RequestError for groups that lack
    what f needs.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        *,
        timeout_s: float = 60.0,
        name: str | None = None,
        asked_by: AskedBy = "each",
    ) -> None:
        self.name = name or _name_of(f)
        if not callable(f):
            raise ConfigError(f"[RewardFunction] f must be callable but is {f!r}")
        if not 0.0 < timeout_s < threading.TIMEOUT_MAX:
            raise ConfigError(
                f"[{self.name}] timeout_s must be positive and finite but is {timeout_s}"
            )
        if asked_by not in ("each", "first"):
            raise ConfigError(
                f"[{self.name}] asked_by must be 'each' or 'first' but is {asked_by!r}"
            )
        self.f = f
        self.timeout_s = timeout_s
        self.asked_by = asked_by
        self._names, self._required, self._takes_all = _parameters(self.name, f)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that f cannot do without."""
        return tuple(name for name in self._required if name not in _OWN_ARGUMENTS)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """One reward, abstention or error per response."""
        rewards, status, errors = self.ask(groups, outcome_of)
        components = {self.name: [list(row) for row in rewards]}
        return Feedback(rewards, status, errors, components)

    def ask(
        self, groups: Sequence[Group], read: Read
    ) -> tuple[list[list[Any]], list[list[SampleStatus]], list[str]]:
        """[group][response] of what f returned, as `read` takes it, and of statuses; messages."""
        arguments = self._arguments(groups)
        where = [(g, k) for g, group in enumerate(groups) for k in range(len(group.responses))]
        outcomes, note = judge(self._call, arguments, len(where), self.timeout_s, read)
        values: list[list[Any]] = [[None] * len(group.responses) for group in groups]
        status: list[list[SampleStatus]] = [["error"] * len(group.responses) for group in groups]
        errors = [f"[{self.name}] {note}"] if note else []
        for (g, k), (value, state, message) in zip(where, outcomes, strict=True):
            values[g][k], status[g][k] = value, state
            if state == "error":
                errors.append(f"[{self.name}] groups[{g}].responses[{k}]: {message}")
        return values, status, errors[:MAX_ERRORS]

    def _arguments(self, groups: Sequence[Group]) -> dict[str, list[Any]]:
        """What f takes, as copies: name -> one item per response."""
        columns = list(dict.fromkeys(c for group in groups for c in group.columns))
        clash = [c for c in columns if c in _OWN_ARGUMENTS]
        if clash:
            raise RequestError(
                f"[{self.name}] columns must not be named {', '.join(_OWN_ARGUMENTS)} "
                f"but one is named {clash[0]!r}"
            )
        missing = [n for n in self._required if n not in (*_OWN_ARGUMENTS, *columns)]
        if missing and groups:
            raise RequestError(
                f"[{self.name}] column {missing[0]!r} is required by the reward function "
                f"but the columns are {columns}"
            )
        names = [n for n in (*_OWN_ARGUMENTS, *columns) if self._takes_all or n in self._names]
        # Each item is copied by itself: changing one sample's prompt must not change its sibling's.
        return {
            name: [
                _copy(self.name, name, self._item(name, groups, g, k))
                for g, group in enumerate(groups)
                for k in range(len(group.responses))
            ]
            for name in names
        }

    def _item(self, name: str, groups: Sequence[Group], g: int, k: int) -> Any:
        group, response = groups[g], groups[g].responses[k]
        if name == "prompts":
            return list(group.prompt_ids) if group.prompt is None else group.prompt
        if name == "prompt_ids":
            return list(group.prompt_ids)
        if name == "completion_ids":
            return list(response.token_ids)
        if name != "completions":
            return group.columns.get(name)
        if response.text is None:
            # A function of token ids may take completions too; without ids it would judge nothing.
            if "completion_ids" in self._names:
                return None
            raise RequestError(
                f"[{self.name}] groups[{g}].responses[{k}].text must be a string but is None: "
                "decode it, or take completion_ids"
            )
        if isinstance(group.prompt, list):
            return [{"role": "assistant", "content": response.text}]
        return response.text

    def _call(self, arguments: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self.f) or inspect.iscoroutinefunction(
            getattr(self.f, "__call__", None)  # noqa: B004  an object whose __call__ is async
        ):
            return asyncio.run(self.f(**arguments))
        result = self.f(**arguments)
        return asyncio.run(_wait(result)) if inspect.isawaitable(result) else result


def _name_of(f: Any) -> str:
    name = getattr(f, "__name__", None) or type(f).__name__
    return "reward" if name == "<lambda>" else str(name)


def _parameters(name: str, f: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """(names f takes by keyword, those without a default, whether it takes any)."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"[{name}] the reward function's arguments must be readable but are not: {error}"
        ) from error
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in by_name]
    nameless = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if nameless or not (takes_all or "completions" in names or "completion_ids" in names):
        raise ConfigError(
            f"[{name}] the reward function must take completions (or completion_ids, or **kwargs) "
            f"by name but takes ({', '.join(p.name for p in parameters)})"
        )
    return names, [p.name for p in by_name if p.default is p.empty], takes_all


def _copy(name: str, argument: str, item: Any) -> Any:
    try:
        return copy.deepcopy(item)
    except Exception as error:
        raise RequestError(
            f"[{name}] {argument} must be plain data that can be copied but: {describe(error)}"
        ) from error


async def _wait(result: Any) -> Any:
    return await result
