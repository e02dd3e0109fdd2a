import json
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bbu_train.errors import InputError
from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity, resume
from bbu_train.runs.length import problems_of_length


def config(**changes) -> DictConfig:
    """What Hydra composes, with a key of every kind."""
    cfg = OmegaConf.create(
        {
            "seed": 17,
            "steps": 120,
            "epochs": None,
            "schedule": {"num_steps": "${steps}"},
            "optimizer": {"groups": {"llm": {"lr": 1e-5}}, "betas": [0.9, 0.95]},
            "data": {"root": "${outputs}/made", "cache": "${outputs}/cache", "seed": "${seed}"},
            "tracker": {"jsonl": {"folder": "${folder}"}},
            "num_workers": 0,
            "save_every": 60,
            "sweep": None,
            "run": None,
            "resume": None,
            "outputs": "${oc.env:BBU_OUTPUTS,outputs}",
            "folder": "${outputs}/${sweep}/${run}",
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False)
    OmegaConf.set_struct(cfg, True)
    return cfg


def settled(overrides=(), experiment="default", in_sweep=False, swept=()) -> DictConfig:
    """`settle` with a config in which these overrides are applied, as Hydra does it."""
    changes = dict(OmegaConf.to_container(OmegaConf.create({o.split("=")[0]: _value(o) for o in overrides})))
    return resume.resolve_run(config(**changes), experiment, list(overrides), in_sweep, swept)


def _value(override: str):
    return OmegaConf.from_dotlist([f"value={override.split('=', 1)[1]}"]).value


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BBU_OUTPUTS", raising=False)
    return tmp_path


def made(*overrides: str):
    """The folder of a run that was made with these overrides."""
    cfg = settled(["sweep=a", "run=b", *overrides])
    run_folder.create(cfg.folder, cfg, {})
    return cfg.folder


# ---- what is noted of a run ----


def test_the_overrides_of_a_cell_are_noted_swept_ones_first_and_name_it():
    about = settled(
        ["steps=120.0", "num_workers=4", "seed=3", "optimizer.groups.llm.lr=1e-6"],
        in_sweep=True,
        swept=["optimizer.groups.llm.lr", "seed"],
    ).about
    assert about.overrides == ["seed=3", "optimizer.groups.llm.lr=1e-06", "steps=120"]
    assert about.title == "seed=3 lr=1e-06"
    assert about.in_sweep
    assert about.identity == identity.run_identity(config(seed=3, **{"optimizer.groups.llm.lr": 1e-6}))


def test_swept_keys_that_end_alike_keep_what_tells_them_apart():
    cfg = config(optimizer={"groups": {"llm": {"lr": 1}, "vision": {"lr": 2}}})
    keys = ["optimizer.groups.llm.lr", "optimizer.groups.vision.lr"]
    about = resume.resolve_run(
        cfg, "default", [f"{keys[0]}=1", f"{keys[1]}=2", "seed=17"], True, [*keys, "seed", "data.seed"]
    ).about
    assert about.title == "llm.lr=1 vision.lr=2 seed=17"


def test_choices_mappings_and_references_are_noted_as_they_were_given():
    about = resume.resolve_run(
        config(seed="${steps}", optimizer={"groups": {"llm": {"lr": 1}}}),
        "default",
        ["+experiment=lr_groups", "optimizer.groups={llm: {lr: 1}}", "seed=${steps}", "hydra/launcher=slurm"],
        False,
    ).about
    assert about.overrides == ["experiment=lr_groups", "optimizer.groups.llm.lr=1", "seed=120"]
    assert about.title is None


def test_a_resumed_run_keeps_what_was_noted_of_it():
    folder = made("seed=3")
    assert settled([f"resume={folder}", "num_workers=4"]).about.overrides == ["seed=3"]
    assert settled(["sweep=a", "run=b", "seed=3", "num_workers=4"]).about.overrides == ["seed=3"]


def test_going_on_once_more_needs_the_values_that_going_on_was_given():
    folder = made("seed=3", "num_workers=1")
    assert settled(["sweep=c", "run=d", "num_workers=1"]).about.go_on == []
    for words in (f"resume={folder}",), ("sweep=a", "run=b", "seed=3"):
        assert settled([*words, "num_workers=4"]).about.go_on == ["num_workers=4"]


# ---- identity and names ----


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "x", "sweep": "y", "resume": "z", "outputs": "/elsewhere"},
        {"num_workers": 4},
        {"save_every": 1},
        {"log_lines_seconds": 5},
        {"tracker.jsonl.folder": "/x"},
        {"data.root": "/moved"},
        {"steps": 120.0},
    ],
)
def test_places_names_cadence_and_workers_leave_the_identity(changes):
    assert identity.run_identity(config(**changes)) == identity.run_identity(config())


@pytest.mark.parametrize(
    "changes", [{"seed": 18}, {"optimizer.groups.llm.lr": 2e-5}, {"optimizer.betas": [0.9, 0.99]}, {"data.cache": "/x"}]
)
def test_what_can_change_the_result_changes_the_identity(changes):
    assert identity.run_identity(config(**changes)) != identity.run_identity(config())


def test_an_identity_is_eight_digits_and_no_number():
    for seed in range(50):
        name = identity.run_identity(config(seed=seed))
        assert len(name) == 8
        assert set(name) <= set("0123456789abcdef")
        assert isinstance(_value(f"run={name}"), str)


def test_a_new_name_is_a_time_and_the_identity():
    name = identity.new_run_name(config())
    assert name.endswith(f"-{identity.run_identity(config())}")
    assert len(name) == len("20250131-235959-") + 8


def test_the_sweep_is_named_after_the_experiment():
    assert settled(experiment="lr_groups").sweep == "lr_groups"
    assert settled(["sweep=mine"], experiment="lr_groups").sweep == "mine"
    assert identity.experiment_name(None) == "default"
    assert identity.experiment_name("smoke") == "smoke"


def test_a_cell_of_a_sweep_is_named_by_its_identity_and_a_single_run_later():
    assert settled(in_sweep=True).run == identity.run_identity(config())
    assert settled().run is None


@pytest.mark.parametrize("name", ["run=a/b", "run=..", "run=.x", "sweep=a/b", "run=1.10", "folder=/x", "about.title=x"])
def test_a_name_that_is_no_name_is_refused(name):
    with pytest.raises(InputError, match=name.split("=")[0]):
        settled([name])


def test_values_that_must_be_given_are_named():
    with pytest.raises(InputError, match=r"data\.root must be given"):
        resume.resolve_run(config(**{"data.root": "???"}), "default", [], in_sweep=False)


# ---- the folder ----


def test_a_stored_config_keeps_references_and_resolves_what_comes_from_outside(monkeypatch):
    monkeypatch.setenv("BBU_OUTPUTS", "there")
    folder = made()
    stored = OmegaConf.to_container(OmegaConf.load(f"{folder}/config.yaml"), resolve=False)
    assert stored["outputs"] == "there"
    assert stored["folder"] == "${outputs}/${sweep}/${run}"
    assert stored["data"]["seed"] == "${seed}"


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
def test_a_damaged_environment_is_named(content):
    folder = made()
    Path(folder, "environment.json").write_text(content)
    with pytest.raises(InputError, match=r"environment.json is damaged"):
        run_folder.read_environment(folder)


def test_the_environment_names_the_versions():
    folder = made()
    environment = json.loads(Path(folder, "environment.json").read_text(encoding="utf-8"))
    assert environment["packages"]["hydra-core"]
    assert {"git_commit", "python", "choices"} <= environment.keys()


def test_nothing_unfinished_stays_in_the_folder(working_directory):
    made()
    assert sorted(path.name for path in (working_directory / "outputs/a/b").iterdir()) == [
        "config.yaml",
        "environment.json",
    ]


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(working_directory):
    (working_directory / "outputs").write_text("a file")
    with pytest.raises(InputError, match="outputs="):
        made()


# ---- going on ----


def test_the_same_command_again_goes_on():
    made("seed=5", "num_workers=2")
    assert settled(["sweep=a", "run=b", "seed=5", "num_workers=2"]).seed == 5


def test_a_folder_without_a_config_is_not_yet_a_run(working_directory):
    (working_directory / "outputs/a/b").mkdir(parents=True)
    assert settled(["sweep=a", "run=b"]).run == "b"


def test_another_command_with_the_same_name_is_refused_with_both_values():
    made()
    with pytest.raises(InputError) as refused:
        settled(["sweep=a", "run=b", "seed=5", "optimizer.groups.llm.lr=0.1"])
    message = str(refused.value)
    assert "2 problems" in message
    assert "seed is 17 in the run and 5 in this command" in message
    assert "optimizer.groups.llm.lr is 1e-05 in the run and 0.1 in this command" in message
    assert "another run=" in message


def test_the_same_name_takes_the_runs_own_neutral_values_unless_the_command_gives_others():
    made("num_workers=2", "save_every=5")
    cfg = settled(["sweep=a", "run=b", "save_every=7"])
    assert (cfg.num_workers, cfg.save_every) == (2, 7)


def test_resume_takes_the_runs_own_config():
    folder = made("seed=5", "save_every=5")
    cfg = settled([f"resume={folder}", "num_workers=3"])
    assert (cfg.seed, cfg.save_every, cfg.num_workers) == (5, 5, 3)


def test_resume_refuses_what_differs_and_allows_what_agrees():
    folder = made("seed=5")
    assert settled([f"resume={folder}", "seed=5"]).seed == 5
    with pytest.raises(InputError, match="seed is 5 in the run and 6"):
        settled([f"resume={folder}", "seed=6"])
    with pytest.raises(InputError, match="Leave out run"):
        settled([f"resume={folder}", "run=other"])


@pytest.mark.parametrize("written", ["outputs/a/b", "outputs/a/b/", "./outputs/a/../a/b", "{here}/outputs/a/b"])
def test_resume_finds_the_folder_however_it_is_written(written, working_directory):
    made()
    cfg = settled([f"resume={written.format(here=working_directory)}"])
    assert cfg.folder == cfg.tracker.jsonl.folder == str(working_directory / "outputs/a/b")


def test_resume_works_from_another_working_directory(working_directory, monkeypatch):
    made()
    (working_directory / "elsewhere").mkdir()
    monkeypatch.chdir(working_directory / "elsewhere")
    cfg = settled(["resume=../outputs/a/b"])
    assert cfg.folder == str(working_directory / "outputs/a/b")
    assert cfg.outputs == str(working_directory / "outputs")


@pytest.mark.parametrize("place", ["outputs/a/renamed", "backup/a/b", "alone"])
def test_a_moved_run_lies_where_it_was_moved_to(place, working_directory):
    made()
    (working_directory / place).parent.mkdir(parents=True, exist_ok=True)
    (working_directory / "outputs/a/b").rename(working_directory / place)
    cfg = settled([f"resume={place}"])
    assert cfg.folder == cfg.tracker.jsonl.folder == str(working_directory / place)


def test_a_run_that_was_moved_out_of_its_family_keeps_its_names(working_directory):
    made()
    (working_directory / "outputs/a/b").rename(working_directory / "alone")
    cfg = settled(["resume=alone"])
    assert (cfg.sweep, cfg.run, cfg.outputs) == ("a", "b", "outputs")


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ("outputs/a/bb", "Did you mean .*outputs/a/b?"),
        ("outputs/a", "Name one of them: b"),
        ("outputs/a/b/checkpoints", "Did you mean .*outputs/a/b\\?"),
        ("outputs/a/empty", "an empty folder.*Runs beside it: b"),
        ("nowhere", "no such folder"),
    ],
)
def test_what_lies_in_the_place_of_a_run_is_said(resume, says, working_directory):
    folder = made()
    (working_directory / folder / "checkpoints").mkdir()
    (working_directory / "outputs/a/empty").mkdir()
    with pytest.raises(InputError, match=says):
        settled([f"resume={resume}"])


def test_a_broken_stored_config_is_named(working_directory):
    folder = made()
    (working_directory / folder / "config.yaml").write_text("seed: [1\n")
    with pytest.raises(InputError, match=r"config\.yaml is not the config of a run"):
        settled([f"resume={folder}"])


# ---- a run that other code made ----


def build(node, **given):
    """As a program builds a part, an argument that comes later included."""
    return instantiate(OmegaConf.create(node))(**given)


NORM = {"_target_": "torch.nn.LayerNorm", "_partial_": True}


@pytest.mark.parametrize(
    ("node", "what"),
    [
        (NORM, "missing 1 required positional argument: 'normalized_shape'"),
        ({**NORM, "normalized_shape": 4, "gone": 1}, "unexpected keyword argument 'gone'"),
        ({"_target_": "bbu_train.conversation.order.Gone"}, "bbu_train.conversation.order.Gone"),
    ],
)
def test_what_is_built_otherwise_now_is_said_with_the_commit_that_knows_it(node, what):
    folder = made()
    path = Path(folder) / run_folder.ENVIRONMENT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"git_commit": "abc123"}))
    with pytest.raises(InputError) as caught, run_folder.built_by_this_code(folder):
        build(node)
    assert what in str(caught.value)
    assert f"The run in {folder} was made by other code" in str(caught.value)
    assert str(caught.value).endswith("Take the bbu_train of commit abc123.")


def test_a_defect_of_this_commit_stays_one(monkeypatch):
    monkeypatch.setattr(run_folder, "git_commit", lambda: "abc123")
    folder = made()
    with pytest.raises(TypeError, match="normalized_shape"), run_folder.built_by_this_code(folder):
        build(NORM)


def test_without_a_commit_it_is_said_all_the_same(tmp_path):
    ending = r"Take the bbu_train that it was made with\.$"
    with pytest.raises(InputError, match=ending), run_folder.built_by_this_code(tmp_path):
        build(NORM)


@pytest.mark.parametrize("error", [TypeError("unhashable type: 'list'"), InputError("Error loading a.jsonl")])
def test_other_errors_stay_what_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, run_folder.built_by_this_code(tmp_path):
        raise error
    assert caught.value is error


# ---- the length of a run ----


def test_epochs_take_the_place_of_steps_and_the_identity_holds_what_was_given():
    cfg = settled(["epochs=3"])
    assert (cfg.epochs, cfg.steps) == (3, None)
    assert cfg.about.overrides == ["epochs=3"]
    values = identity.result_values(cfg)
    assert values["epochs"] == 3
    assert not {"steps", "schedule.num_steps"} & values.keys()
    cfg.steps = 450  # counted
    assert identity.result_values(cfg) == values
    assert identity.result_values(config()).items() >= {("steps", 120), ("schedule.num_steps", 120)}
    assert "epochs" not in identity.result_values(config())
    assert identity.run_identity(cfg) not in {identity.run_identity(config(steps=steps)) for steps in (120, 450)}


def test_the_command_wins_over_an_experiment_and_cannot_give_both_lengths():
    cfg = resume.resolve_run(config(epochs=3, steps=7), "own", ["steps=7"], False)
    assert (cfg.epochs, cfg.steps) == (None, 7)
    cfg = resume.resolve_run(config(epochs=3, steps=None), "own", [], False)
    assert (cfg.epochs, cfg.steps) == (3, None)
    with pytest.raises(InputError, match=r"epochs=3 and steps=7: .* Give one of them"):
        settled(["steps=7", "epochs=3"])
    with pytest.raises(InputError, match="steps=null and epochs=null: a run needs a length"):
        settled(["steps=null"])
    assert settled(["steps=null", "epochs=0.5"]).epochs == 0.5


@pytest.mark.parametrize("epochs", ["0", "-1", "many", "true", ".inf"])
def test_epochs_that_no_run_can_have_are_refused(epochs):
    (problem,) = problems_of_length(settled([f"epochs={epochs}"]))
    assert "expected a number above 0, such as 3 or 0.5" in problem


@pytest.mark.parametrize("length", ["epochs=1000000000", "steps=1000000000"])
def test_lengths_that_would_take_hours_to_plan_are_refused(length):
    (problem,) = problems_of_length(settled([length]))
    assert f"{length}: every step is planned before the first one, so expected at most 100,000" in problem


def test_a_run_keeps_its_epochs_and_their_steps_and_takes_no_other_length():
    cfg = settled(["sweep=a", "run=b", "epochs=3"])
    cfg.steps = 450
    run_folder.create(cfg.folder, cfg, {})
    for again in (["sweep=a", "run=b", "epochs=3"], [f"resume={cfg.folder}"], [f"resume={cfg.folder}", "epochs=3.0"]):
        resumed = settled(again)
        assert (resumed.epochs, resumed.steps, resumed.schedule.num_steps) == (3, 450, 450)
    for other in (["sweep=a", "run=b", "steps=450"], [f"resume={cfg.folder}", "steps=450"]):
        with pytest.raises(InputError, match="epochs is 3 in the run and absent in this command"):
            settled(other)
    with pytest.raises(InputError, match="epochs is 3 in the run and 4 in this command"):
        settled([f"resume={cfg.folder}", "epochs=4"])


def test_the_cadence_of_evaluations_counts_where_it_decides_the_end_of_a_run():
    def identities(**stopping):
        return {identity.run_identity(config(eval_every=every, stopping=stopping)) for every in (10, 20)}

    assert len(identities(_target_="none")) == 1
    assert len(identities(_target_="patience", eval_every="${eval_every}")) == 2
