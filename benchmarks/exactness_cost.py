"""What the order of sums costs: generation beside a build of the same kernels without that rule.

    python benchmarks/exactness_cost.py --model FOLDER [--rounds 7]

The variant is built from a copy of the sources: outputs of few rows have two accumulators that walk
K by turns and are added at the end, and the compiler may fuse any product with a sum. Both builds
run in turn, in processes of their own; printed are medians of new tokens a second, and their ratio.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ((1, 64), (16, 64), (64, 64))  # prompts, new tokens; prompts have 64 tokens

# (file, what stands there, what the variant has instead)
LOOP = "    for (int64_t k = 0; k + 2 <= K; k += 2) {\n"
TWO_CHAINS = """    int64_t k = 0;
    if constexpr (ROWS <= 6) {
        Accumulators<ROWS> odd({nullptr, 0});
        const auto step = [&](Accumulators<ROWS>& own, int64_t at) __attribute__((always_inline)) {
            ahead.fetch();
            const Pairs w0 = load_pairs(w), w1 = load_pairs(w + 2 * kLanes);
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; ++i) {
                const Pairs a = broadcast_pair(pair_at(x + i * stride + at * STEP));
                own.v[i][0] = dot_pairs(a, w0, own.v[i][0]);
                own.v[i][1] = dot_pairs(a, w1, own.v[i][1]);
            }
            w += 2 * kPanel;
        };
        for (; k + 4 <= K; k += 4) {
            step(acc, k);
            step(odd, k + 2);
        }
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            acc.v[i][0] = acc.v[i][0] + odd.v[i][0];
            acc.v[i][1] = acc.v[i][1] + odd.v[i][1];
        }
    }
    for (; k + 2 <= K; k += 2) {
"""
EDITS = (
    ("csrc/include/pyengine/packed_tile.h", LOOP, TWO_CHAINS),
    ("setup.py", '"-ffp-contract=off"', '"-ffp-contract=fast"'),
)


def build_variant(folder: Path) -> None:
    for name in ("csrc", "bindings", "pyengine", "cuda"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    for name, old, new in EDITS:
        text = (folder / name).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{name} must hold the code that the variant changes once: {old!r}")
        (folder / name).write_text(text.replace(old, new))
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def measure(model: str, dtype: str) -> None:
    """One process: a line of new tokens a second for each shape."""
    import time

    import torch

    import pyengine as pe

    engine = pe.Engine.from_pretrained(model, dtype=dtype, reference="none")
    rng = torch.Generator().manual_seed(0)
    rates = []
    for B, new in SHAPES:
        prompts = torch.randint(100, 40000, (B, 64), generator=rng).tolist()
        params = pe.SamplingParams(max_tokens=new, ignore_eos=True)
        times = []
        for _ in range(3):  # the first warms up
            engine.reset_prefix_cache()
            start = time.perf_counter()
            engine.generate(prompts, params)
            times.append(time.perf_counter() - start)
        rates.append(B * new / min(times[1:]))
    print(*rates)


def run(folder: Path, arguments: list[str]) -> list[float]:
    command = [sys.executable, __file__, "--measure", *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    out = subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return [float(x) for x in out.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.model, options.dtype)
        return
    arguments = ["--model", str(Path(options.model).absolute()), "--dtype", options.dtype]
    with tempfile.TemporaryDirectory() as temporary:
        variant = Path(temporary)
        build_variant(variant)
        exact, free = [], []
        for i in range(options.rounds):
            exact.append(run(ROOT, arguments))
            free.append(run(variant, arguments))
            print(f"round {i + 1}/{options.rounds}", file=sys.stderr)
    for i, (B, _) in enumerate(SHAPES):
        a, b = [r[i] for r in exact], [r[i] for r in free]
        ratios = sorted(x / y for x, y in zip(a, b, strict=True))
        print(
            f"B={B}: ordered {statistics.median(a):.0f} tok/s, free {statistics.median(b):.0f}, "
            f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
