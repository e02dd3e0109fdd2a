"""Every answer to a usual name is a key or a choice that exists, and README, --help and the answers are one table."""

import re
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bbu_train.cli.arguments import parse
from bbu_train.compare import __main__ as compare
from bbu_train.errors import InputError
from bbu_train.evaluate import __main__ as evaluate
from bbu_train.export import __main__ as export
from bbu_train.predict import __main__ as predict
from bbu_train.runs import usual_names
from bbu_train.runs.usual_names import USUAL_NAMES, choice_of, usual_name_of
from bbu_train.runtime.nested import leaves

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PROGRAMS = {
    "evaluate": evaluate.DEFAULTS,
    "predict": predict.DEFAULTS,
    "compare": compare.DEFAULTS,
    "export": export.DEFAULTS,
}


@pytest.mark.parametrize("usual", USUAL_NAMES, ids=lambda usual: usual.name)
def test_every_key_and_choice_that_an_answer_names_exists(config, usual):
    """A key may need a choice that the same answer names."""
    named = re.findall(r"`([^`]+)`", f"{usual.key} {usual.note}".replace("<group>", "vision"))
    choices = [text.split("=") for text in named if (CONF / text.partition("=")[0]).is_dir()]
    parts = [OmegaConf.to_container(config())]
    for group, choice in choices:
        content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{choice}.yaml"))
        parts.append(content if "/" in group else {group: content})  # a launcher's file sets keys of the whole config
    known = {name for part in parts for name, _ in leaves(part)}
    for key in {text.partition("=")[0] for text in named} - {group for group, _ in choices}:
        assert any(f"{name}.".startswith(f"{key}.") for name in known), key


def test_a_word_names_one_setting():
    counts = Counter(word for usual in USUAL_NAMES for word in usual.words.split())
    assert [word for word, count in counts.items() if count > 1] == []


def test_the_readme_and_the_help_show_the_table():
    assert "\n".join(usual_names.table_rows()) in (ROOT / "README.md").read_text()
    template = OmegaConf.to_container(OmegaConf.load(CONF / "hydra/help/bbu_train.yaml"))["template"]
    assert "\n".join(f"  {line}" for line in usual_names.help_lines()) in template


@pytest.mark.parametrize(
    "typed", ["batch_size", "training.batch_size", "per-device-train-batch-size", "Batch_Size", "--batch-size=8"]
)
def test_a_usual_word_is_known_with_dashes_dots_and_capitals(typed):
    assert usual_name_of(typed).name == "batch size"


def test_a_part_of_a_usual_word_is_no_usual_word():
    assert usual_name_of("batch_sizes") is None
    assert usual_name_of("head.num_querys") is None


def test_usual_choices_exist():
    for group, names in usual_names.CHOICES.items():
        options = [path.stem for path in (CONF / group).glob("*.yaml")]
        assert {name: choice_of(group, name, options) for name in names} == names
        assert not {name for name in names if name in options}
    models = [path.stem for path in (CONF / "model").glob("*.yaml")]
    assert choice_of("model", "Qwen/Qwen2.5-VL-7B-Instruct", models) == "qwen25vl7b"
    assert choice_of("model", "qwen2.5-vl-3b", models) == "qwen25vl3b"
    assert choice_of("head", "yolo", ["detr", "dino"]) is None


def test_the_usual_words_of_the_other_programs_name_their_keys():
    known = {key for defaults in PROGRAMS.values() for key in defaults}
    assert usual_names.PROGRAM_KEYS.keys() <= known
    for program, typed, key in (
        *(
            ("predict", "input=a.jpg", "images"),
            ("predict", "conf=0.3", "threshold"),
            ("evaluate", "ckpt=9", "checkpoint"),
        ),
        *(("evaluate", "--batch-size=4", "batch_size"), ("compare", "output_dir=x", "outputs")),
    ):
        with pytest.raises(InputError, match=f"is not a key. Did you mean {key}?"):
            parse([typed], PROGRAMS[program])
