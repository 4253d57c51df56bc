"""What an engine and a reward model share: a network that learns, and what moves its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from pyengine.engine.optim.optimizer import Optimizer
from pyengine.errors import ConfigError, RequestError
from pyengine.models.adapter_format import peft_tensors
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora
from pyengine.models.writer import hf_tensors

Method = TypeVar("Method", bound=Callable[..., Any])


class Learns(Protocol):
    """Where the gradients of a decoder, or of its adapters, come from."""

    def settle(self) -> None:
        """Parameters' `grad` become whole: to be called before they are applied."""

    def gradients(self) -> dict[str, Tensor]:
        """By parameter name, of those that have one."""

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what is in memory."""


class TrainedNetwork:
    """A decoder, what of it is trained, and the optimizer that moves it.

    decoder    its weights are trained, or with `lora` the adapters that are added to them
    optimizer  of all that is trained, a head beside the decoder too
    learner    of the decoder's gradients, or the adapters'
    dtype      what is multiplied: "int8" has no masters and does not train
    """

    def __init__(
        self,
        decoder: Decoder,
        lora: Lora | None,
        optimizer: Optimizer,
        learner: Learns,
        dtype: str,
    ) -> None:
        self.decoder, self.lora = decoder, lora
        self.optimizer = optimizer
        self._learner = learner
        self._dtype = dtype

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All that is trained, by name."""
        return self.optimizer.parameters

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what is in memory."""
        return self._learner.held_bytes | self.optimizer.held_bytes

    # Learning

    def step(self) -> dict[str, float]:
        """Applies the gathered gradients and clears them: see Optimizer.apply."""
        self._learner.settle()
        return self.optimizer.apply()

    def drop_gradients(self) -> None:
        """All of them."""
        self.optimizer.zero_grad()

    def gradient_norm(self) -> float:
        """Of all gathered gradients together, before any clipping."""
        self._learner.settle()
        return self.optimizer.grad_norm()

    def check_no_gradients(self, who: str) -> None:
        """Raises RequestError between forward_backward and step."""
        if self.optimizer.has_gradients:
            raise RequestError(
                f"[{who}] there are gradients that no step has applied: call step first"
            )

    def check_masters(self, who: str) -> None:
        """Raises RequestError where there are no fp32 masters to update and to save."""
        if self._dtype == "int8":
            raise RequestError(
                f"[{who}] an engine of dtype '{self._dtype}' only samples and scores: load "
                "the model in 'float32' or 'bfloat16'"
            )

    def restore(
        self,
        moments: Mapping[str, Tensor],
        step_count: int,
        skipped_in_a_row: int,
        reset_at: int = 0,
    ) -> None:
        """The optimizer goes on as after `step_count` steps: see Optimizer.load_state_tensors.

        Raises CheckpointError for moments of another model.
        """
        self.optimizer.load_state_tensors(moments, step_count, reset_at)
        self.optimizer.skipped_in_a_row = skipped_in_a_row

    # For others

    def named(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the decoder's parameters under Hugging Face names and shapes; of adapters
        under the names of `peft`."""
        if self.lora is not None:
            return peft_tensors(tensors)
        return hf_tensors(self.decoder.spec, tensors)

    def named_gradients(self) -> list[tuple[str, Tensor]]:
        """(name, gradient) of all that has one but a head."""
        gradients = self.optimizer.whole_gradients()
        return list(self.named(self._learner.gradients() if gradients is None else gradients))

    def merged(self) -> Decoder:
        """The decoder that is saved: with LoRA, the sums of weights and adapters."""
        return self.decoder if self.lora is None else self.lora.merged(self.decoder)


def drops_gradients(method: Method) -> Method:
    """A method that learns, of a class with a `_network`: when it raises or is interrupted, all
    gathered gradients are dropped; where it is refused before any work they are as before. The
    caller's grad mode does not matter."""

    @wraps(method)
    def learn(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with torch.enable_grad():
                return method(self, *args, **kwargs)
        except (RequestError, ConfigError):
            raise
        except BaseException:
            self._network.drop_gradients()
            raise

    return cast(Method, learn)
