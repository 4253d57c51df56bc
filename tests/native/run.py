"""Builds the kernels without Python or torch and checks them, plainly and under the sanitizers.

    python tests/native/run.py [release] [asan] [tsan] [--full] [--only TEST,TEST]

release      the wheel's flags (OpenMP, -O3), and its very objects where the extension was built
             here from these sources; no symbol that could be merged across instruction sets
asan         AddressSanitizer and UndefinedBehaviorSanitizer, of every instruction set that this
             machine runs
tsan         ThreadSanitizer, to which OpenMP is unknown: parallel.cpp makes threads without it;
             they do not depend on the instruction set: one is enough here
--full       exp, log, silu and gelu_tanh over all 2^32 floats, 20 x 10^6 events of the scheduler
             (minutes)
--only       these tests of the program alone, such as linear,attention

release and asan also run the .cu files, compiled for the host by cuda_on_host/.
With no name: all three.

    CROSS_COMPILE=aarch64-linux-gnu- python tests/native/run.py

builds release with that prefix's compiler, runs it by qemu's user-mode emulation, and holds the
bits of every test against those of AVX2 here, where `run.py release` built them before.
"""

from __future__ import annotations

import argparse
import os
import platform
import runpy
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent.parent
CROSS = os.environ.get("CROSS_COMPILE", "")  # a prefix of tools, such as aarch64-linux-gnu-
MACHINE = CROSS.split("-")[0] or platform.machine()
HOST_BUILD = ROOT / "build" / "native"
BUILD = HOST_BUILD.with_name(f"native-{MACHINE}") if CROSS else HOST_BUILD
RUNNER = [f"qemu-{MACHINE}", "-L", f"/usr/{CROSS.rstrip('-')}"] if CROSS else []
CXX = os.environ.get("CXX", f"{CROSS}g++")

SANITIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
ASAN = [*SANITIZE, "-fsanitize=address,undefined"]
PLAIN = ["-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Wno-psabi"]
PLAIN += ["-Wno-unused-function", "-Werror"]


def setup_py() -> dict[str, Any]:
    """The names in setup.py, run without building anything: flags are stated once.

    setuptools need not be installed; a stand-in takes its place.
    """
    setuptools = SimpleNamespace(setup=lambda **_: None, Extension=lambda *_, **__: None)
    stand_ins = {
        "setuptools": setuptools,
        "setuptools.command": SimpleNamespace(),
        "setuptools.command.build_ext": SimpleNamespace(build_ext=object),
    }
    with mock.patch.dict(sys.modules, stand_ins):
        return runpy.run_path(str(ROOT / "setup.py"))


if CROSS:
    platform.machine = lambda: MACHINE  # setup.py asks for which processor it compiles
SETUP = setup_py()
ISA_FLAGS: dict[str, list[str]] = SETUP["ISA_FLAGS"] if SETUP["x86"]() else {"baseline": []}


def cpu_has(flag: str) -> bool:
    """Whether this machine has the instructions that Linux calls so."""
    cpu = Path("/proc/cpuinfo")
    return MACHINE == "x86_64" and cpu.exists() and f" {flag} " in cpu.read_text()


@dataclass
class Variant:
    name: str
    flags: list[str]  # of kernels and link
    arguments: list[str] = field(default_factory=list)
    lent: tuple[str, ...] = ()  # groups that release lends: linked, but not watched


SPARSE = ["--exp-stride", "65521"]
BASELINE = [*SPARSE, "--isa", "baseline", "--no-cuda"]
# What Linux calls the instructions that a set needs beyond those of the set before it.
CPU_FLAG = {"avx2": "avx2", "avx512": "avx512bw", "avx512_bf16": "avx512_bf16"}
# Not watched: sets that this machine cannot run. And avx512 is avx512_bf16 but for its products:
# where both run, the latter is watched.
NOT_RUN = tuple(isa for isa in ISA_FLAGS if isa in CPU_FLAG and not cpu_has(CPU_FLAG[isa]))
TWIN = ("avx512",) if cpu_has("avx512_bf16") else ()
ALL_BUT_BASELINE = (*(isa for isa in ISA_FLAGS if isa != "baseline"), "cuda")
VARIANTS = [
    Variant("release", SETUP["CXX_FLAGS"]),
    Variant("asan", [*PLAIN, *ASAN, "-fopenmp"], [*SPARSE, "--small"], lent=(*NOT_RUN, *TWIN)),
    Variant(
        "tsan",
        [*PLAIN, *SANITIZE, "-fsanitize=thread", "-Wno-tsan"],
        BASELINE,
        lent=ALL_BUT_BASELINE,
    ),
]
ENVIRONMENT = {
    # Threads that spin at a barrier wait for those that have no core to run on.
    "OMP_WAIT_POLICY": "passive",
    "ASAN_OPTIONS": "detect_stack_use_after_return=0:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def extension_objects() -> dict[tuple[str, Path], tuple[Path, set[str]]]:
    """What `pip install .` or `build_ext` left here: (instruction set, source) -> object, flags.

    Only objects that are newer than every source and header of the kernels.
    """
    found: dict[tuple[str, Path], tuple[Path, set[str]]] = {}
    newest = max(p.stat().st_mtime for p in (ROOT / "csrc").glob("**/*.*"))
    for ninja in sorted((ROOT / "build").glob("temp.*/cpu/build.ninja")):
        lines = ninja.read_text().splitlines()
        for line, below in pairwise(lines):
            if line.startswith("build ") and ": cxx " in line and "$" not in line:
                build, header = line.split(" | ")[0], below.find(" -include ")
                target, source = (Path(p) for p in build[len("build ") :].split(": cxx "))
                if target.exists() and target.stat().st_mtime > newest:
                    group = target.relative_to(ninja.parent).parts[0]
                    # A precompiled header changes no code.
                    flags = set(below[: header if header > 0 else None].split(" = ", 1)[1].split())
                    found["" if group == "common" else group, source] = target, flags
    return found


@dataclass
class Object:
    source: Path
    target: Path
    flags: list[str]
    built: Path | None = None  # the extension's own object of this source and these flags
    header: Object | None = None  # precompiled with the same flags: parsed once for all files
    text: str = ""  # of a source that is written for the purpose

    @property
    def command(self) -> list[str]:
        includes = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{HERE}"]
        if self.header is not None:
            # -fpch-deps: what it includes counts as well, when files are compared by their age.
            includes += ["-fpch-deps", "-include", str(self.header.source)]
        depend = ["-MMD", "-MF", f"{self.target}.d"]
        language = "c++-header" if self.target.suffix == ".gch" else "c++"
        return [
            *(CXX, *self.flags, *includes, *depend, "-x", language, "-c"),
            *(str(self.source), "-o", str(self.target)),
        ]

    def up_to_date(self) -> bool:
        command, depend = Path(f"{self.target}.cmd"), Path(f"{self.target}.d")
        if not (self.target.exists() and command.exists() and depend.exists()):
            return False
        if command.read_text() != " ".join(self.command):
            return False
        built = self.target.stat().st_mtime
        paths = depend.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        return all(Path(p).exists() and Path(p).stat().st_mtime <= built for p in paths)

    def build(self) -> None:
        if self.up_to_date():
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.built is not None:
            shutil.copy2(self.built, self.target)
            return
        if self.text:
            self.source.write_text(self.text)
        if subprocess.run(self.command).returncode != 0:
            raise SystemExit(f"{self.source} does not compile: {' '.join(self.command)}")
        if self.source.suffix == ".cu":
            # Its only variables are the kernels' shared memory; cuda_on_host.cpp knows the name.
            rename = [f"{CROSS}objcopy", "--rename-section", ".bss=pe_shared", str(self.target)]
            subprocess.run(rename, check=True)
        Path(f"{self.target}.cmd").write_text(" ".join(self.command))


def host_fma() -> list[str]:
    """fmaf as an instruction in the .cu files, where this machine has it: libm's is slow."""
    return ["-mfma"] if cpu_has("fma") else []


EXTENSION = {} if CROSS else extension_objects()


def kernel_objects(variant: Variant) -> list[Object]:
    objects = []
    for source in [*sorted((ROOT / "csrc").glob("**/*.cpp")), HERE / "math_probe.cpp"]:
        for isa in SETUP["instruction_sets"](source):
            flags = [*ISA_FLAGS.get(isa, []), f"-DPE_ISA={isa}"]
            objects.append(kernel_object(variant, isa, source, flags))
        if not SETUP["instruction_sets"](source):
            objects.append(kernel_object(variant, "", source, []))
    cuda = [f"-I{HERE / 'cuda_on_host'}", f"-I{ROOT / 'cuda'}", "-Wno-unknown-pragmas", *host_fma()]
    sources = [*sorted((ROOT / "cuda").glob("**/*.cu")), HERE / "cuda_probe.cpp"]
    sources += [*sorted(HERE.glob("*.cu")), *sorted((HERE / "cuda_on_host").glob("*.cpp"))]
    for source in sources:
        objects.append(kernel_object(variant, "cuda", source, cuda))
    return objects


def kernel_object(variant: Variant, group: str, source: Path, flags: list[str]) -> Object:
    """`group` is an instruction set, "cuda", or "" for what all share."""
    if group in variant.lent:
        variant = VARIANTS[0]
    target = BUILD / variant.name / group / f"{source.stem}.o"
    made = Object(source, target, [*variant.flags, *flags])
    if variant.name != "release" and group in ISA_FLAGS:
        simd, text = target.with_name("simd.h"), '#include "pyengine/simd.h"\n'
        made.header = Object(simd, target.with_name("simd.h.gch"), made.flags, text=text)
    if variant.name == "release" and (group, source) in EXTENSION:
        built, of_extension = EXTENSION[group, source]
        include = f"-I{ROOT / 'csrc' / 'include'}"
        if of_extension - {"-Werror"} == {*made.flags, include}:
            made.built = built
    return made


def test_objects() -> list[Object]:
    """Compiled once, without a sanitizer: it watches the kernels, and malloc from link time on."""
    flags = [*PLAIN, "-O2", f"-I{HERE / 'cuda_on_host'}"]
    names = ["main", "cuda_trainer", "linear_logprob_reference"]
    names += [p.stem for p in sorted(HERE.glob("test_*.cpp"))]
    return [Object(HERE / f"{n}.cpp", BUILD / "tests" / f"{n}.o", flags) for n in names]


def build(variants: list[Variant]) -> dict[str, Path]:
    tests = test_objects()
    kernels = {v.name: kernel_objects(v) for v in variants}
    # The slowest first, so that no core waits for it alone at the end.
    unique = {o.target: o for o in [*tests, *(o for group in kernels.values() for o in group)]}
    slow = ("linear_logprob", "rms_norm")
    objects = sorted(unique.values(), key=lambda o: not o.source.stem.startswith(slow))
    headers = {o.header.target: o.header for o in objects if o.header is not None}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(Object.build, headers.values()))
        list(pool.map(Object.build, objects))
    programs = {}
    for variant in variants:
        program = BUILD / variant.name / "native"
        inputs = [str(o.target) for o in [*tests, *kernels[variant.name]]]
        flags = [f for f in variant.flags if not f.startswith("-I")]
        # -fopenmp: for what release lends, and harmless elsewhere.
        link = [CXX, *flags, "-fopenmp", *inputs, "-o", str(program)]
        subprocess.run(link, check=True)
        programs[variant.name] = program
    return programs


def weak_symbols(path: Path) -> list[str]:
    """Symbols the linker would merge with another object's: nm's V, W, v, w, u."""
    command = [f"{CROSS}nm", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listing.splitlines()]
    return [name for *_, kind, name in found if kind in "VWvwu"]


def check_no_weak_symbols(folder: Path) -> None:
    """A function shared by two instruction sets could run on a machine without one of them."""
    checked = 0
    for isa in ISA_FLAGS:
        for path in sorted((folder / isa).glob("*.o")):
            weak = [s for s in weak_symbols(path) if s != "DW.ref.__gxx_personality_v0"]
            if weak:
                raise SystemExit(f"{path} exports symbols that the linker may merge: {weak}")
            checked += 1
    print(f"{checked} objects of {len(ISA_FLAGS)} instruction sets export no weak symbol")


def run(variant: Variant, program: Path, full: bool, only: list[str]) -> int:
    start = time.monotonic()
    everything = ["--exp-stride", "1", "--events", "1000000"]
    arguments = everything if full and variant.name == "release" else variant.arguments
    arguments = [*arguments, *only]
    result = native([*RUNNER, program, *arguments])
    title = f"{variant.name}: exit status {result.returncode}, {time.monotonic() - start:.1f} s\n"
    print(title + result.stdout, end="", flush=True)
    if CROSS and result.returncode == 0:
        check_same_bits(result.stdout, arguments)
    return result.returncode


def native(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def bits(printed: str) -> dict[str, str]:
    """Test -> digest of all that it compared bit for bit."""
    lines = (line.strip().rpartition(", bits ") for line in printed.splitlines())
    return {head.rpartition(":")[0]: digest for head, found, digest in lines if found}


def check_same_bits(printed: str, arguments: list[str]) -> None:
    """What an emulated processor printed, against AVX2 here."""
    program = HOST_BUILD / "release" / "native"
    if not program.exists():
        raise SystemExit(f"{program} is what the bits are held against: first, run.py release")
    here = native([program, *arguments, "--isa", "avx2"])
    if here.returncode != 0:
        raise SystemExit(here.stdout)
    theirs, ours = bits(printed), bits(here.stdout)
    ours.pop("session_schedules", None)  # its schedules are others for each instruction set
    other = [name for name in ours if theirs.get(name) != ours[name]]
    if other or not ours:
        raise SystemExit(f"{MACHINE} has other bits than avx2 in: {', '.join(other) or 'no test'}")
    print(f"{MACHINE} has the bits of avx2 in {len(ours)} tests")


def main() -> None:
    names = [v.name for v in VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("variants", nargs="*", metavar="|".join(names))
    parser.add_argument("--only", help="these tests of the program, between commas")
    parser.add_argument("--full", action="store_true", help="the long checks too")
    options = parser.parse_args()
    unknown = set(options.variants) - set(names)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    variants = [v for v in VARIANTS if not options.variants or v.name in options.variants]
    if CROSS:  # the .cu files are compiled for this machine, and emulated threads are slow
        variants = [replace(VARIANTS[0], arguments=[*SPARSE, "--no-cuda"])]
    only = ["--only", options.only] if options.only else []
    start = time.monotonic()
    programs = build(variants)
    print(f"built {', '.join(programs)} in {time.monotonic() - start:.1f} s", flush=True)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        statuses = list(pool.map(lambda v: run(v, programs[v.name], options.full, only), variants))
    failed = [v.name for v, status in zip(variants, statuses, strict=True) if status != 0]
    if failed:
        sys.exit(f"native tests failed: {', '.join(failed)}")
    if "release" in programs:
        check_no_weak_symbols(BUILD / "release")
    print(f"native tests passed in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
