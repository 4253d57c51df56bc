"""What is said of an endpoint, and that its key is said nowhere."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

from pyengine.errors import ConfigError, MissingDependencyError
from pyengine.preferences import Endpoint, Group, RemoteScores, Response

KEY = "sk-test-0123456789abcdef"
GROUPS = [Group([1], [Response([2], text="seven")], prompt="A number?")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": " "}, "model must be text that is not empty but is ' '"),
        ({"concurrency": 0}, "concurrency must be an integer >= 1 but is 0"),
        ({"timeout_s": 0.0}, "timeout_s must be > 0 and finite but is 0.0"),
        ({"max_tokens_as": "n"}, "max_tokens_as must be one of max_tokens, max_completion_tokens"),
        ({"limit_usd": 1.0}, "limit_usd needs usd_per_million_prompt_tokens or"),
    ],
)
def test_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint(**({"model": "m"} | fields))
    assert str(caught.value).startswith(f"[endpoint] {message}")


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key_env": KEY},
        {"api_key_env": "sk_test_0123456789"},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"base_url": f"ftp://host/{KEY}"},
        {"base_url": f"https://host:{KEY}/v1"},
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint("m", **fields)
    assert next(iter(fields)) in str(caught.value)
    assert "0123456789" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_the_key_is_the_environments_and_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    source = RemoteScores(Endpoint("m", api_key_env="JUDGE_KEY"))
    assert source.endpoint.key() == KEY
    source.endpoint._calls  # noqa: B018  the client exists
    texts = [repr(source), repr(dataclasses.asdict(source)), repr(vars(source.endpoint))]
    texts += [repr(vars(source.endpoint._calls))]
    assert not any(KEY in text for text in texts)
    for value, rule in (("", "is not set"), ("short", "8 or more"), ("a key with blanks", "blank")):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(ConfigError, match=rule) as caught:
            RemoteScores(Endpoint("m", api_key_env="JUDGE_KEY"))(GROUPS)
        assert not value or value not in str(caught.value)


def test_without_the_package_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "pyengine\[judge\]"'):
        RemoteScores(Endpoint("m", api_key_env=None))(GROUPS)
