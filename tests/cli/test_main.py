"""What a command says and with which code it exits: in-process on a small conf/ of its own, and a few real commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from bbu_train.cli import main as command_line
from bbu_train.errors import InputError, Interrupted, Preempted
from bbu_train.runs import folder as run_folder
from launchers.cells import compose

CONF = {
    "config.yaml": """
        defaults:
          - head: detr
          - optimizer: groups
          - data: made
          - tracker: jsonl
          - _self_
          - optional experiment: null
          - override hydra/hydra_logging: none
          - override hydra/job_logging: none
        seed: 17
        steps: 120
        epochs: null
        about: null
        debug: false
        num_workers: 0
        sweep: null
        run: null
        resume: null
        outputs: outputs
        folder: ${outputs}/${sweep}/${run}
        hydra: {run: {dir: .}, output_subdir: null}
    """,
    "head/detr.yaml": "{num_queries: 100, d_model: 256}",
    "head/none.yaml": "{}",
    "optimizer/groups.yaml": "{betas: [0.9, 0.9], groups: {llm: {pattern: l, lr: 1e-5}, vision: {pattern: v, lr: 0}}}",
    "data/made.yaml": "{num_pictures: 4}",
    "data/jsonl.yaml": "{root: null}",
    "hydra/launcher/here.yaml": "# @package _global_\nlaunchers: {_target_: launchers.here.Here}\n",
    "hydra/launcher/many.yaml": "# @package _global_\nlaunchers: {num_parallel: 1}\n",
    "tracker/jsonl.yaml": "{jsonl: {folder: '${folder}'}}",
    "experiment/smoke.yaml": "# @package _global_\nsteps: 2\n",
    "experiment/headless.yaml": "# @package _global_\ndefaults:\n  - override /head: none\n",
    "experiment/long.yaml": "# @package _global_\nsteps: 5\nepochs: 2\n",
    "experiment/misspelt.yaml": "# @package _global_\nstepps: 2\nseed: many\n",
}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    for name, text in CONF.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        indent = 8 if name == "config.yaml" else 0
        path.write_text("\n".join(line[indent:] for line in lines), encoding="utf-8")
    return tmp_path / "conf"


@pytest.fixture
def command(conf, tmp_path, monkeypatch, capsys):
    """Run a task with a command; give the exit code, what stderr says, and the configs that reached the task, or that
    a sweep would start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it; this restores it

    def run(*arguments, task=lambda cfg, given: None):
        configs = []

        def keep(cfg, given):
            configs.append((cfg, given))
            task(cfg, given)

        def launch(arguments, folder, only_checks):
            what = "checked" if only_checks else None
            configs.extend((cell.cfg, what or cell.overrides) for cell in compose(arguments, folder))
            return 0

        def check(card, cfg, given):
            configs.append((cfg, f"checked on {card or 'this machine'}"))
            task(cfg, given)

        monkeypatch.setattr(sys, "argv", ["bbu_train", *arguments])
        try:
            code = command_line.run_command(keep, conf, launch, check)
        except SystemExit as leaving:
            code = leaving.code
        return code, capsys.readouterr().err, configs

    return run


def refused(command, *arguments) -> str:
    code, says, configs = command(*arguments)
    assert code == 2
    assert configs == []
    assert "Traceback" not in says
    return says


def test_a_correct_command_runs_with_its_values(command):
    code, says, [(cfg, given)] = command("steps=3", "head=none")
    assert (code, says, cfg.steps, given) == (0, "", 3, ["steps=3", "head=none"])


@pytest.mark.parametrize(("option", "card"), [("--check", "this machine"), ("--check=H100", "H100")])
def test_a_check_takes_the_place_of_training(command, option, card):
    code, says, [(cfg, what)] = command("steps=3", option)
    assert (code, says, cfg.steps, what) == (0, "", 3, f"checked on {card}")
    if option == "--check":
        code, _, configs = command("-m", "seed=1,2", option)
        assert (code, [what for _, what in configs]) == (0, ["checked", "checked"])
    else:
        assert "--check=H100 plans one run: leave out -m" in refused(command, "-m", "seed=1,2", option)


def test_a_check_that_finds_a_mistake_exits_with_2(command):
    def find(cfg, given):
        raise InputError("does not fit")

    code, says, _ = command("--check", task=find)
    assert (code, says) == (2, "error: does not fit\n")


def test_options_may_stand_anywhere(command):
    code, _, configs = command("seed=1,2", "-m", "steps=3")
    assert code == 0
    assert [(cfg.seed, cfg.steps) for cfg, _ in configs] == [(1, 3), (2, 3)]


def test_a_sweep_leaves_nothing_in_the_working_directory(command, tmp_path):
    command("-m", "seed=1,2")
    assert {path.name for path in tmp_path.iterdir()} == {"conf"}


def test_a_misspelt_key_is_refused_with_the_nearest_and_with_what_exists(command):
    says = refused(command, "head.num_querys=5")
    assert "head.num_querys is not a key" in says
    assert "Did you mean head.num_queries?" in says
    assert "head (head=detr) has: num_queries, d_model" in says


def test_a_key_without_its_path_is_refused_with_the_whole_keys(command):
    assert "Did you mean optimizer.groups.llm.pattern or optimizer.groups.vision.pattern?" in refused(
        command, "pattern=x"
    )


@pytest.mark.parametrize("typed", ["lr=1e-5", "+optimizer.lr=1", "-m learning-rate=1,2", "--lr 1e-5", "--lr=1e-5"])
def test_a_usual_name_of_a_key_is_answered_with_the_key(command, typed):
    assert "Give optimizer.groups.<group>.lr for learning rate (the groups are vision" in refused(
        command, *typed.split()
    )


def test_a_usual_name_of_a_choice_is_answered_with_the_choice(command):
    assert "head=LM is not a choice. Did you mean none? " in refused(command, "-m", "head=detr,LM")


def test_a_key_of_another_choice_is_unknown(command):
    assert "head (head=none) has: no keys" in refused(command, "head=none", "head.num_queries=5")
    assert "head (head=none)" in refused(command, "-m", "head=detr,none", "head.num_queries=5")
    assert "head (head=none)" in refused(command, "experiment=headless", "head.num_queries=5")


@pytest.mark.parametrize("prefix", ["+", "++"])
def test_keys_cannot_be_added(command, prefix):
    says = refused(command, f"{prefix}typo=1")
    assert f"{prefix}typo" in says
    assert "typo is not a key" in says
    assert "Leave it out: steps exists." in refused(command, f"{prefix}steps=3")


def test_keys_and_groups_cannot_be_deleted(command):
    assert "~steps" in refused(command, "~steps")
    assert "detr, none" in refused(command, "~head")


def test_a_group_of_parameters_can_be_added_and_taken_away(command):
    code, _, [(cfg, _)] = command("+optimizer.groups.lora={pattern: lora, lr: 1e-4}", "~optimizer.groups.vision")
    assert code == 0
    assert list(cfg.optimizer.groups) == ["llm", "lora"]


def test_a_misspelt_key_of_a_group_of_parameters_is_refused(command):
    assert "Did you mean lr?" in refused(command, "+optimizer.groups.llm.lrr=1")
    assert "Did you mean pattern?" in refused(command, "+optimizer.groups.lora={patern: lora}")
    assert "+optimizer.groups.lora.lr" in refused(command, "optimizer.groups.lora.lr=1")


def test_an_unknown_choice_is_refused_with_the_nearest_and_with_all(command):
    assert "Did you mean detr? head can be: detr, none." in refused(command, "head=dert")
    assert "head=dert is not a choice" in refused(command, "-m", "head=none,dert")
    assert "head=null is not a choice" in refused(command, "head=null")
    assert "Leave out the +" in refused(command, "+head=none")


def test_all_problems_are_named_at_once(command):
    says = refused(command, "steps=ten", "lrr=1", "optimizer.groups.llm=1e-5")
    assert "3 problems" in says
    for problem in ("steps is a number", "lrr is not a key", "optimizer.groups.llm is a mapping"):
        assert problem in says


@pytest.mark.parametrize("value", ["steps=ten", "steps=true", "steps='3'", "optimizer.groups.llm.lr=fast", "debug=yep"])
def test_a_value_of_the_wrong_kind_is_refused(command, value):
    assert value.split("=")[0] in refused(command, value)


def test_a_value_of_the_wrong_kind_is_found_in_sweeps_and_in_mappings(command):
    assert "steps=ten" in refused(command, "-m", "steps=1,ten")
    assert "groups.llm.lr=fast" in refused(command, "optimizer.groups={llm: {lr: fast}}")


@pytest.mark.parametrize(
    "value",
    ["steps=null", "steps=${seed}", "optimizer.groups.llm.lr=1", "steps=[1,2]", "optimizer.groups={llm: {lr: 3}}"],
)
def test_null_references_lists_and_integers_may_stand_for_a_number(command, value):
    assert command(value)[0] == 0


def test_an_entry_of_a_list_cannot_be_overridden(command):
    assert "optimizer.betas=[...]" in refused(command, "optimizer.betas.0=0.8")


def test_a_value_that_needs_quotes_is_shown_with_them(command):
    says = refused(command, "optimizer.groups.llm.pattern=数据")
    assert "'数'" in says
    quoted = re.search(r"'(optimizer\.groups\.llm\.pattern=\"数据\")'", says).group(1)
    _, _, [(cfg, _)] = command(quoted)
    assert cfg.optimizer.groups.llm.pattern == "数据"


def test_names_and_paths_need_no_quotes_in_one_run_and_in_a_sweep(command):
    for options in ((), ("-m",)):
        _, _, configs = command(*options, "data=jsonl", "data.root=/数据 (1) #2", "sweep=0105", "outputs=2026_01")
        [(cfg, _)] = configs
        assert (cfg.data.root, cfg.sweep, Path(cfg.outputs).name) == ("/数据 (1) #2", "0105", "2026_01")


def test_a_word_that_is_no_override_is_refused(command):
    assert "key=value" in refused(command, "train")


def test_several_values_and_launchers_need_a_sweep(command):
    assert "need -m" in refused(command, "seed=1,2")
    assert "needs -m" in refused(command, "hydra/launcher=many")
    assert command("-m", "hydra/launcher=basic", "seed=1,2")[0] == 0


def test_a_sweep_takes_the_launcher_that_is_named_or_runs_here(command):
    for named in ((), ("hydra/launcher=basic",)):
        _, _, configs = command("-m", *named, "seed=1,2")
        assert [cfg.launchers._target_ for cfg, _ in configs] == ["launchers.here.Here"] * 2
    _, _, configs = command("-m", "hydra/launcher=many", "launchers.num_parallel=2", "experiment=smoke", "seed=1,2")
    assert [cfg.launchers.num_parallel for cfg, _ in configs] == [2, 2]
    assert "launchers.num_paralel is not a key" in refused(
        command, "-m", "hydra/launcher=many", "launchers.num_paralel=2"
    )
    assert "launchers.num_parallel is not a key" in refused(command, "-m", "launchers.num_parallel=2", "seed=1,2")
    assert "one launcher" in refused(command, "-m", "hydra/launcher=many,basic")


def test_the_config_of_a_sweep_is_shown_and_nothing_started(command):
    assert command("-m", "--cfg", "job", "seed=1,2")[2] == []


def test_cells_that_would_share_a_folder_are_refused(command):
    assert "one folder" in refused(command, "-m", "num_workers=0,2")
    assert "names one run" in refused(command, "-m", "seed=1,2", "run=x")


def test_keys_that_nothing_reads_in_an_experiments_file_are_refused(command):
    says = refused(command, "experiment=misspelt")
    assert "Did you mean steps" in says
    assert "seed is a number" in says
    assert "epochs=2 and steps=5: both say how long a run is" in refused(command, "experiment=long")


def test_experiments_of_a_folder_of_ones_own_are_choices(command, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text("# @package _global_\nsteps: 5\n")
    _, _, [(cfg, _)] = command("--config-dir", "own", "experiment=mine")
    assert cfg.steps == 5


def test_a_broken_config_file_is_the_users_to_mend(command, conf):
    (conf / "experiment/smoke.yaml").write_text("steps: [1\n")
    assert "smoke.yaml" in refused(command, "experiment=smoke")
    (conf / "experiment/smoke.yaml").write_text("# @package _global_\ndefaults:\n  - override /haed: none\n")
    assert "haed" in refused(command, "experiment=smoke")


def fail(error):
    def task(cfg, given):
        raise error

    return task


def test_the_users_error_is_one_message_and_a_defect_a_traceback(command):
    code, says, _ = command(task=fail(InputError("a.jsonl:3: no box")))
    assert (code, says) == (2, "error: a.jsonl:3: no box\n")
    code, says, _ = command(task=fail(RuntimeError("broken")))
    assert code == 1
    assert "Traceback" in says
    assert "RuntimeError: broken" in says


def test_the_users_error_is_found_inside_instantiate(command):
    wrapped = InstantiationException("Error in call to target")
    wrapped.__cause__ = InputError("a.jsonl:3: no box")
    assert command(task=fail(wrapped))[:2] == (2, "error: a.jsonl:3: no box\n")


def test_the_traceback_of_the_users_error_is_shown_on_demand(command, monkeypatch):
    monkeypatch.setenv("BBU_FULL_ERROR", "1")
    assert "Traceback" in command(task=fail(InputError("no box")))[1]


def test_an_interrupt_is_one_line_with_what_goes_on(command, tmp_path):
    assert command(task=fail(KeyboardInterrupt()))[:2] == (130, "Interrupted. Give the same command again to go on.\n")
    (tmp_path / "config.yaml").touch()
    code, says, _ = command(task=fail(Interrupted(7, 4, str(tmp_path), ["num_workers=2", "data.root=/a b"])))
    assert code == 130
    assert says == (
        "Interrupted after step 7; the newest checkpoint is that of step 4. To go on: python -m bbu_train "
        f"resume={tmp_path} num_workers=2 'data.root=/a b'\n"
    )


def test_a_resumed_run_brings_its_choices(command, tmp_path):
    def make(cfg, given):
        run_folder.create(tmp_path / "outputs/a/b", cfg, {})

    command("data=jsonl", "head=none", "sweep=a", task=make)
    code, _, [(cfg, given)] = command("resume=outputs/a/b", "data.root=/moved")
    assert code == 0
    assert given == ["resume=outputs/a/b", "data.root=/moved"]
    assert OmegaConf.to_container(cfg.head) == {}


def test_a_resumed_run_of_other_code_is_the_users_to_mend(command, tmp_path):
    def make(cfg, given):
        run_folder.create(tmp_path / "outputs/a/b", cfg, {})

    missing = fail(TypeError("build() missing 1 required positional argument: 'width'"))
    command("sweep=a", task=make)
    (tmp_path / "outputs/a/b" / run_folder.ENVIRONMENT).write_text('{"git_commit": "abc123", "choices": {}}')
    code, said, _ = command("resume=outputs/a/b", task=missing)
    assert (code, "outputs/a/b was made by other code: build() missing" in said) == (2, True)
    assert command("sweep=a", task=missing)[0] == 1  # of this code, and a defect


ROOT = Path(__file__).resolve().parents[2]


def program(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "bbu_train", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_help_lists_every_group_and_its_choices(tmp_path):
    done = program("--help", folder=tmp_path)
    assert done.returncode == 0
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        for choice in group.glob("*.yaml"):
            assert re.search(rf"^{group.name}: .*\b{choice.stem}\b", done.stdout, re.MULTILINE)


def test_a_config_is_shown_without_importing_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = program("--cfg", "job", "steps=7", folder=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "steps: 7" in done.stdout


def test_missing_weights_are_said_before_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = program(
        *("model=qwen25vl3b", "collator=packed"),
        folder=tmp_path,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: The weights of Qwen/Qwen2.5-VL-3B-Instruct are missing")
    assert len(done.stderr.splitlines()) == 1


def asked_to_end(folder, step, name="SIGTERM"):
    def task(cfg, given):
        raise Preempted(step, name, str(folder))

    return task


@pytest.mark.parametrize(("name", "expected"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_run_that_was_asked_to_end_says_how_to_go_on_with_a_code_of_its_own(command, tmp_path, name, expected):
    (tmp_path / "config.yaml").touch()
    code, says, _ = command(task=asked_to_end(tmp_path, 7, name))
    assert code == expected
    assert says == (
        f"{name} ended the run after step 7, which is saved. To go on: python -m bbu_train resume={tmp_path}\n"
    )


def test_a_run_that_has_no_folder_yet_goes_on_by_the_same_command(command, tmp_path):
    says = command(task=asked_to_end(tmp_path / "none", 0))[1]
    assert says.endswith("before its first step. Nothing was written: give the same command again.\n")


def test_only_the_first_of_several_ranks_says_that_it_was_asked_to_end(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert command(task=asked_to_end(tmp_path, 7))[:2] == (75, "")
