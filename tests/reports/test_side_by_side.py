"""A comparison as text and as Markdown: every figure in its place, no markup of a model's."""

from __future__ import annotations

from pyengine.reports.side_by_side import as_markdown, as_text

DATA = {
    "prompts": 2,
    "sampling": {},
    "source": "vader",
    "a": {
        "model": "run/model", "mean_length": 12.25, "cut": 1,
        "mean_reward": 0.5, "standard_error": 0.125, "no_reward": 1,
    },
    "b": {
        "model": "base", "mean_length": 8.0, "cut": 0,
        "mean_reward": -0.25, "standard_error": 0.0625, "no_reward": 0,
    },
    "result": {
        "win_rate": 0.75, "standard_error": 0.05, "wins": 2, "losses": 0, "ties": 1, "failed": 1,
        "gain": (0.75, 0.125),
    },
    "samples": [
        {
            "prompt": [{"role": "user", "content": "What <b>is</b>\nit?"}],
            "share_of_a": 1.0,
            "a": [
                {"text": "one two three four five six", "reward": 0.5},
                {"text": "| x |\n<script>", "reward": None},
            ],
            "b": [{"text": "short", "reward": -0.25}, {"text": "", "reward": 0.0}],
        },
        {
            "prompt": "second",
            "share_of_a": None,
            "a": [{"text": "s", "reward": 0.5}, {"text": "s", "reward": 0.5}],
            "b": [{"text": "t", "reward": 0.5}, {"text": "t", "reward": 0.5}],
        },
    ],
}  # fmt: skip
VERDICT = (
    "A wins 75.0 ± 5.0 % by vader: of 4 pairs 2 won, 0 lost, 1 tied (half a win each), 1 failed. "
    "Reward A - B: +0.750 ± 0.125. Standard errors over 2 prompts, paired."
)


def test_text_has_samples_in_two_columns_then_the_table_and_the_result():
    assert as_text(DATA, width=43, shown=1) == (
        "prompt  What <b>is</b> it?\n"
        "(+0.500) one two       (-0.250) short\n"
        "three four five six\n"
        "\n"
        "                  A               B\n"
        "model             run/model       base\n"
        "mean reward       +0.500 ± 0.125  -0.250 ± 0.062\n"
        "without reward    1               0\n"
        "mean tokens       12.2            8.0\n"
        "cut at the limit  1               0\n"
        "\n" + VERDICT
    )


def test_text_without_a_source_has_no_rewards_and_no_result():
    plain = {k: v for k, v in DATA.items() if k != "result"} | {"source": None}
    plain["samples"] = [{"prompt": "p", "a": [{"text": "left"}], "b": [{"text": None}]}]
    text = as_text(plain, width=43, shown=1)
    assert text.startswith("prompt  p\nleft                   (empty)\n")
    assert "reward" not in text
    assert "wins" not in text


def test_markdown_has_every_sample_and_nothing_of_theirs_is_markup():
    text = as_markdown(DATA)
    assert text.startswith("# run/model (A) and base (B)\n\n| | A | B |\n|---|---|---|\n")
    assert "| mean reward | +0.500 ± 0.125 | -0.250 ± 0.062 |" in text
    assert VERDICT in text
    assert "## Prompt 1\n\n> What &lt;b&gt;is&lt;/b&gt;\n> it?\n\n| A | B |\n|---|---|\n" in text
    assert "| (+0.500)<br>one two three four five six | (-0.250)<br>short |\n" in text
    assert "| (-)<br>&#124; x &#124;<br>&lt;script&gt; | (+0.000) |\n" in text
    assert "## Prompt 2\n\n> second\n" in text
