"""What the CUDA kernels became: registers, spills, shared memory, tensor-core instructions.

    python tests/cuda_report.py [--archs 80,90,100] [--cuobjdump PATH] [SOURCE ...]

Compiles the .cu files (default: all of cuda/), one architecture at a time, and prints a line a
kernel: registers, bytes spilled and bytes of shared memory as ptxas says them, and how many
tensor-core instructions its machine code has. These are counted with NVIDIA's cuobjdump, which the
toolkit, or the wheel of triton (triton/backends/nvidia/bin), brings; without it they are "-".
Needs nvcc and no GPU. Exits with 1 where a kernel spills.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "native"))
from run import ROOT, setup_py

SETUP = setup_py()
# In SASS: mma.sync of bf16 is HMMA, wgmma HGMMA, tcgen05 UTCHMMA.
TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")


def compiled(nvcc: Path, source: Path, arch: str, cubin: Path) -> dict[str, tuple[int, int, int]]:
    """(registers, bytes spilled, bytes of shared memory) of each kernel, by its symbol."""
    command = [
        *(str(nvcc), *SETUP["NVCC_FLAGS"], "-Xptxas", "-v", "-cubin", f"-arch=sm_{arch}"),
        *(f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'cuda'}", str(source), "-o", str(cubin)),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    kernels = {}
    for part in said.split("Compiling entry function '")[1:]:
        registers = re.search(r"Used (\d+) registers", part)
        spilled = re.search(r"(\d+) bytes spill stores", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert registers is not None
        assert spilled is not None
        kernels[part.split("'")[0]] = (
            int(registers[1]),
            int(spilled[1]),
            int(shared[1]) if shared else 0,
        )
    return kernels


def tensor_core_instructions(cuobjdump: str, cubin: Path) -> Counter[str]:
    """By kernel symbol."""
    sass = subprocess.run(
        [cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    counts: Counter[str] = Counter()
    symbol = ""
    for line in sass.splitlines():
        if found := re.search(r"Function : (\S+)", line):
            symbol = found[1]
        elif TENSOR_CORES.search(line):
            counts[symbol] += 1
    return counts


def readable(symbol: str) -> str:
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    name = re.sub(r"\(anonymous namespace\)::|pe::cuda::|pe::|void ", "", name.strip())
    return name.split("(")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sources", nargs="*", type=Path)
    parser.add_argument("--archs", default=",".join(SETUP["CUDA_ARCHS"]))
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump"))
    options = parser.parse_args()
    nvcc = SETUP["find_nvcc"]()
    if nvcc is None:
        raise SystemExit("no nvcc on the PATH or in CUDA_HOME")
    spills = False
    print(f"{'kernel':64s} arch  registers  spilled  shared  tensor cores")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        for source in options.sources or sorted((ROOT / "cuda").glob("**/*.cu")):
            for arch in options.archs.split(","):
                kernels = compiled(nvcc, source, arch, cubin)
                counts = (
                    tensor_core_instructions(options.cuobjdump, cubin)
                    if options.cuobjdump and kernels
                    else None
                )
                for symbol, (registers, spilled, shared) in sorted(kernels.items()):
                    tensor = "-" if counts is None else str(counts[symbol])
                    print(
                        f"{readable(symbol):64s} {arch:>4s}  {registers:9d}  {spilled:7d}  "
                        f"{shared:6d}  {tensor:>12s}",
                        flush=True,
                    )
                    spills = spills or spilled > 0
    if spills:
        raise SystemExit("a kernel spills")


if __name__ == "__main__":
    main()
