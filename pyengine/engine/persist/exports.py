"""Weights and gradients in the names and files of Hugging Face and peft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.learn.trained_network import TrainedNetwork
from pyengine.errors import RequestError
from pyengine.files import atomic_folder
from pyengine.models.adapter_format import write_adapter
from pyengine.models.writer import check_save_folder, write_model


class Exports:
    """What an engine hands out and writes for others.

    source  the model that was loaded, which adapters name as their base
    """

    def __init__(
        self,
        network: TrainedNetwork,
        tokenizer: Tokenizer | None,
        model_config: dict[str, Any],
        generation_config: dict[str, Any],
        source: str,
    ) -> None:
        self._network, self._tokenizer = network, tokenizer
        self._model_config, self._generation_config = model_config, generation_config
        self._source = source

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(name, gradient) under Hugging Face names and shapes, for every weight that has one.

        With LoRA, those of the adapters under the names of `peft`.
        """
        return iter(self._network.named_gradients())

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) of what is trained, named as in `named_gradients`."""
        masters = {n: p.detach() for n, p in self._network.parameters.items()}
        return iter(list(self._network.named(masters)))

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the policy as an fp32 Hugging Face folder that transformers loads; atomic.

        With LoRA, the sums of weights and adapters; `save_adapter` writes the adapters alone.
        Raises ConfigError where `path` holds anything but a saved model (unless `overwrite`),
        CheckpointError where the disk refuses or a weight is not finite.
        """
        self._network.check_masters("save_pretrained")
        check_save_folder(path, overwrite)
        policy = self._network.merged()
        with atomic_folder(path) as folder:
            write_model(folder, policy, self._model_config, self._generation_config)
            if self._tokenizer is not None:
                self._tokenizer.save(folder)

    def save_adapter(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the adapters as a folder that `peft` loads; atomic.

        Raises RequestError without LoRA, ConfigError where `path` holds anything but a saved
        adapter (unless `overwrite`), CheckpointError where the disk refuses or a number is not
        finite.
        """
        if self._network.lora is None:
            raise RequestError("[save_adapter] there are no adapters: load the model with lora=")
        write_adapter(path, self._network.lora, self._source, overwrite)
