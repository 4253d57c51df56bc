"""`pyengine doctor`: what this machine gives pyengine, without loading a model."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import torch

import pyengine
from pyengine import _C
from pyengine.cli.arguments import Commands, add_dtype
from pyengine.engine.config import device_of, dtype_name
from pyengine.engine.memory import MemoryUse, memory_plan, plan_sizes
from pyengine.engine.memory_budget import ROOT, budget, host_free_bytes
from pyengine.errors import ConfigError
from pyengine.models.loader import read_spec
from pyengine.models.lora import LoraConfig
from pyengine.models.pypi import cache_dir
from pyengine.optim import AdamW

_OPENMP = ("libgomp", "libomp", "libiomp")


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("doctor", parents=[common], help="versions, CPU, GPU, advice")
    parser.add_argument("--model", help="also what an engine of this model would take of memory")
    parser.add_argument(
        "--lora", type=int, metavar="R", help="with --model: one that trains adapters of rank R"
    )
    add_dtype(parser, default="auto", trains=False)
    parser.set_defaults(run=doctor)


def doctor(args: argparse.Namespace) -> int:
    """Print one line a fact."""
    model = [] if args.model is None else plan_facts(args.model, args.dtype, args.lora)
    for name, value in facts() + model:
        print(f"{name:<14} {value}")
    return 0


def plan_facts(model: str, dtype: str, rank: int | None = None) -> list[tuple[str, str]]:
    """The memory plan of an engine with a reference, without loading the model.

    rank  of adapters on all matrices of the layers; None: the weights are trained
    """
    spec, device = read_spec(model), device_of("cpu")
    name = dtype_name(dtype, device)
    found = budget(device)
    adapters = None if rank is None else LoraConfig(r=rank)
    uses = [
        MemoryUse(
            spec, name, device, "copy" if rank is None else "shared", AdamW(bits=bits), adapters
        )
        for bits in (32, 8)
    ]
    sizes = plan_sizes(uses[0], found.free, loaded=False)
    plan, plan_8bit = (memory_plan(use, sizes, found) for use in uses)
    saved = (plan.total - plan_8bit.total) / 2**20
    return [
        ("model", f"{model}: {spec.family}, {spec.num_layers} layers, {name}"),
        ("optimizer", f"optimizer_bits=8 takes {saved:.0f} MiB less than the plan"),
        ("kv_tokens", f"{sizes.kv_tokens}; micro_batch_tokens {sizes.micro_batch_tokens}"),
        ("memory plan", str(plan)),
        *([] if (why := plan.refusal(learns=name != "int8")) is None else [("no room", why)]),
    ]


def facts() -> list[tuple[str, str]]:
    """Names and values, in the order in which a bug report wants them."""
    forced = os.environ.get("PYENGINE_ISA")
    return [
        ("pyengine", f"{pyengine.__version__} in {Path(pyengine.__file__).parent}"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("isa", _C.isa() + (" (forced by PYENGINE_ISA)" if forced else "")),
        ("isa available", ", ".join(_C.available_isas())),
        ("threads", f"{pyengine.get_num_threads()} of {_usable_cpus()} usable CPUs"),
        ("openmp", _openmp()),
        ("cuda", _cuda()),
        ("dtype advice", _dtype_advice()),
        ("memory", _memory()),
        ("cache", _cache()),
    ]


def openmp_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes that are mapped into this process."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return sorted(p for p in paths if Path(p).name.startswith(_OPENMP))


def _openmp() -> str:
    found = openmp_runtimes()
    if len(found) > 1:
        return f"{', '.join(found)}: several runtimes fight for the cores"
    return found[0] if found else "none found"


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda() -> str:
    built = "kernels built" if _C.cuda_built else "kernels not built"
    if not torch.cuda.is_available():
        return f"{built}; no device"
    free, total = torch.cuda.mem_get_info()
    return f"{built}; {torch.cuda.get_device_name()}, {_gib(free)} free of {_gib(total)}"


def _dtype_advice() -> str:
    if "avx512_bf16" in _C.available_isas():
        return (
            "bfloat16: this CPU multiplies it natively; float32 to compare with other tools to 1e-4"
        )
    return "float32: this CPU has no bfloat16 multiply, so bfloat16 would save memory but not time"


def _memory() -> str:
    try:
        free, source = host_free_bytes(ROOT)
    except ConfigError:
        return "unknown"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{_gib(free)} available of {_gib(total)} ({source})"


def _cache() -> str:
    folder = cache_dir()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
    return f"{folder} ({_gib(size)})"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
