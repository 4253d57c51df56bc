"""From a recipe's reward to a function: built-in by name, the user's code only where allowed."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pyengine.errors import ConfigError, MissingDependencyError

Reward = Callable[..., Any]
_REFERENCE = re.compile(r"^(?P<place>.+):(?P<name>[A-Za-z_]\w*)$", re.DOTALL)


def is_builtin(function: str) -> bool:
    """Whether the name is a reward that ships with pyengine, so that no code of the user's runs."""
    return function in BUILTIN


def load_reward(function: str, *, allow_code: bool) -> Reward:
    """The reward function `f(prompts, completions, **columns) -> list[float | None]` that a recipe
    names.

    function    a key of BUILTIN, "path/file.py:name" or "package.module:name"
    allow_code  importing a file or module runs it, so a recipe alone cannot ask for it: the caller
                must agree

    Raises
        ConfigError             unknown name, code that is not allowed, no such file or function
        MissingDependencyError  the built-in reward needs a package that is not installed
    """
    if function in BUILTIN:
        return BUILTIN[function]()
    match = _REFERENCE.match(function)
    if match is None:
        raise ConfigError(
            f"[reward] function must be one of {', '.join(sorted(BUILTIN))}, 'file.py:function' or "
            f"'module:function' but is {function!r}"
        )
    if not allow_code:
        raise ConfigError(
            f"[reward] {function} is Python code, which runs only where it is allowed to; "
            "if you trust it, allow it with --allow-code"
        )
    place, name = match["place"], match["name"]
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    reward = getattr(module, name, None)
    if not callable(reward):
        raise ConfigError(f"[reward] {place} must define a function {name} but does not")
    return reward  # type: ignore[no-any-return]


def brevity() -> Reward:
    """1 / (1 + words / 20): 1 of no words, 1/2 of 20; words are what blanks part."""

    def brevity(completions: Sequence[Any]) -> list[float]:
        return [1 / (1 + len(_text(c).split()) / 20) for c in completions]

    return brevity


def vader() -> Reward:
    """Sentiment of the completion, VADER's compound score in [-1, 1].

    Source: Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
    Social Media Text", 2014.
    """
    return _vader_score("vader", "compound")


def vader_negative() -> Reward:
    """The share of the completion that VADER finds negative, in [0, 1]. Source: see vader."""
    return _vader_score("vader_negative", "neg")


def vader_positive() -> Reward:
    """The share of the completion that VADER finds positive, in [0, 1]. Source: see vader."""
    return _vader_score("vader_positive", "pos")


BUILTIN: dict[str, Callable[[], Reward]] = {
    "brevity": brevity,
    "vader": vader,
    "vader_negative": vader_negative,
    "vader_positive": vader_positive,
}


def _vader_score(name: str, score: str) -> Reward:
    """One of the scores that VADER gives of a text, as a function of that name."""
    analyzer = _vader_analyzer()

    def sentiment(completions: Sequence[Any]) -> list[float]:
        return [float(analyzer.polarity_scores(_text(c))[score]) for c in completions]

    sentiment.__name__ = name
    return sentiment


def _text(completion: Any) -> str:
    """A completion's text, or its last message's."""
    return str(completion if isinstance(completion, str) else completion[-1]["content"])


@cache
def _vader_analyzer() -> Any:
    try:
        module = importlib.import_module("vaderSentiment.vaderSentiment")
    except ImportError as error:
        raise MissingDependencyError(
            '[reward] vader needs the package vaderSentiment: pip install "pyengine[demo]"'
        ) from error
    return module.SentimentIntensityAnalyzer()


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"[reward] {path} must be a Python file but there is no such file")
    name = f"pyengine_user_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"[reward] {path} must import but {type(error).__name__}: {error}"
        ) from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            f"[reward] module {name} must import but {type(error).__name__}: {error}"
        ) from error
