"""A decoder that is read at the last token of each response: hidden states, and gradients back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyengine.engine.batch.packing import PackedBatch, Tree, micro_batches, pack
from pyengine.engine.learn.gradients import Gradients
from pyengine.engine.learn.tree_model import TreeModel
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.engine.weights.packed_lora import LoraGradients, PackedLora
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora, trained_parameters
from pyengine.ops.linear import Kind

_CPU = torch.device("cpu")


class Backbone:
    """On the CPU, with the kernels of tree_model.py; each prompt is computed once.

    lora        adapters to train instead of the decoder's weights
    parameters  what is trained, by its name in the decoder or in `peft`
    """

    def __init__(
        self,
        decoder: Decoder,
        kind: Kind,
        lora: Lora | None,
        recompute: bool,
        micro_batch_tokens: int,
    ) -> None:
        self.parameters = trained_parameters(decoder, lora)
        self._decoder = decoder
        self._packed: PackedDecoder
        if lora is None:
            self._packed, self._gradients = PackedDecoder(decoder, kind), Gradients(decoder)
        else:
            self._packed = PackedLora(decoder, kind, lora)
            self._gradients = LoraGradients(self._packed)
        packed = self._packed.without_head()
        self._model = TreeModel(packed, recompute, gradients=self._gradients)
        self._micro_batch_tokens = micro_batch_tokens

    def states(self, trees: Sequence[Tree]) -> Tensor:
        """(S, D) float32: after the final norm, at each response's last token."""
        found = [self._model.hidden_states(batch).float() for batch in self._batches(trees)]
        return torch.cat([torch.empty(0, self._decoder.spec.hidden_size), *found])

    def learn(self, trees: Sequence[Tree], slopes: Callable[[Tensor], Tensor]) -> int:
        """Adds to the gradients what follows from d loss / d states (S, D), both float32.

        slopes  the loss's gradient from the states of all trees: asked once, so that it may join
                them as it likes, and no bit depends on how the batch is cut
        A batch of several micro-batches is computed forward twice, since only one of them is kept
        at a time. Returns the rows of tokens.
        """
        batches = list(self._batches(trees))
        whole = self._model.forward_hidden(batches[0]) if len(batches) == 1 else None
        dstates = slopes(self.states(trees) if whole is None else whole.hidden.float())
        parts = torch.split(dstates, [len(batch.source_rows) for batch in batches])
        self._gradients.open()
        for batch, part in zip(batches, parts, strict=True):
            tape = self._model.forward_hidden(batch) if whole is None else whole
            self._model.backward_hidden(tape, part.contiguous(), self._gradients)
        return sum(len(batch.token_ids) for batch in batches)

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what is in memory."""
        own = {"gradients": self._gradients.num_bytes, "packed": self._packed.num_bytes}
        return self._model.held_bytes | own

    def settle(self) -> None:
        """Parameters' `grad` become whole: to be called before they are applied."""
        self._gradients.settle()

    def gradients(self) -> dict[str, Tensor]:
        """By the names of `parameters`, of those that have one."""
        return self._gradients.totals() if self._gradients.is_open() else {}

    def _batches(self, trees: Sequence[Tree]) -> list[PackedBatch]:
        sizes = [len(t.prompt_ids) + sum(map(len, t.responses)) for t in trees]
        return [
            pack([trees[i] for i in part], _CPU, last_rows=True)
            for part in micro_batches(sizes, self._micro_batch_tokens)
        ]
