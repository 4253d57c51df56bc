"""What the documents say holds: Python runs, commands parse, names exist, versions are pinned."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import pyengine as pe
from pyengine.cli.main import _parser
from pyengine.models.families import FAMILIES
from pyengine.models.pypi import cache_dir
from pyengine.preferences.strength import Strength
from pyengine.recipes.schema.load import load_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[tuple[int, str]]:
    """(line number, code) of every fenced block in a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text(document), re.MULTILINE | re.DOTALL)
    return [(text(document).count("\n", 0, m.start(1)) + 1, m[1]) for m in found]


def run_blocks(document: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """Runs a document's Python blocks one after another, and returns the names they made."""
    monkeypatch.chdir(folder)
    # Dataclasses look their module up by name; this one stands for the reader's file.
    names: dict[str, Any] = {"__name__": __name__}
    for line, code in blocks(document, "python"):
        padded = "\n" * (line - 1) + code  # so that a traceback shows the document's line
        exec(compile(padded, document, "exec"), names)
    return names


@pytest.mark.slow
def test_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_blocks("README.md", monkeypatch, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:2]] == ["1", "2"]  # a line a round
    assert (tmp_path / "aligned" / "model.safetensors").stat().st_size > 5e8
    # Two rounds online, two epochs offline, a round with labels, two steps of imitation, DPO, GRPO,
    # KTO and a hinge.
    assert names["engine"].step_count == 11
    assert len(names["response"].logprobs) == len(names["response"].token_ids) <= 8
    margin = names["metrics"]["rewards/margins"]
    assert margin > 0  # after all that it learned of that pair
    assert names["metrics"]["loss"] == pytest.approx(max(0, 1 - margin), abs=1e-6)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 1e6
    assert names["tuned"].config.lora.targets == ("q_proj", "v_proj", "down_proj")


def test_first_example_has_at_most_15_lines() -> None:
    _, code = blocks("README.md", "python")[0]
    assert 1 < len(code.strip().splitlines()) <= 15


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code of CONTRIBUTING makes."""
    with pytest.MonkeyPatch.context() as patch:
        return run_blocks("CONTRIBUTING.md", patch, tmp_path_factory.mktemp("contributing"))


def test_objective_of_contributing_is_as_its_test_says(parts: dict[str, Any]) -> None:
    names = parts
    assert names["loss"].tolist() == pytest.approx([0.8])
    margins = names["Hinge"]().metrics(names["x"])["rewards/margins"]
    assert margins.tolist() == pytest.approx([0.2])


def test_source_and_pairing_of_contributing_fit_a_loop(
    parts: dict[str, Any], tiny_model: Path
) -> None:
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-2)
    params = pe.SamplingParams(n=4, max_tokens=8, stop=("e", "a"))  # lengths differ: no tie
    source, pairing = parts["Terse"](4), parts["TopTwo"]()
    for objective in (parts["Hinge"](), pe.objectives.KTO()):  # of pairs, of labels
        loop = pe.loops.Online(engine, ["The sea", "A"], source, pairing, objective, params)
        [report] = loop.run(1)
        assert report["reward/valid_fraction"] == 1
    assert engine.step_count == 2
    feedback = parts["Feedback"].from_rewards([[1, 5, None, 3], [2, None, None, None]])
    groups = [pe.preferences.Group([1], [pe.preferences.Response([k]) for k in range(4)])] * 2
    pairs = pairing(groups, feedback).comparisons
    assert [(c.group, c.winner, c.loser) for c in pairs] == [(0, 1, 3)]


def test_loop_of_contributing_learns_and_resumes(parts: dict[str, Any], tiny_model: Path) -> None:
    def small(completion_ids: list[list[int]]) -> list[float]:
        return [sum(i < 100 for i in ids) / len(ids) for ids in completion_ids]

    def loop() -> Any:
        engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=3e-2)
        source, params = pe.preferences.RewardFunction(small), pe.SamplingParams(n=8, max_tokens=8)
        prompts = ["The sea", "A train"]
        return parts["Raft"](
            engine, prompts, source, pe.objectives.NLL(), params, eval_prompts=prompts
        )

    first = loop()
    before = first.evaluate().mean
    reports = list(first.run(8))
    assert [report["round"] for report in reports] == list(range(1, 9))
    assert first.evaluate().mean > before + 0.1
    second = loop()
    second.load_state_dict(first.state_dict())
    report = second.run_round()
    assert (report["round"], report["raft/prompts"]) == (9, 2)


def test_recipes_of_the_readme_are_valid(tmp_path: Path) -> None:
    recipes = []
    for line, yaml in blocks("README.md", "yaml"):
        (tmp_path / f"line-{line}.yaml").write_text(yaml)
        recipes.append(load_recipe(tmp_path / f"line-{line}.yaml"))
    names = [recipe.name for recipe in recipes]
    assert names == ["online", "online", "offline", "reward_model"]
    assert (recipes[0].rounds, recipes[0].engine.learning_rate) == (100, 1e-5)
    assert recipes[1].engine.lora == pe.LoraConfig(16, 32, ["q_proj", "v_proj", "down_proj"])
    assert recipes[2].early_stop.metric == "eval/loss"
    assert recipes[3].strength == Strength(after=2, flip=0.1, then="soft")


COMMANDS = [
    (document, line)
    for document in DOCUMENTS
    for _, code in blocks(document, "sh")
    for line in code.splitlines()
    if line.startswith("pyengine ")
]


def test_readme_shows_the_demo() -> None:
    assert ("README.md", "pyengine demo") in COMMANDS


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=lambda value: value[:60])
def test_commands_parse(document: str, line: str) -> None:
    assert callable(_parser().parse_args(shlex.split(line, comments=True)[1:]).run)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    headings = re.findall(r"^#+ (.*)$", text(document), re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text(document)):
        assert target.startswith("https://") or target in anchors or (ROOT / target).is_file(), (
            target
        )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    """Paths in backticks that begin with a folder of the repository and hold no placeholder."""
    pattern = r"`((?:csrc|cuda|bindings|tests|benchmarks|pyengine|\.ci)/[\w./]*)`"
    optional = {"cuda/PENDING"}  # there while an op waits for its twin
    missing = [p for p in re.findall(pattern, text(document)) if not (ROOT / p).exists()]
    assert set(missing) <= optional


def test_environment_variables_are_those_of_the_code() -> None:
    sources = [
        ROOT / "setup.py",
        *(ROOT / "pyengine").rglob("*.py"),
        *(ROOT / "bindings").glob("*.cpp"),
    ]
    read = re.compile(r"(?:getenv\(|environ(?:\.get\(|\[)\s*)\"(PYENGINE_\w+)\"")
    used = {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}
    assert set(re.findall(r"PYENGINE_\w+", text("README.md"))) == used


def test_families_are_those_of_the_code() -> None:
    [line] = re.findall(r"Families: (.*?) with\n", text("README.md"), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", line)) == set(FAMILIES)


def test_cache_is_where_the_readme_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "unset: `~/.cache/pyengine`" in text("README.md")
    for name in ("PYENGINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "pyengine"


def pins() -> dict[str, Version]:
    lines = (line.split("#")[0].strip() for line in text("constraints.txt").splitlines())
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), "every constraint must be NAME==VERSION"
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements() -> list[Requirement]:
    project = tomllib.loads(text("pyproject.toml"))
    extras = project["project"]["optional-dependencies"].values()
    names = [*project["project"]["dependencies"], *(r for extra in extras for r in extra)]
    return [Requirement(name) for name in [*names, *project["build-system"]["requires"]]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement: Requirement) -> None:
    pinned = pins()
    assert canonicalize_name(requirement.name) in pinned
    assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_nothing_is_pinned_twice() -> None:
    names = re.findall(r"^([\w-]+)==", text("constraints.txt"), re.MULTILINE)
    assert len(names) == len({canonicalize_name(n) for n in names})
