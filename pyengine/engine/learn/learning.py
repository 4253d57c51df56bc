"""What an engine learns with: log-probs of packed trees, and gradients of the policy's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pyengine.engine.batch.gathering import split_trees, tree_shares
from pyengine.engine.batch.packing import PackedBatch, Tree
from pyengine.engine.learn.cached_logps import CachedReference, NamedLogps, ScoreProgress
from pyengine.engine.learn.gradients import Gradients
from pyengine.engine.learn.logprob_cache import LogprobCache
from pyengine.engine.learn.side_outputs import SidePass, side_passes, values_of
from pyengine.engine.learn.tape import Tape
from pyengine.engine.learn.tree_model import TreeModel
from pyengine.engine.named.named_models import NamedModels
from pyengine.engine.torch_path.tree_model_torch import hidden_states, token_logps
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.engine.weights.packed_lora import LoraGradients, PackedLora
from pyengine.errors import NonFiniteError
from pyengine.models.decoder import Decoder
from pyengine.objectives.core.objective import KL, SideOutput
from pyengine.ranks import current

LayerDone = Callable[[int], None]  # told which layer's gradients a pass adds nothing more to


class Backward(Protocol):
    """The way back of one pass, to be called once."""

    def __call__(
        self, dlogps: Tensor, dside: Mapping[str, Tensor], layer_done: LayerDone | None = None
    ) -> None:
        """Adds the gradient that follows from d loss / d log-probs (N,), and from d loss / d side
        outputs by name where they have one. Who knows no layers never calls `layer_done`."""


@dataclass(frozen=True)
class PolicyPass:
    """What a policy says of a packed batch.

    logps     (N,) float32
    side      name -> (N,) float32 of what was asked for: see LossInputs.side
    backward  the way back to the weights
    """

    logps: Tensor
    side: Mapping[str, Tensor]
    backward: Backward


class Learner(Protocol):
    """A policy with gradients, and its reference where there is one."""

    def reference_logps(self, trees: Sequence[Tree]) -> list[Tensor] | None:
        """(n,) float32 for each tree, its responses one after the other; None without a reference.

        What was asked before is not computed again.
        """

    def model_logps(self, name: str, trees: Sequence[Tree]) -> list[Tensor]:
        """The same under a snapshot by its name, or "reference"."""

    def reference_scores(
        self, trees: Sequence[Tree], progress: ScoreProgress | None
    ) -> list[list[Tensor]]:
        """(R,) float32 on the CPU for each response of each tree, from where updates find theirs.

        Raises NonFiniteError where the weights give log-probs that are not finite.
        """

    def close(self) -> None:
        """Lets go of the file that keeps log-probs."""

    def has_model(self, name: str) -> bool:
        """Whether `model_logps` knows a name."""

    def drop_reference(self) -> None:
        """Lets go of the reference, since a snapshot takes its place."""

    def computes(self, side: Sequence[SideOutput]) -> bool:
        """Whether it can: a KL needs a reference, and all of them the CPU's kernels."""

    def policy_pass(self, batch: PackedBatch, side: Sequence[SideOutput] = ()) -> PolicyPass:
        """Log-probs under the policy, and the way back to its weights."""

    def logps(
        self, batch: PackedBatch, side: Sequence[SideOutput] = ()
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Log-probs and side outputs as in `policy_pass`: the same bits, without the way back."""

    def hidden_states(self, model: str, batch: PackedBatch) -> Tensor:
        """(N, D) float32 after the final norm, of the rows that `source_rows` names.

        model  "policy", "reference" or a snapshot's name
        """

    def settle(self) -> None:
        """Parameters' `grad` become whole: to be called before they are applied."""

    def gradients(self) -> dict[str, Tensor]:
        """By parameter name, of those that have one."""

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what is in memory."""


class _WithModels:
    """What learners have in common: a reference of their own, and snapshots by name."""

    _reference: CachedReference | None
    _named: NamedLogps[PackedDecoder] | NamedLogps[Decoder] | None
    _cache: LogprobCache

    @torch.no_grad()
    def reference_logps(self, trees: Sequence[Tree]) -> list[Tensor] | None:
        """See Learner."""
        return self.model_logps("reference", trees) if self.has_model("reference") else None

    @torch.no_grad()
    def model_logps(self, name: str, trees: Sequence[Tree]) -> list[Tensor]:
        """See Learner."""
        return self._logps(name, trees, None, None)

    @torch.no_grad()
    def reference_scores(
        self, trees: Sequence[Tree], progress: ScoreProgress | None
    ) -> list[list[Tensor]]:
        """See Learner."""
        scores = []
        logps = self._logps("reference", trees, self._keep_reference, progress)
        for g, (tree, of_tree) in enumerate(zip(trees, logps, strict=True)):
            pieces = torch.split(of_tree.cpu(), [len(r) for r in tree.responses])
            for k, piece in enumerate(pieces):
                if not bool(piece.isfinite().all()):
                    raise NonFiniteError(
                        "[score] logits must be finite but the weights give NaN or infinity for "
                        f"groups[{g}].responses[{k}]"
                    )
            scores.append([piece.clone() for piece in pieces])
        return scores

    def _logps(
        self,
        name: str,
        trees: Sequence[Tree],
        prepare: Callable[[], object] | None,
        progress: ScoreProgress | None,
    ) -> list[Tensor]:
        shares = tree_shares(trees)
        own = [trees[i] for i in shares[current().rank]]
        if self._named is not None and self._named.has(name):
            mine = self._named.logps(name, own, prepare, progress)
        else:
            assert name == "reference"
            assert self._reference is not None
            mine = self._reference.logps(own, prepare, progress)
        sizes = [sum(map(len, tree.responses)) for tree in trees]
        return split_trees(mine, sizes, shares)

    def _keep_reference(self) -> None:
        """Called before a reference is computed that a caller asks, not an update."""

    def close(self) -> None:
        """See Learner."""
        self._cache.close()

    def has_model(self, name: str) -> bool:
        """See Learner."""
        own = name == "reference" and self._reference is not None
        return own or (self._named is not None and self._named.has(name))

    def drop_reference(self) -> None:
        """See Learner."""
        self._reference = None
        self._cache = self._cache.of(b"")  # the file alone: it holds the decoder no longer


class KernelLearner(_WithModels):
    """On the CPU, with the kernels that sample: log-probs have the sampler's bits.

    A batch's gradient has the same bits however it is cut into micro-batches.
    """

    def __init__(
        self,
        policy: PackedDecoder,
        reference: PackedDecoder | None,
        cache: LogprobCache,
        recompute: bool = False,
        named: NamedModels[PackedDecoder] | None = None,
    ) -> None:
        device = torch.device("cpu")
        self._cache = cache
        self._gradients = (
            LoraGradients(policy) if isinstance(policy, PackedLora) else Gradients(policy.decoder)
        )
        self._policy = TreeModel(policy, recompute, gradients=self._gradients)
        self._own: TreeModel | None = None  # the reference that is no snapshot
        self._reference = None
        self._named = None if named is None else NamedLogps(named, _passing_logps, cache, device)
        if reference is not None:
            # Asked once a step, in large batches, packing again is a hundredth of that; asked in
            # small ones it stays packed, see _keep_reference.
            self._own = TreeModel(reference, keep=False)
            self._reference = CachedReference(self._own.token_logps, cache, device)

    def computes(self, side: Sequence[SideOutput]) -> bool:
        """See Learner."""
        return KL not in side or self.has_model("reference")

    def policy_pass(self, batch: PackedBatch, side: Sequence[SideOutput] = ()) -> PolicyPass:
        """See Learner."""
        tape = self._policy.forward(batch)
        passes = self._side(tape, side)

        def backward(
            dlogps: Tensor, dside: Mapping[str, Tensor], layer_done: LayerDone | None = None
        ) -> None:
            gradients = self._gradients
            gradients.open()
            more = [passes[name].backward(slope, gradients) for name, slope in dside.items()]
            self._policy.backward(tape, dlogps, gradients, more, layer_done)

        return PolicyPass(tape.logps, values_of(passes), backward)

    def logps(
        self, batch: PackedBatch, side: Sequence[SideOutput] = ()
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See Learner."""
        if not side:
            return self._policy.token_logps(batch), {}
        tape = self._policy.forward(batch, saves=False)
        return tape.logps, values_of(self._side(tape, side))

    def hidden_states(self, model: str, batch: PackedBatch) -> Tensor:
        """See Learner."""
        read = self._policy if model == "policy" else self._whole(model)
        return read.hidden_states(batch).float()

    @torch.no_grad()
    def _side(self, tape: Tape, side: Sequence[SideOutput]) -> dict[str, SidePass]:
        reference = partial(self._whole, "reference")
        return side_passes(side, tape.states, self._policy.packed, reference)

    def drop_reference(self) -> None:
        """See Learner."""
        super().drop_reference()
        self._own = None

    def _keep_reference(self) -> None:
        """It is packed once and stays so: what is asked for may be a few tokens, many times."""
        self._whole("reference").packed.refresh()

    def _whole(self, name: str) -> TreeModel:
        """The reference, or a snapshot by its name."""
        if self._named is not None and self._named.has(name):
            model = self._named.model(name)
            assert isinstance(model, PackedDecoder)
            return TreeModel(model, keep=False)
        assert name == "reference"
        assert self._own is not None
        return self._own

    def settle(self) -> None:
        """See Learner."""
        self._gradients.settle()

    def gradients(self) -> dict[str, Tensor]:
        """See Learner."""
        return self._gradients.totals() if self._gradients.is_open() else {}

    @property
    def held_bytes(self) -> dict[str, int]:
        """See Learner."""
        return self._policy.held_bytes | {"gradients": self._gradients.num_bytes}


def _passing_logps(model: PackedDecoder, batch: PackedBatch) -> Tensor:
    return TreeModel(model, keep=False).token_logps(batch)


class TorchLearner(_WithModels):
    """On any device, with the training modules and autograd."""

    def __init__(
        self,
        policy: Decoder,
        reference: Decoder | None,
        cache: LogprobCache,
        device: torch.device,
        named: NamedModels[Decoder] | None = None,
    ) -> None:
        self._policy = policy
        self._cache = cache
        self._reference = None
        self._frozen = reference
        self._named = None if named is None else NamedLogps(named, token_logps, cache, device)
        if reference is not None:
            compute = partial(token_logps, reference)
            self._reference = CachedReference(compute, cache, device)

    def computes(self, side: Sequence[SideOutput]) -> bool:
        """None yet: it would store logits."""
        return not side

    def policy_pass(self, batch: PackedBatch, side: Sequence[SideOutput] = ()) -> PolicyPass:
        """See Learner."""
        assert not side
        logps = token_logps(self._policy, batch)

        def backward(
            dlogps: Tensor, dside: Mapping[str, Tensor], layer_done: LayerDone | None = None
        ) -> None:
            logps.backward(dlogps)  # type: ignore[no-untyped-call]

        return PolicyPass(logps.detach(), {}, backward)

    @torch.no_grad()
    def hidden_states(self, model: str, batch: PackedBatch) -> Tensor:
        """See Learner."""
        own = self._policy if model == "policy" else self._frozen
        decoder: Decoder | PackedDecoder | None = own
        if self._named is not None and self._named.has(model):
            decoder = self._named.model(model)
        assert isinstance(decoder, Decoder)
        return hidden_states(decoder, batch).float()

    def drop_reference(self) -> None:
        """See Learner."""
        super().drop_reference()
        self._frozen = None

    @torch.no_grad()
    def logps(
        self, batch: PackedBatch, side: Sequence[SideOutput] = ()
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See Learner."""
        assert not side
        return token_logps(self._policy, batch), {}

    def settle(self) -> None:
        """Autograd's gradients are whole already."""

    def gradients(self) -> dict[str, Tensor]:
        """See Learner."""
        return {n: p.grad for n, p in self._policy.named_parameters() if p.grad is not None}

    @property
    def held_bytes(self) -> dict[str, int]:
        """Autograd's memory comes and goes: only gradients stay."""
        return {"gradients": sum(g.nbytes for g in self.gradients().values())}
