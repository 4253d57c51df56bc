"""The native driver of tests/native: it passes, and it can fail. The sanitizers run in .ci/run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "native"))
import run as native

RUN = native.HERE / "run.py"


def compiled(folder: Path, name: str, text: str) -> Path:
    source, target = folder / f"{name}.cpp", folder / f"{name}.o"
    source.write_text(text)
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-O1", "-c", str(source), "-o", str(target)], check=True)
    return target


CROSS = "aarch64-linux-gnu-"
# Not all: emulated, sums over large vocabularies take a minute.
EMULATED = "adamw,attention,attention_backward,linear,linear_backward,rms_norm,rope,session_values"


@pytest.fixture(scope="module")
def release() -> str:
    """What the plain build printed."""
    result = subprocess.run([sys.executable, str(RUN), "release"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_kernels_pass_on_every_instruction_set_of_this_machine(release: str) -> None:
    assert "release: exit status 0" in release
    assert "export no weak symbol" in release


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which(f"{CROSS}g++") and shutil.which("qemu-aarch64") and native.cpu_has("avx2")),
    reason="needs AVX2, g++-aarch64-linux-gnu and qemu-user",
)
def test_aarch64_has_the_bits_of_avx2(release: str) -> None:
    result = subprocess.run(
        [sys.executable, str(RUN), "--only", EMULATED],
        env={**os.environ, "CROSS_COMPILE": CROSS},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"aarch64 has the bits of avx2 in {len(EMULATED.split(','))} tests" in result.stdout


def test_inline_function_is_found_as_weak(tmp_path: Path) -> None:
    text = "inline int shared_twice(int x) { return x + 1; }\nint (*use)(int) = shared_twice;\n"
    assert native.weak_symbols(compiled(tmp_path, "weak", text)) == ["_Z12shared_twicei"]


def test_internal_and_plain_functions_are_not_weak(tmp_path: Path) -> None:
    text = "namespace { int own(int x) { return x * x; } }\nint plain(int x) { return own(x); }\n"
    assert native.weak_symbols(compiled(tmp_path, "strong", text)) == []


def test_weak_symbol_in_a_kernel_object_fails_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "baseline"
    folder.mkdir()
    text = "inline int shared_twice(int x) { return x + 1; }\nint (*use)(int) = shared_twice;\n"
    compiled(folder, "kernel", text)
    with pytest.raises(SystemExit, match=r"kernel\.o exports symbols .*_Z12shared_twicei"):
        native.check_no_weak_symbols(tmp_path)


def test_object_is_built_again_when_a_header_or_a_flag_changes(tmp_path: Path) -> None:
    header, source = tmp_path / "value.h", tmp_path / "value.cpp"
    header.write_text("#define VALUE 1\n")
    source.write_text('#include "value.h"\nint value() { return VALUE; }\n')
    built = native.Object(source, tmp_path / "value.o", ["-O1"])
    assert not built.up_to_date()
    built.build()
    assert built.up_to_date()
    assert not native.Object(source, tmp_path / "value.o", ["-O2"]).up_to_date()
    later = built.target.stat().st_mtime + 1
    os.utime(header, (later, later))
    assert not built.up_to_date()


def test_object_is_built_again_when_what_its_precompiled_header_includes_changes(
    tmp_path: Path,
) -> None:
    header, source = tmp_path / "value.h", tmp_path / "value.cpp"
    header.write_text("#define VALUE 1\n")
    source.write_text("int value() { return VALUE; }\n")
    text = f'#include "{header}"\n'
    first = native.Object(tmp_path / "all.h", tmp_path / "all.h.gch", ["-O1"], text=text)
    built = native.Object(source, tmp_path / "value.o", ["-O1"], header=first)
    first.build()
    built.build()
    assert first.up_to_date()
    assert built.up_to_date()
    later = built.target.stat().st_mtime + 1
    os.utime(header, (later, later))
    assert not first.up_to_date()
    assert not built.up_to_date()


def test_source_that_does_not_compile_is_named(tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int f( {\n")
    with pytest.raises(SystemExit, match=r"broken\.cpp does not compile: "):
        native.Object(source, tmp_path / "broken.o", []).build()


def test_driver_refuses_an_unknown_variant() -> None:
    result = subprocess.run([sys.executable, str(RUN), "msan"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "unknown msan: choose from release, asan, tsan" in result.stderr


def test_every_kernel_source_is_in_every_build() -> None:
    sources = {p.name for p in (native.ROOT / "csrc").glob("**/*.cpp")}
    sources |= {p.name for p in (native.ROOT / "cuda").glob("**/*.cu")}
    for variant in native.VARIANTS:
        assert sources <= {o.source.name for o in native.kernel_objects(variant)}, variant.name


def test_objects_of_the_extension_are_found_behind_a_precompiled_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "csrc" / "op.cpp"
    build = tmp_path / "build" / "temp.linux" / "cpu"
    target = build / "avx2" / "csrc" / "op.cpp.o"
    for path in (source, target):
        path.parent.mkdir(parents=True)
        path.write_text("")
    os.utime(source, (0, 0))
    header = build / "avx2" / "simd.h"
    lines = [
        f"build {target}: cxx {source} | {header}.gch",
        f"  flags = -O3 -mavx2 -include {header}",
    ]
    (build / "build.ninja").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(native, "ROOT", tmp_path)
    assert native.extension_objects() == {("avx2", source): (target, {"-O3", "-mavx2"})}


def test_asan_watches_every_set_that_this_machine_runs() -> None:
    from pyengine import _C

    asan = next(v for v in native.VARIANTS if v.name == "asan")
    watched = set(native.ISA_FLAGS) - set(asan.lent)
    runs = set(_C.available_isas())
    assert watched == (runs - {"avx512"} if "avx512_bf16" in runs else runs)
