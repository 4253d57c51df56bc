"""TRL's DPOTrainer, one optimizer step at a time."""

from __future__ import annotations

import os
import queue
import random
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a local folder

# One token each.
WORDS = ("cat", "dog", "house", "tree", "river", "blue", "green", "run", "walk", "sing")


def rows(count: int, prompt_tokens: int, response_tokens: int) -> list[dict[str, str]]:
    rng = random.Random(0)

    def text(n: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(n))

    return [
        {
            "prompt": text(prompt_tokens),
            "chosen": " " + text(response_tokens),
            "rejected": " " + text(response_tokens),
        }
        for _ in range(count)
    ]


class TrlSteps:
    """Runs `train()` in a thread that stops before every step until `step()` lets it go on.

    So what is timed is the trainer's own step, without its start and end.
    """

    def __init__(
        self,
        folder: Path,
        bf16: bool,
        pairs: int,
        prompt_tokens: int,
        response_tokens: int,
        out: Path,
        lora_rank: int | None = None,
    ) -> None:
        self._go: queue.Queue[bool] = queue.Queue()
        self._done: queue.Queue[float | Exception] = queue.Queue()
        self._arguments = (folder, bf16, pairs, prompt_tokens, response_tokens, out, lora_rank)
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()
        self._take()  # the trainer stands before its first step

    def step(self) -> float:
        """One optimizer step; the loss before it."""
        self._go.put(True)
        return self._take()

    def close(self) -> None:
        self._go.put(False)
        self._thread.join()

    def _take(self) -> float:
        result = self._done.get()
        if isinstance(result, Exception):
            raise result
        return result

    def _train(self) -> None:
        try:
            self._trainer().train()
        except Exception as error:
            self._done.put(error)

    def _trainer(self) -> Any:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import DPOConfig, DPOTrainer

        folder, bf16, pairs, prompt_tokens, response_tokens, out, rank = self._arguments
        owner = self

        class Turnstile(TrainerCallback):
            loss = float("nan")

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                owner._done.put(self.loss)
                if not owner._go.get():
                    control.should_training_stop = True

            def on_log(
                self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
            ) -> None:
                self.loss = float(logs.get("loss", self.loss))

        steps = 1000
        config = DPOConfig(
            output_dir=str(out),
            per_device_train_batch_size=pairs,
            max_steps=steps,
            use_cpu=True,
            bf16=bf16,
            fp16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            max_length=2048,
            beta=0.1,
            learning_rate=1e-6,
            disable_tqdm=True,
        )
        adapters = None
        if rank is not None:
            from peft import LoraConfig

            adapters = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear")
        return DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(rows(4 * pairs, prompt_tokens, response_tokens)),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[Turnstile()],
            peft_config=adapters,
        )
