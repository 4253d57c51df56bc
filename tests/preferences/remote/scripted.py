"""Endpoints of this machine that answer by what they are shown."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from judge_server import Behaviour, Script, Server

from pyengine.preferences import Endpoint, Group, Response

KEY = "sk-test-0123456789abcdef"
_SHOWN = re.compile(r"<(response\w*)>\n(.*?)\n</\1>", re.DOTALL)


def shown(body: dict) -> list[str]:
    """The responses of a question."""
    return [text for _, text in _SHOWN.findall(body["messages"][-1]["content"])]


def by_text(plan: dict[str, list[Behaviour]]) -> Script:
    """What becomes of each response's questions, one after another; the last goes on."""
    asked: dict[str, int] = defaultdict(int)

    def script(_: int, body: dict) -> Behaviour:
        [text] = shown(body)
        behaviours, n = plan[text], asked[text]
        asked[text] += 1
        return behaviours[min(n, len(behaviours) - 1)]

    return script


def endpoint_of(server: Server | str, **fields: Any) -> Endpoint:
    """Its key is in JUDGE_KEY."""
    url = server if isinstance(server, str) else server.url
    given = {"base_url": url, "api_key_env": "JUDGE_KEY", "backoff_s": 0.001, "retries": 2}
    return Endpoint("m", **(given | fields))


def one_group(*texts: str) -> list[Group]:
    responses = [Response([k], text=text) for k, text in enumerate(texts)]
    return [Group([1], responses, prompt="Say something.")]
