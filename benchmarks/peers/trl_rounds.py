"""Rounds of TRL's online trainers, each begun when it is asked for and told with its time split."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a local folder

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

# Methods that sample and judge; the rest of a step scores and learns.
PHASES = {
    "dpo": {"_generate": "generate_s", "_calculate_rewards_from_functions": "judge_s"},
    "grpo": {"_generate": "generate_s", "_calculate_rewards": "judge_s"},
}
Report = dict[str, float]


class OverError(Exception):
    """No further round is asked for; raised through the trainer, which would do one more."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Waits before each step until `turn` lets it go on, and tells it what the last one took."""

    def __init__(self, turn: Callable[[Report | None], bool]) -> None:
        self.turn = turn
        self.report: Report | None = None
        self.spent: Report = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.turn(self.report):
            raise OverError
        self.spent = dict.fromkeys(("generate_s", "judge_s"), 0.0)
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = time.perf_counter() - self.began
        learned = seconds - sum(self.spent.values())
        self.report = {"seconds": seconds, **self.spent, "learn_s": learned}

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if self.report is not None and logs and "loss" in logs:
            self.report["loss"] = float(logs["loss"])

    def time(self, trainer: Any, method: str, phase: str) -> None:
        """Counts what a method of the trainer takes."""
        inner = getattr(trainer, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = inner(*args, **kwargs)
            self.spent[phase] += time.perf_counter() - began
            return result

        setattr(trainer, method, timed)


def run_rounds(
    job: str,
    folder: Path,
    prompts: Sequence[str],
    reward: Callable[..., list[float]],
    settings: dict[str, Any],
    turn: Callable[[Report | None], bool],
) -> None:
    """Rounds of a job ("dpo", "grpo") over all the prompts until `turn` says that there is no
    other; `turn` gets the last round's report, None before the first."""
    watch = Watch(turn)
    with tempfile.TemporaryDirectory() as out:
        trainer = _trainer(job, folder, prompts, reward, settings, watch, out)
        for method, phase in PHASES[job].items():
            watch.time(trainer, method, phase)
        try:
            trainer.train()
        except OverError:
            return


def _trainer(
    job: str,
    folder: Path,
    prompts: Sequence[str],
    reward: Callable[..., list[float]],
    settings: dict[str, Any],
    watch: Watch,
    out: str,
) -> Any:
    new = settings["new_tokens"]
    common: dict[str, Any] = {
        "output_dir": out, "use_cpu": True, "bf16": False, "fp16": False,
        "gradient_checkpointing": False, "max_steps": 1000, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "learning_rate": settings["learning_rate"], "lr_scheduler_type": "constant",
        "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "temperature": 1.0,
        "top_k": 0, "generation_kwargs": {"min_new_tokens": new},
    }  # fmt: skip
    given: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        "reward_funcs": reward,
        "train_dataset": Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        "processing_class": AutoTokenizer.from_pretrained(folder),
        "callbacks": [watch],
    }
    if job == "dpo":
        config = OnlineDPOConfig(
            **common, per_device_train_batch_size=len(prompts), max_new_tokens=new,
            max_length=2048, beta=settings["beta"],
        )  # fmt: skip
        return OnlineDPOTrainer(args=config, **given)
    # All samples are drawn at once, and learned from so many at a time.
    samples = len(prompts) * settings["n"]
    at_once = min(settings["trl_batch"], samples)
    config = GRPOConfig(
        **common, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=samples // at_once, num_generations=settings["n"],
        max_completion_length=new, beta=settings["beta"],
        loss_type="grpo", shuffle_dataset=False, use_bias_correction_kl=False,
    )  # fmt: skip
    return GRPOTrainer(args=config, **given)
