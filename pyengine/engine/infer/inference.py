"""Sampling and scoring with an engine's models: C++ sessions on the CPU, torch on a GPU until the
kernels are there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyengine.engine.batch.packing import Tree, micro_batches, pack
from pyengine.engine.calls.scoring import score_trees
from pyengine.engine.calls.streaming import Stream
from pyengine.engine.infer.generation import Decodes, Generator, Progress, Request
from pyengine.engine.infer.sampler import MAX_MODELS, Sampler
from pyengine.engine.named.named_models import NamedModels
from pyengine.engine.torch_path.generation_torch import TorchGenerator
from pyengine.engine.torch_path.tree_model_torch import token_logps
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.errors import RequestError
from pyengine.models.decoder import Decoder
from pyengine.preferences.groups import Response

ScoreProgress = Callable[[int, int], None]


class Inference(Protocol):
    """What an engine asks of its models without gradients."""

    def generate(
        self,
        requests: Sequence[Request],
        mixture: Mapping[str, float],
        progress: Progress | None,
        stream: Stream | None,
        cancel: threading.Event | None,
    ) -> list[list[Response]]:
        """The responses of each request: `Engine.generate` without the encoding of prompts."""

    def score(
        self, model: str, trees: Sequence[Tree], progress: ScoreProgress | None
    ) -> list[list[Tensor]]:
        """(R,) float32 on the CPU for each response of each tree."""

    def forget(self) -> None:
        """Keys and values that are kept from call to call are not used again."""

    def drop_reference(self) -> None:
        """Lets go of the reference, since a snapshot takes its place."""

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what is in memory."""


class SessionInference:
    """On the CPU. Weights are packed when they are first needed.

    Calls share one session, so they come one after another: see guard.py.
    """

    def __init__(
        self,
        models: Mapping[str, PackedDecoder],
        kv_tokens: int,
        tokenizer: Decodes | None,
        stop_ids: frozenset[int],
        named: NamedModels[PackedDecoder] | None = None,
    ) -> None:
        self._named = named
        spec = models["policy"].decoder.spec
        self._generator = Generator(Sampler(models, kv_tokens), spec, tokenizer, stop_ids)

    @property
    def sampler(self) -> Sampler:
        """Sessions on the models. Another one, of the same models, changes no bit of a result."""
        return self._generator.sampler

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        self._generator.sampler = sampler

    def generate(
        self,
        requests: Sequence[Request],
        mixture: Mapping[str, float],
        progress: Progress | None,
        stream: Stream | None,
        cancel: threading.Event | None,
    ) -> list[list[Response]]:
        """See Inference."""
        self._fetch(mixture)
        return self._generator.run(requests, mixture, progress, stream, cancel)

    def score(
        self, model: str, trees: Sequence[Tree], progress: ScoreProgress | None
    ) -> list[list[Tensor]]:
        """See Inference."""
        self._fetch([model])
        return score_trees(self.sampler, model, trees, progress)

    def _fetch(self, models: Iterable[str]) -> None:
        """Snapshots that are asked for, as models of the sampler."""
        if self._named is None:
            return
        sources = {name: s for name in models if (s := self._named.source(name)) is not None}
        held = self._named.take(sources.values())
        for name, source in sources.items():
            self.sampler.put(name, held[source])

    def release(self, model: PackedDecoder) -> None:
        """Lets go of a snapshot's model under all its names."""
        for name in [name for name, each in self.sampler.models.items() if each is model]:
            self.sampler.drop(name)
        model.scratch.forget(model.mark)

    def drop_reference(self) -> None:
        """See Inference."""
        if "reference" in self.sampler.models:
            self.release(self.sampler.models["reference"])

    @property
    def held_bytes(self) -> dict[str, int]:
        """See Inference."""
        return self.sampler.held_bytes

    def forget(self) -> None:
        """See Inference."""
        self.sampler.forget()


class TorchInference:
    """On any device, with the training modules; it refuses what only sessions can do."""

    def __init__(
        self,
        decoders: Mapping[str, Decoder],
        device: torch.device,
        kv_tokens: int,
        micro_batch_tokens: int,
        tokenizer: Decodes | None,
        stop_ids: frozenset[int],
        named: NamedModels[Decoder] | None = None,
    ) -> None:
        self._decoders = dict(decoders)
        self._named = named
        self._device = device
        self._micro_batch_tokens = micro_batch_tokens
        self._generator = TorchGenerator(decoders["policy"], tokenizer, stop_ids, kv_tokens, device)

    def generate(
        self,
        requests: Sequence[Request],
        mixture: Mapping[str, float],
        progress: Progress | None,
        stream: Stream | None,
        cancel: threading.Event | None,
    ) -> list[list[Response]]:
        """See Inference."""
        if dict(mixture) != {"policy": 1.0} or stream is not None or cancel is not None:
            raise RequestError(
                f"[generate] models, stream and cancel must wait for the kernels on {self._device}"
            )
        return self._generator.run(requests, progress)

    @torch.no_grad()
    def score(
        self, model: str, trees: Sequence[Tree], progress: ScoreProgress | None
    ) -> list[list[Tensor]]:
        """See Inference."""
        decoder, scores = self._decoder(model), list[list[Tensor]]()
        for part in micro_batches([t.num_rows for t in trees], self._micro_batch_tokens):
            packed = pack([trees[i] for i in part], self._device)
            logps = token_logps(decoder, packed).cpu()
            pieces = iter(torch.split(logps, packed.cu_seqlens.diff().tolist()))
            for i in part:
                scores.append([next(pieces).clone() for _ in trees[i].responses])
            if progress is not None:
                progress(len(scores), len(trees))
        return scores

    def _decoder(self, model: str) -> Decoder:
        source = None if self._named is None else self._named.source(model)
        if self._named is None or source is None:
            return self._decoders[model]
        return self._named.take([source])[source]

    def forget(self) -> None:
        """Nothing is kept from call to call."""

    def drop_reference(self) -> None:
        """See Inference."""
        self._decoders.pop("reference", None)

    @property
    def held_bytes(self) -> dict[str, int]:
        """Nothing is packed, and pages last as long as a call."""
        return {}


def check_model(who: str, model: str, has_reference: bool, snapshots: Sequence[str] = ()) -> None:
    """Raises RequestError for a model that the engine does not have."""
    if model not in ("policy", "reference", *snapshots):
        rule = "'policy' or 'reference'"
        if snapshots:
            rule = f"'policy', 'reference' or a snapshot ({', '.join(snapshots)})"
        raise RequestError(f"[{who}] model must be {rule} but is {model!r}")
    if model == "reference" and not has_reference:
        raise RequestError(
            f"[{who}] model 'reference' was asked for but the engine has none (reference='none')"
        )


def mixture_of(
    models: Mapping[str, float] | None, has_reference: bool, snapshots: Sequence[str] = ()
) -> dict[str, float]:
    """Names and coefficients as floats, {"policy": 1.0} by default. Raises RequestError."""
    if models is None:
        return {"policy": 1.0}
    if not isinstance(models, Mapping) or not models:
        raise RequestError(
            "[generate] models must map names to coefficients, such as "
            f"{{'policy': 0.5, 'reference': 0.5}}, but is {models!r}"
        )
    if len(models) > MAX_MODELS:
        raise RequestError(
            f"[generate] models must be at most {MAX_MODELS} but are {len(models)}: "
            "Engine.combine makes one of several"
        )
    for name, coefficient in models.items():
        check_model("generate", name, has_reference, snapshots)
        number = isinstance(coefficient, (int, float)) and not isinstance(coefficient, bool)
        if not number or not -1e30 <= coefficient <= 1e30:  # leaves room in float32 for the sum
            raise RequestError(
                f"[generate] models[{name!r}] must be in [-1e30, 1e30] but is {coefficient!r}"
            )
    return {name: float(coefficient) for name, coefficient in models.items()}
