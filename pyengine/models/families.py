"""The model families, by config.json's model_type. A new family is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyengine.models.config import ConfigReader, show
from pyengine.models.gpt2 import GPT2
from pyengine.models.granite import GRANITE
from pyengine.models.llama import LLAMA, MISTRAL
from pyengine.models.qwen2 import QWEN2
from pyengine.models.qwen3 import QWEN3
from pyengine.models.smollm3 import SMOLLM3
from pyengine.models.spec import DecoderSpec, Family

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GRANITE, GPT2)
}


def family_of(config: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family that config.json's model_type names.

    Raises: ConfigError where there is none.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigReader({}, where).refuse(
            f"model_type must be one of {', '.join(sorted(FAMILIES))} but is {show(model_type)}"
        )
    return FAMILIES[model_type]


def parse_config(config: Mapping[str, Any], where: str = "config.json") -> DecoderSpec:
    """The decoder that a config.json describes.

    Raises: ConfigError that names the key and its value, for a missing, malformed, unknown or
    unsupported option.
    """
    reader = ConfigReader(config, where)
    spec = family_of(config, where).parse(reader)
    reader.finish()
    return spec
