"""Builds pyengine._C with ninja: each CPU kernel once per instruction set, and the CUDA kernels.

PYENGINE_CUDA=1 builds the CUDA kernels (needs nvcc), PYENGINE_CUDA=0 leaves them out; by default
they are built when nvcc is found and a GPU is present. PYENGINE_CUDA_ARCHS lists the architectures
(default "80;90;100" as the compiler allows). The extension links no libtorch and needs no torch to
build.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mbmi2", "-mf16c"],
}
ISA_FLAGS["avx512"] = [*ISA_FLAGS["avx2"], *(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl"))]
ISA_FLAGS["avx512_bf16"] = [*ISA_FLAGS["avx512"], "-mavx512bf16"]

# -ffp-contract=off: a multiply-add is fused where the source says so, and nowhere else, so that
# every kernel rounds alike.
CXX_FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wno-psabi", "-Wno-unused-function"),
]
# -fmad=false: the same for CUDA, which then gives the CPU's bits.
NVCC_FLAGS = [
    *("-std=c++20", "-O3", "-fmad=false"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
]
CUDA_ARCHS = ("80", "90", "100")


def x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or (
        shutil.which("nvidia-smi") is not None
        and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    )


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    return Path(found).resolve() if found else None


def want_cuda() -> bool:
    asked = os.environ.get("PYENGINE_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"PYENGINE_CUDA must be 0, 1 or unset but is {asked!r}")
    if asked == "1" and find_nvcc() is None:
        raise SystemExit("PYENGINE_CUDA=1 but nvcc was not found on the PATH or in CUDA_HOME")
    return asked == "1" or (asked == "" and find_nvcc() is not None and has_gpu())


def cuda_toolkit(nvcc: Path) -> Path:
    """The folder with include/ and lib64/: what is on the PATH may be a wrapper."""
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
    plan = subprocess.run(command, capture_output=True, text=True).stderr
    tops = [line.split("=", 1)[1] for line in plan.splitlines() if line.startswith("#$ TOP=")]
    if not tops:
        raise SystemExit(f"{nvcc} --dryrun must name its toolkit (TOP=) but printed: {plan}")
    return Path(tops[0]).resolve()


def cuda_archs(nvcc: Path) -> list[str]:
    """Machine code for each architecture, and PTX of the last one for the GPUs to come."""
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    asked = os.environ.get("PYENGINE_CUDA_ARCHS")
    wanted = asked.split(";") if asked else [a for a in CUDA_ARCHS if f"compute_{a}" in known]
    unknown = [a for a in wanted if f"compute_{a}" not in known]
    if unknown or not wanted:
        raise SystemExit(
            f"PYENGINE_CUDA_ARCHS={asked}: {nvcc} does not know {unknown} but {' '.join(known)}"
        )
    last = f"-gencode=arch=compute_{wanted[-1]},code=compute_{wanted[-1]}"
    return [*(f"-gencode=arch=compute_{a},code=sm_{a}" for a in wanted), last]


def escape(text: object) -> str:
    """A path or flag in ninja's syntax."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaFile:
    """The compile commands of one extension."""

    def __init__(self, build: Path) -> None:
        self.build = build
        self.lines = ["ninja_required_version = 1.5", f"builddir = {escape(build)}"]
        self.objects: list[Path] = []

    def rule(self, name: str, compiler: object, language: str = "") -> None:
        command = f'"{compiler}" -MMD -MF $out.d $flags {language} -c $in -o $out'
        self.lines += [
            f"rule {name}",
            f"  command = {command}",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
        self.lines += [f"  description = {name} $out"]

    def compile(
        self,
        rule: str,
        source: Path,
        variant: str,
        flags: list[str],
        precompiled: Path | None = None,
    ) -> None:
        inside = source.relative_to(self.build if source.is_relative_to(self.build) else ROOT)
        target = self.build / variant / inside.with_suffix(inside.suffix + ".o")
        self.objects.append(target)
        self.build_line(target, rule, source, flags, precompiled)

    def build_line(
        self,
        target: Path,
        rule: str,
        source: Path,
        flags: list[str],
        precompiled: Path | None = None,
    ) -> None:
        after = ""
        if precompiled is not None:
            flags = [*flags, f"-include {escape(precompiled)}"]
            after = f" | {escape(precompiled)}.gch"
        self.lines.append(f"build {escape(target)}: {rule} {escape(source)}{after}")
        self.lines.append(f"  flags = {' '.join(flags)}")

    def including(self, name: str, headers: list[object]) -> Path:
        """A file of the build folder that includes others."""
        file, text = self.build / name, "".join(f'#include "{h}"\n' for h in headers)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        return file

    def precompile(self, header: str, variant: str, flags: list[str]) -> Path:
        """What `compile` takes as `precompiled`: the header is parsed once for all files."""
        file = self.including(f"{variant}/{Path(header).name}", [header])
        self.build_line(file.with_name(f"{file.name}.gch"), "precompile", file, flags)
        return file

    def link(self, compiler: str, target: Path, flags: list[str]) -> None:
        objects = " ".join(escape(o) for o in self.objects)
        self.lines += ["rule link", f"  command = {compiler} -shared $in -o $out {' '.join(flags)}"]
        self.lines += [f"build {escape(target)}: link {objects}", f"default {escape(target)}"]

    def run(self) -> None:
        self.build.mkdir(parents=True, exist_ok=True)
        file = self.build / "build.ninja"
        file.write_text("\n".join(self.lines) + "\n")
        try:
            import ninja

            program = str(Path(ninja.BIN_DIR) / "ninja")
        except ImportError:
            program = shutil.which("ninja") or sys.exit("ninja was not found: pip install ninja")
        subprocess.run([program, "-f", str(file)], check=True)


def add_bindings(ninja: NinjaFile, flags: list[str]) -> None:
    """Half of the files at a time: each alone would compile most of pybind11 again."""
    import pybind11

    python = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]
    sources = sorted((ROOT / "bindings").glob("*.cpp"))
    for i in range(2):
        half = ninja.including(f"bindings_{i}.cpp", sources[i::2])
        ninja.compile("cxx", half, "bindings", [*flags, *python])


def instruction_sets(source: Path) -> list[str]:
    """For which a file is compiled: one that names PE_ISA for each; none where all share it."""
    if "PE_ISA" not in source.read_text():
        return []
    sets = list(ISA_FLAGS) if x86() else ["baseline"]
    header = ROOT / "csrc" / "include" / "pyengine" / "ops" / f"{source.stem}.h"
    if header.exists() and "PE_CPU_KERNEL_UP_TO_AVX512" in header.read_text():
        sets = [isa for isa in sets if isa != "avx512_bf16"]
    return sets


def add_kernels(ninja: NinjaFile, flags: list[str]) -> None:
    """Each file once per instruction set that it is compiled for, or once for all."""
    sets = ISA_FLAGS if x86() else {"baseline": []}
    of_set = {isa: [*flags, *more, f"-DPE_ISA={isa}"] for isa, more in sets.items()}
    simd = {isa: ninja.precompile("pyengine/simd.h", isa, f) for isa, f in of_set.items()}
    for source in sorted((ROOT / "csrc").glob("**/*.cpp")):
        isas = instruction_sets(source)
        for isa in isas:
            ninja.compile("cxx", source, isa, of_set[isa], simd[isa])
        if not isas:
            ninja.compile("cxx", source, "common", flags)


def add_cuda_kernels(ninja: NinjaFile, nvcc: Path, include: str) -> None:
    ninja.rule("nvcc", nvcc)
    werror = ["-Werror", "all-warnings"] if os.environ.get("CI") else []
    flags = [*NVCC_FLAGS, *werror, *cuda_archs(nvcc), include, f"-I{ROOT / 'cuda'}"]
    for source in sorted((ROOT / "cuda").glob("**/*.cu")):
        ninja.compile("nvcc", source, "cuda", flags)


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cxx = os.environ.get("CXX", "g++")
        cuda = want_cuda()
        ninja = NinjaFile(Path(self.build_temp).resolve() / ("cuda" if cuda else "cpu"))
        ninja.rule("cxx", cxx)
        ninja.rule("precompile", cxx, "-x c++-header")
        include = f"-I{ROOT / 'csrc' / 'include'}"
        debug = ["-Werror"] if os.environ.get("CI") else []
        flags = [*CXX_FLAGS, *debug, include]
        link = ["-fopenmp", "-Wl,--exclude-libs,ALL", "-s"]
        bindings = [*flags, "-O1"]  # the last -O counts; they convert, and compute nothing
        if cuda:
            nvcc = find_nvcc()
            assert nvcc is not None
            toolkit = cuda_toolkit(nvcc)
            bindings += ["-DPE_WITH_CUDA", f"-isystem{toolkit / 'include'}"]
            libraries = [toolkit / "lib64", toolkit / "lib"]
            link += [f"-L{p}" for p in libraries if p.exists()]
            link += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
            add_cuda_kernels(ninja, nvcc, include)
        add_bindings(ninja, bindings)
        add_kernels(ninja, flags)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        ninja.link(cxx, target, link)
        ninja.run()


setup(ext_modules=[Extension("pyengine._C", sources=[])], cmdclass={"build_ext": BuildExtension})
