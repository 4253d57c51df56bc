"""GGUF models: a checked file and its weights under the names of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyengine.models.gguf_config import describe
from pyengine.models.gguf_file import GGUFFile
from pyengine.models.gguf_tensors import TensorRule


@dataclass(frozen=True)
class GGUFModel:
    """A model file read as Hugging Face would write it.

    config             as in config.json, with model_type and architectures
    generation_config  as in generation_config.json: the token ids that begin and end a text
    file               the checked file: metadata for the tokenizer
    """

    config: dict[str, Any]
    generation_config: dict[str, Any]
    file: GGUFFile
    rules: tuple[TensorRule, ...]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, float32 tensor) one at a time, so that only one is in memory.

        Raises: ModelFileError for a tensor with NaN or infinity.
        """
        for rule in self.rules:
            yield rule.hf_name, self.file.load(rule)


def read_gguf(path: str | Path) -> GGUFModel:
    """Opens a GGUF file of a supported architecture; weights are read when iterated.

    Raises: ModelFileError for a corrupt file or one that does not fit its own config;
    ConfigError for an architecture or option that is not supported, by name.
    """
    file = GGUFFile(path)
    config, generation_config, rules = describe(file)
    for rule in rules:
        file.check_shape(rule)
    known = {rule.name for rule in rules}
    known |= {"rope_freqs.weight"} | ({"output.weight"} if config["tie_word_embeddings"] else set())
    for name in sorted(file.tensors.keys() - known):
        raise file.refuse(f"every tensor must belong to the model but {name} does not")
    return GGUFModel(config, generation_config, file, tuple(rules))
