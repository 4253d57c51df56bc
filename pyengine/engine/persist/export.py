"""The engine's methods that hand out weights in the names and files of Hugging Face and peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.config import EngineConfig
from pyengine.engine.guard import Guard, guarded
from pyengine.engine.learn.learning import Learner
from pyengine.errors import RequestError
from pyengine.files import atomic_folder
from pyengine.models.adapter_format import peft_tensors, write_adapter
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora
from pyengine.models.spec import DecoderSpec
from pyengine.models.writer import check_save_folder, hf_tensors, write_model


class ExportCalls:
    """What `Engine` writes for others."""

    if TYPE_CHECKING:
        _guard: Guard
        config: EngineConfig
        tokenizer: Tokenizer | None
        _policy: Decoder
        _lora: Lora | None
        _learner: Learner
        _trained: Mapping[str, nn.Parameter]
        _model_config: dict[str, Any]
        _generation_config: dict[str, Any]

        @property
        def spec(self) -> DecoderSpec: ...

        def _refuse_without_masters(self, who: str) -> None: ...

    @guarded
    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(name, gradient) under Hugging Face names and shapes, for every weight that has one.

        With LoRA, those of the adapters under the names of `peft`.
        """
        return iter(list(self._named(self._learner.gradients())))

    @guarded
    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) of what is trained, named as in `named_gradients`."""
        return iter(list(self._named({n: p.detach() for n, p in self._trained.items()})))

    def _named(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        return hf_tensors(self.spec, tensors) if self._lora is None else peft_tensors(tensors)

    @guarded
    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the policy as an fp32 Hugging Face folder that transformers loads; atomic.

        With LoRA, the sums of weights and adapters; `save_adapter` writes the adapters alone.
        Raises ConfigError where `path` holds anything but a saved model (unless `overwrite`),
        CheckpointError where the disk refuses or a weight is not finite.
        """
        self._refuse_without_masters("save_pretrained")
        check_save_folder(path, overwrite)
        policy = self._policy if self._lora is None else self._lora.merged(self._policy)
        with atomic_folder(path) as folder:
            write_model(folder, policy, self._model_config, self._generation_config)
            if self.tokenizer is not None:
                self.tokenizer.save(folder)

    @guarded
    def save_adapter(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the adapters as a folder that `peft` loads; atomic.

        Raises RequestError without LoRA, ConfigError where `path` holds anything but a saved
        adapter (unless `overwrite`), CheckpointError where the disk refuses or a number is not
        finite.
        """
        if self._lora is None:
            raise RequestError("[save_adapter] there are no adapters: load the model with lora=")
        write_adapter(path, self._lora, self.config.source, overwrite)
