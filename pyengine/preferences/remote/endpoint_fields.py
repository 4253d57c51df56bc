"""What is said of an OpenAI-compatible endpoint: where it is, how it is asked, what it may cost."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pyengine.errors import ConfigError, MissingDependencyError
from pyengine.rules import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SWITCH,
    WHOLE,
    Rule,
    check_fields,
    checked,
    one_of,
    or_none,
)

TEXT = Rule("text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()))
# Fields that may change when a run is resumed: an answer's words do not depend on them.
CHANGE_NO_ANSWER = (
    "api_key_env", "concurrency", "timeout_s", "retries", "backoff_s", "max_wait_s",
    "usd_per_million_prompt_tokens", "usd_per_million_completion_tokens", "limit_usd", "cache",
)  # fmt: skip
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_KEY = re.compile(r"[!-~]{8,}")  # what a header may hold, and no word of an answer


@dataclass(frozen=True)
class EndpointFields:
    """Where an endpoint is, how it is asked, and what it may cost.

    Each is described in Endpoint.
    """

    SHORTHAND: ClassVar[str] = "model"
    name: ClassVar[str] = "endpoint"
    model: str = field(metadata={"rule": TEXT})
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    concurrency: int = checked(16, COUNT)
    timeout_s: float = checked(60.0, POSITIVE)
    retries: int = checked(5, WHOLE)
    backoff_s: float = checked(0.5, NOT_NEGATIVE)
    max_wait_s: float = checked(60.0, NOT_NEGATIVE)
    temperature: float | None = checked(0.0, or_none(NOT_NEGATIVE))
    seed: int | None = checked(None, or_none(WHOLE))
    max_tokens: int = checked(256, COUNT)
    max_tokens_as: str = checked("max_tokens", one_of("max_tokens", "max_completion_tokens"))
    structured: bool = checked(True, SWITCH)
    usd_per_million_prompt_tokens: float = checked(0.0, NOT_NEGATIVE)
    usd_per_million_completion_tokens: float = checked(0.0, NOT_NEGATIVE)
    limit_usd: float | None = checked(None, or_none(POSITIVE))
    cache: str | None = checked(None, or_none(TEXT))

    def __post_init__(self) -> None:
        check_fields(self)
        # A key may stand in either by mistake, so that neither is shown.
        if not _is_plain_url(self.base_url):
            raise ConfigError(
                "[endpoint] base_url must be http(s)://host/path without user, password, query or "
                "fragment but is another text (not shown: it may hold a key)"
            )
        name = self.api_key_env
        if name is not None and not (isinstance(name, str) and _VARIABLE.fullmatch(name)):
            raise ConfigError(
                "[endpoint] api_key_env must be the name of an environment variable (A-Z, 0-9, _) "
                "or None but is another text (not shown: it may be a key)"
            )
        prices = self.usd_per_million_prompt_tokens + self.usd_per_million_completion_tokens
        if self.limit_usd is not None and not prices:
            raise ConfigError(
                "[endpoint] limit_usd needs usd_per_million_prompt_tokens or "
                f"usd_per_million_completion_tokens > 0 but is {self.limit_usd} and both are 0"
            )

    def key(self) -> str | None:
        """The key. Raises ConfigError where its environment variable is not set."""
        if self.api_key_env is None:
            return None
        found = os.environ.get(self.api_key_env, "").strip()
        if not found:
            raise ConfigError(
                f"[endpoint] the environment variable {self.api_key_env} must hold the endpoint's "
                "key but is not set; api_key_env is None for an endpoint that asks for none"
            )
        if not _KEY.fullmatch(found):
            raise ConfigError(
                f"[endpoint] the key in {self.api_key_env} must be 8 or more characters of "
                "printable ASCII without blanks but is not"
            )
        return found

    @staticmethod
    def package() -> Any:
        """The package openai. Raises MissingDependencyError."""
        try:
            return importlib.import_module("openai")
        except ImportError as error:
            raise MissingDependencyError(
                '[endpoint] needs the package openai: pip install "pyengine[judge]"'
            ) from error


def _is_plain_url(url: object) -> bool:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        _ = parts.port  # ValueError for one that is no number
    except ValueError:
        return False
    extra = parts.username or parts.password or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not extra
