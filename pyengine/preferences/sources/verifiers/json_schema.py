"""JSON: the response is well formed, and follows the row's JSON Schema if there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import MissingDependencyError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.verifiers.answer_span import fenced
from pyengine.preferences.sources.verifiers.timed_process import TimedProcess
from pyengine.preferences.sources.verifiers.verifier import (
    RIGHT,
    TEXT,
    UNANSWERED,
    Judged,
    Verdict,
    Verifier,
    bad_answer,
    late,
    right_if,
)
from pyengine.rules import POSITIVE, checked, or_none

_BROKEN = Verdict(0.0, ("wrong", "not_json"))
# Whether a document is valid, or why its schema cannot be applied. Nothing is fetched.
_VALID = """\
import functools, re, jsonschema, referencing
from referencing.exceptions import Unresolvable

@functools.lru_cache
def validator_of(text):
    schema = json.loads(text)
    draft = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return draft(schema, registry=referencing.Registry())

def answer(schema, document):
    try:
        return validator_of(schema).is_valid(json.loads(document))
    except (Unresolvable, re.error) as error:
        return f"{type(error).__name__}: {error}"
    except RecursionError:
        return False
"""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # which Python's reader would take


def _loads(text: str) -> Any:
    """Raises ValueError or RecursionError for what is no JSON."""
    return json.loads(text, parse_constant=_refuse)


@dataclass(frozen=True)
class JsonSchema(Verifier):
    """Right where the response is JSON, and valid under the row's JSON Schema.

    answer  the column with the schema, an object or its JSON text; its "$schema" says the draft,
            2020-12 without. None: well-formed JSON is all that is asked for
    timeout_s  for one response, as its schema may have patterns; one that takes longer is an error,
            counted as "timed_out"

    A fenced block counts alone, the last closed one. NaN and Infinity are no JSON. A reference
    (`$ref`) to another document is an error of the row, as nothing is fetched, and so is a pattern
    that is none. Schemas need the
    package `jsonschema` (pip install "pyengine[verify]").
    Source: RFC 8259; JSON Schema, draft 2020-12.
    """

    name: ClassVar[str] = "json_schema"
    answer: str | None = checked("schema", or_none(TEXT))  # type: ignore[assignment]
    timeout_s: float = checked(2.0, POSITIVE)

    @property
    def reads(self) -> tuple[str, ...]:
        """See Verifier."""
        return () if self.answer is None else (self.answer,)

    def ready(self) -> None:
        """Raises MissingDependencyError without the package, where there are schemas."""
        if self.answer is not None:
            _package()

    def check(self, groups: Sequence[Group]) -> None:
        """The column must be there; so must the package, where there is a schema."""
        if self.answer is None:
            return
        super().check(groups)
        if any(group.columns.get(self.answer) is not None for group in groups):
            _package()

    @property
    def needs_answer(self) -> bool:
        """Without a column of schemas every JSON is right."""
        return self.answer is not None

    def judge(self, responses: Sequence[Judged]) -> list[Verdict]:
        """A schema is made ready once for all responses to its row, in one process for all rows."""
        ready: dict[int, str | Verdict | None] = {}
        verdicts = []
        with TimedProcess(_VALID) as process:
            for each in responses:
                if id(each.answer) not in ready:
                    ready[id(each.answer)] = _schema_of(each.answer)
                schema = ready[id(each.answer)]
                if isinstance(schema, Verdict):
                    verdicts.append(schema)
                else:
                    verdicts.append(self._verdict(process, schema, each.text))
        return verdicts

    def _verdict(self, process: TimedProcess, schema: str | None, text: str) -> Verdict:
        document = _document(text)
        if isinstance(document, Verdict):
            return document
        if schema is None:
            return RIGHT
        found = process.ask([schema, document], self.timeout_s)
        if found is None:
            return late("schema", schema, self.timeout_s)
        if isinstance(found, str):
            return Verdict(
                None,
                ("bad_answer",),
                f"the row's schema must be one that can be applied as it is but: {found}",
            )
        return right_if(found)


def _document(text: str) -> str | Verdict:
    """The part of a text that is JSON."""
    part = fenced(text, ("", "json"))
    if part is None:
        return UNANSWERED
    try:
        _loads(part)
    except (ValueError, RecursionError):
        return _BROKEN
    return part


def _schema_of(answer: Any) -> str | Verdict | None:
    """A row's schema as JSON, checked."""
    if answer is None:
        return None
    try:
        schema = _loads(answer) if isinstance(answer, str) else answer
    except (ValueError, RecursionError):
        return bad_answer("JSON", answer)
    if not isinstance(schema, (Mapping, bool)):
        return bad_answer("a JSON Schema", answer)
    jsonschema = _package()
    draft = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        draft.check_schema(schema)
        return json.dumps(schema)
    except (jsonschema.exceptions.SchemaError, RecursionError, TypeError):
        return bad_answer("a JSON Schema", answer)


def _package() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise MissingDependencyError(
            "[json_schema] jsonschema must be installed to check schemas but is not: "
            'pip install "pyengine[verify]"'
        ) from error
    return jsonschema
