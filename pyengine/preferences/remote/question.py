"""A question to an endpoint, and what its answer says."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from pyengine.errors import RequestError
from pyengine.preferences.groups import Group
from pyengine.preferences.remote.endpoint_fields import EndpointFields

_LONGEST = 100_000  # characters of an answer that are searched
_TRIES = 64
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


@dataclass(frozen=True)
class Question:
    """What is asked once.

    system, user  the two messages
    schema        JSON schema of the answer
    """

    system: str
    user: str
    schema: dict[str, Any]

    def request(self, endpoint: EndpointFields, structured: bool) -> dict[str, Any]:
        """As the endpoint takes it."""
        optional = {"temperature": endpoint.temperature, "seed": endpoint.seed}
        request: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [
                {"role": "system", "content": self.system},
                {"role": "user", "content": self.user},
            ],
            endpoint.max_tokens_as: endpoint.max_tokens,
        } | {name: value for name, value in optional.items() if value is not None}
        if structured:
            form = {"name": "verdict", "strict": True, "schema": self.schema}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        return request

    def digest(self, endpoint: EndpointFields) -> str:
        """SHA-256 of endpoint and request."""
        asked = [endpoint.base_url, self.request(endpoint, endpoint.structured)]
        # Lone surrogates, which broken texts hold, are escaped and so can be digested.
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Of its text: at least as many as its tokens."""
        texts = (self.system, self.user, json.dumps(self.schema))
        return sum(len(text.encode(errors="surrogatepass")) for text in texts)


def answer_schema(field: str, rule: dict[str, Any], explain: bool) -> dict[str, Any]:
    """An object of that one field, or of a reason before it: thought first, then the verdict."""
    properties = ({"reason": {"type": "string"}} if explain else {}) | {field: rule}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_field(text: str, field: str) -> tuple[Any, bool]:
    """(the field's value in an answer's JSON, whether it had to be searched for in other text).

    Searched for is the last object that has the field; a text that is one word or number alone is
    the value itself. Raises ValueError.
    """
    try:
        found = _decoder().decode(text)
        if isinstance(found, dict) and field in found:
            return found[field], False
    except (ValueError, RecursionError):
        pass
    bare = text.strip().strip("\"'`*.")
    if _NUMBER.fullmatch(bare):
        return float(bare), True
    if bare.isalpha():
        return bare, True
    tail = text[-_LONGEST:]
    start = len(tail)
    for _ in range(_TRIES):
        start = tail.rfind("{", 0, start)
        if start < 0:
            break
        try:
            found, _ = _decoder().raw_decode(tail, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and field in found:
            return found[field], True
    raise ValueError(f"must be JSON with the field {field!r} but is {text[:60]!r}")


def number_of(value: Any, lowest: float, highest: float, field: str) -> float | None:
    """A number of an answer; None abstains. Raises ValueError."""
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest:
        raise ValueError(
            f"{field} must be a number in [{lowest:g}, {highest:g}] but is {value!r:.60}"
        )
    return float(value)


def prompt_text(group: Group, where: str) -> str:
    """A group's prompt for a judge: its text, or its messages one after another.

    Raises RequestError where it has neither.
    """
    if isinstance(group.prompt, str):
        return group.prompt
    if group.prompt is None:
        raise RequestError(
            f"{where}.prompt must be text or messages for a judge to read but is None"
        )
    return "\n\n".join(f"{m.get('role')}: {m.get('content')}" for m in group.prompt)


def response_text(group: Group, k: int, where: str) -> str:
    """A response for a judge. Raises RequestError where it has no text."""
    text = group.responses[k].text
    if text is None:
        raise RequestError(
            f"{where}.responses[{k}].text must be a string for a judge to read but is None"
        )
    return text


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_no_number)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
