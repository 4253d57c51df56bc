"""What is read of a model beside log-probs: hidden states, and how long gradients are.

Weights, moments and counters stay as they are, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from pyengine.engine.batch.packing import PackedBatch, Tree, check_tree, micro_batches, pack
from pyengine.engine.footprint import Footprint
from pyengine.engine.infer.inference import check_model
from pyengine.engine.learn.learning import Learner
from pyengine.engine.learn.trained_network import TrainedNetwork, drops_gradients
from pyengine.engine.named.engine_reference import EngineReference
from pyengine.engine.named.snapshots import Snapshots
from pyengine.errors import NonFiniteError, RequestError
from pyengine.preferences.binding import Rows
from pyengine.preferences.groups import Group


class Readings:
    """What an engine says of groups beside their log-probs.

    footprint  says how many tokens a micro-batch has, and whether a backward pass has room
    """

    def __init__(
        self,
        network: TrainedNetwork,
        learner: Learner,
        reference: EngineReference,
        snapshots: Snapshots,
        footprint: Footprint,
        device: torch.device,
    ) -> None:
        self._network, self._learner = network, learner
        self._reference, self._snapshots = reference, snapshots
        self._footprint, self._device = footprint, device

    @drops_gradients
    def gradient_norms(
        self, groups: Sequence[Group], *, per_token: bool = True
    ) -> list[list[float]]:
        """How long the gradient of each response's log-prob is: norms[g][k], exact, over all that
        is trained (with LoRA the adapters).

        A forward and a backward pass for each response, of which nothing is applied.
        per_token  of the mean log-prob of its tokens; else of their sum
        A response without tokens has 0. Raises RequestError between forward_backward and step, in
        an engine that does not train, and for ids the model cannot take, naming the group;
        NonFiniteError where a gradient is not finite.
        Source: as a sampling budget's measure, Yao et al., arXiv:2505.02391, section 3.
        """
        who = "gradient_norms"
        self._network.check_masters(who)
        self._network.check_no_gradients(who)
        trees = self._trees(who, groups)
        self._footprint.plan(()).check_update()
        found = []
        for g, tree in enumerate(trees):
            norms = [self._gradient_norm(tree.prompt_ids, r, per_token) for r in tree.responses]
            for k, norm in enumerate(norms):
                if not math.isfinite(norm):
                    raise NonFiniteError(
                        f"[{who}] gradients must be finite but that of groups[{g}].responses[{k}] "
                        f"has the norm {norm}"
                    )
            found.append(norms)
        return found

    def _gradient_norm(
        self, prompt_ids: Sequence[int], response: Sequence[int], per_token: bool
    ) -> float:
        if not response:
            return 0.0
        read = self._learner.policy_pass(pack([Tree(prompt_ids, [response])], self._device))
        slope = 1 / len(response) if per_token else 1.0
        try:
            read.backward(torch.full_like(read.logps, slope), {})
            return self._network.gradient_norm()
        finally:
            self._network.drop_gradients()

    def hidden_states(
        self, groups: Sequence[Group], model: str = "policy", pool: Rows = "last"
    ) -> list[list[Tensor | None]]:
        """Each response's hidden states after the final norm: a vector states[g][k] (D,), or of
        R tokens (R, D), float32 on the CPU; None of a response without tokens.

        model  "policy", "reference" or a snapshot's name
        pool   "last": of its last token; "mean": the mean over its tokens; "tokens": all of them
        Each group's prompt is computed once; no bit depends on the other groups. Raises
        RequestError for an unknown model or pool, and for ids the model cannot take.
        """
        who = "hidden_states"
        check_model(who, model, self._reference.exists, self._snapshots.names)
        if pool not in get_args(Rows):
            raise RequestError(
                f"[{who}] pool must be one of {', '.join(get_args(Rows))} but is {pool!r}"
            )
        trees = self._trees(who, groups)
        # Rows with the responses' last tokens, which log-probs do not need.
        sizes = [len(t.prompt_ids) + sum(map(len, t.responses)) for t in trees]
        found: list[list[Tensor | None]] = []
        for part in micro_batches(sizes, self._footprint.sizes.micro_batch_tokens):
            of_part = [trees[i] for i in part]
            batch = pack(of_part, self._device, last_rows=True)
            if pool != "last":
                batch = _every_row(batch)
            states = self._learner.hidden_states(model, batch).cpu()
            lengths = [1 if pool == "last" else len(r) for t in of_part for r in t.responses]
            pieces = iter(torch.split(states, lengths))
            for tree in of_part:
                row = [next(pieces) for _ in tree.responses]
                found.append(
                    [
                        _pooled(piece, pool) if response else None
                        for piece, response in zip(row, tree.responses, strict=True)
                    ]
                )
        return found

    def _trees(self, who: str, groups: Sequence[Group]) -> list[Tree]:
        spec = self._network.decoder.spec
        trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in groups]
        for i, tree in enumerate(trees):
            check_tree(who, i, tree, spec.vocab_size, spec.max_positions)
        return trees


def _pooled(states: Tensor, pool: Rows) -> Tensor:
    """(R, D) -> (D,), or a copy of all of it."""
    return states.clone() if pool == "tokens" else states.double().mean(0).float()


def _every_row(batch: PackedBatch) -> PackedBatch:
    """The batch, packed with `last_rows`, with all rows of responses read."""
    rows: list[int] = []
    for start, (prompt, responses) in zip(batch.tree_rows, batch.segments, strict=False):
        first = start + prompt
        rows.extend(range(first, first + sum(responses)))
    return replace(batch, source_rows=torch.tensor(rows, device=batch.token_ids.device))
