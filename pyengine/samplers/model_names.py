"""What a sampler's field that names a model of the engine must be."""

from __future__ import annotations

from pyengine.rules import Rule

MODEL = Rule(
    "'reference' or a snapshot's name",
    lambda value: isinstance(value, str) and value not in ("", "policy"),
)
ANY_MODEL = Rule(
    "'policy', 'reference' or a snapshot's name",
    lambda value: isinstance(value, str) and value != "",
)
