"""One stem per op on every floor, layers that import downwards only, files of a readable size."""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from pyengine import _C

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyengine"
HEADERS = ROOT / "csrc" / "include" / "pyengine" / "ops"
PENDING = ROOT / "cuda" / "PENDING"
MAX_LINES, MAX_TEST_LINES = 400, 500

OPS = sorted(p.stem for p in HEADERS.glob("*.h") if "PE_CPU_KERNEL" in p.read_text())
CONTRACT_FIELDS = ("shapes", "dtypes", "aliasing", "gradient", "determinism", "source", "proof")

# A layer may import its own rank and every rank below.
RANKS = {
    "cli": 6, "recipes": 6, "reports": 6,
    "loops": 5,
    "engine": 4, "optim": 4, "samplers": 4, "evaluation": 4,
    "preferences": 3, "objectives": 3,
    "data": 2, "models": 2,
    "ops": 1, "ranks": 1,
}  # fmt: skip
EVERYWHERE = {"errors", "files", "registry", "rules", "runtime", "_C"}
# Ops on log-probs alone, and draws by key, which know no model.
REDUCTIONS = {
    f"pyengine.ops.{op}"
    for op in (
        "listwise_loss",
        "pairwise_loss",
        "philox_uniform",
        "segment_sum",
        "token_loss",
    )
}
NOT_OURS = {"transformers", "trl", "peft", "accelerate", "datasets", "llama_cpp"}


def contract(op: str) -> str:
    """The comment at the top of the op's header."""
    lines = (HEADERS / f"{op}.h").read_text().splitlines()
    return "\n".join(line for line in lines[: lines.index("#pragma once")])


def kernels(op: str) -> list[str]:
    """The functions that the op's header declares for CPU."""
    return re.findall(r"PE_CPU_KERNEL(?:_UP_TO_AVX512)?\((\w+),", (HEADERS / f"{op}.h").read_text())


def stub_names() -> set[str]:
    names = set()
    for node in ast.parse((PACKAGE / "_C.pyi").read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name)
            names.add(node.target.id)
    return names


def pending() -> list[str]:
    """Ops whose CUDA twin is still to come, one a line."""
    if not PENDING.exists():
        return []
    lines = (line.split("#")[0].strip() for line in PENDING.read_text().splitlines())
    return [line for line in lines if line]


def test_there_are_ops() -> None:
    assert {"rms_norm", "linear_logprob", "philox_uniform"} <= set(OPS)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "path",
    [
        "csrc/ops/{op}.cpp",
        "pyengine/ops/{op}.py",
        "tests/reference/{op}.py",
        "tests/ops/test_{op}.py",
        "benchmarks/bench_{op}.py",
    ],
)
def test_op_has_its_file(op: str, path: str) -> None:
    assert (ROOT / path.format(op=op)).is_file()


@pytest.mark.parametrize("op", OPS)
def test_op_has_its_cuda_twin_or_says_that_it_is_pending(op: str) -> None:
    assert (ROOT / "cuda" / "ops" / f"{op}.cu").is_file() != (op in pending())


def test_pending_lists_ops_once_and_no_others() -> None:
    assert len(pending()) == len(set(pending()))
    assert set(pending()) <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_twins_define_every_kernel(op: str) -> None:
    """In the file of that stem, or one beside it whose stem begins so."""
    assert kernels(op)
    for twin in (ROOT / "csrc" / "ops" / f"{op}.cpp", ROOT / "cuda" / "ops" / f"{op}.cu"):
        beside = twin.parent.glob(f"{op}_*{twin.suffix}")
        text = "".join(p.read_text() for p in (twin, *beside)) if twin.exists() else ""
        for kernel in kernels(op) if text else ():
            assert re.search(rf"\b{kernel}\(const ", text), (twin.name, kernel)


@pytest.mark.parametrize("op", OPS)
def test_op_is_bound_and_in_the_stub(op: str) -> None:
    bindings = "".join(p.read_text() for p in (ROOT / "bindings").glob("bind_*.cpp"))
    for kernel in kernels(op):
        assert f'm.def("{kernel}"' in bindings
        assert kernel in stub_names()


@pytest.mark.parametrize("op", OPS)
def test_op_is_exported(op: str) -> None:
    import pyengine.ops

    assert op in pyengine.ops.__all__
    assert callable(getattr(pyengine.ops, op))


@pytest.mark.parametrize("op", OPS)
def test_contract_is_complete(op: str) -> None:
    text = contract(op)
    assert text.startswith(f"// {op}: ")
    for field in CONTRACT_FIELDS:
        assert re.search(rf"^// {field}  +\S", text, re.MULTILINE), field
    proof = re.search(r"^// proof +(\S+)", text, re.MULTILINE)
    assert proof is not None
    assert (ROOT / proof[1]).is_file()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_benchmarks_import_what_is_there(path: Path) -> None:
    """Also where they import late, which only a run of minutes would show."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pyengine":
            module = importlib.import_module(node.module or "")
            for name in (alias.name for alias in node.names):
                found = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                assert found, f"{node.module} has no {name}"


def test_no_kernel_or_op_without_a_header() -> None:
    """Files that belong to no op: helpers named <op>_<what>."""

    def belongs(path: Path) -> bool:
        return any(path.stem == op or path.stem.startswith(f"{op}_") for op in OPS)

    folders = ("csrc/ops", "cuda/ops", "csrc/include/pyengine/ops")
    files = [p for folder in folders for p in (ROOT / folder).glob("*") if p.is_file()]
    files += [p for p in (PACKAGE / "ops").glob("*.py") if p.stem != "__init__"]
    files += (ROOT / "tests" / "reference").glob("*.py")
    assert [str(p.relative_to(ROOT)) for p in files if not belongs(p)] == []


def test_stub_names_what_the_extension_has() -> None:
    public = {name for name in dir(_C) if not name.startswith("_")}
    assert stub_names() == public


def sources(*folders: str) -> list[Path]:
    kinds = {".h", ".hpp", ".cpp", ".cu", ".cuh"}
    return [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in kinds]


@pytest.mark.parametrize("path", sources("csrc", "cuda"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_include_neither_torch_nor_python(path: Path) -> None:
    includes = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)
    forbidden = re.compile(r"^(torch|ATen|c10|pybind11|dlpack)\b|^Python\.h$")
    assert [name for name in includes if forbidden.search(name)] == []


def test_csrc_includes_no_cuda() -> None:
    for path in sources("csrc"):
        assert not re.search(r"#\s*include\s*<cuda", path.read_text()), path


PYTHON = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of all that the file imports, inside functions and for typing too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            assert node.module is not None
            if node.module == "pyengine":
                found += [(node.lineno, f"pyengine.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module))
    return found


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers_import_downwards(path: Path) -> None:
    own = layer(path)
    if own in ("__init__", "__main__"):
        return  # the package's face may name everything
    if own not in RANKS:
        assert own in EVERYWHERE, f"{own} has no rank: say in RANKS where it belongs"
    rank = RANKS.get(own, 0)
    upwards = []
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] != "pyengine" or len(parts) == 1 or parts[1] in EVERYWHERE:
            continue
        if RANKS.get(parts[1], 0) > rank:
            upwards.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert upwards == []


def module(path: Path) -> str:
    """Its dotted name; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in PYTHON}


def modules_imported(path: Path) -> set[str]:
    """Modules of ours that the file names; of `from package import module`, the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= deeper or {node.module}
    return names & MODULES.keys() - {"pyengine"}  # whose _C is no module of Python's


def test_no_import_circles() -> None:
    """Neither at the top of a file nor inside a function, nor for typing."""
    graph = {name: modules_imported(path) for name, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("name", ["objectives", "preferences"])
def test_objectives_and_preferences_know_no_model(name: str) -> None:
    for path in (PACKAGE / name).rglob("*.py"):
        modules = {target for _, target in imported(path)} - REDUCTIONS
        targets = {".".join(target.split(".")[:2]) for target in modules}
        assert not targets & {"pyengine.models", "pyengine.engine", "pyengine.ops"}, path


def test_no_peer_is_imported() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in PYTHON
        for line, name in imported(path)
        if name.split(".")[0] in NOT_OURS
    }
    assert found == set()


def test_no_pickle() -> None:
    """No pickle anywhere, torch.load included: files are data."""
    pattern = re.compile(
        r"\b(pickle|torch\.load|torch\.save|marshal|shelve)\b\s*[.(]|^\s*import (pickle|dill)"
    )
    for path in PYTHON:
        code = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
        lines = [line for line in code.splitlines() if pattern.search(line.split("#")[0])]
        assert lines == [], path


FILES = [*PYTHON, *sources("csrc", "cuda", "bindings"), PACKAGE / "_C.pyi"]
TESTS = [
    *sources("tests"),
    *(p for folder in ("tests", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))),
]


@pytest.mark.parametrize(("files", "limit"), [(FILES, MAX_LINES), (TESTS, MAX_TEST_LINES)])
def test_files_are_of_a_readable_size(files: list[Path], limit: int) -> None:
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: lines for name, lines in sizes.items() if lines > limit} == {}
