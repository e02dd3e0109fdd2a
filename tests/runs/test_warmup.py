"""A warm-up that does not fit is shortened, unless the command gives it; cells never differ in it in silence."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bbu_train.errors import InputError
from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity
from bbu_train.runs.resume import resolve_run
from bbu_train.training import config_checks, first_screen, setup
from launchers import cells
from launchers.search.command import read_search_command

CONF = Path(__file__).parents[2] / "conf"
SCHEDULES = ("schedule=warmup_cosine", "schedule=constant")
SMALL = (
    "data=synthetic",
    "sampler=fixed_samples",
    "data.num_train=8",
    "data.num_validation=2",
    "sampler.num_samples=2",
)


@pytest.fixture
def resolve(config, tmp_path):
    def resolve(*words: str):
        given = [f"outputs={tmp_path}", "sweep=s", "run=r", *words]
        return resolve_run(config(*given), "default", given, in_sweep=False)

    return resolve


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warmup_that_does_not_fit_is_a_tenth_of_the_steps_and_one_that_fits_stays(resolve, schedule):
    shortened, fits = resolve("steps=9", schedule), resolve("steps=10", schedule)
    assert (shortened.schedule.num_warmup_steps, fits.schedule.num_warmup_steps) == (0, 10)
    assert first_screen.changed_lines(shortened) == [
        "schedule.num_warmup_steps=10 does not fit into 9 steps, so it is 0"
    ]
    assert first_screen.changed_lines(fits) == []
    config_checks.check(shortened)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warmup_that_the_command_gives_is_refused_if_it_does_not_fit(resolve, schedule):
    cfg = resolve("steps=9", schedule, "schedule.num_warmup_steps=10")
    with pytest.raises(InputError, match="Expected at most 9"):
        config_checks.check(cfg)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_steps_are_a_run_that_only_evaluates(resolve, schedule):
    cfg = resolve("steps=0", schedule)
    assert cfg.schedule.num_warmup_steps == 0
    config_checks.check(cfg)


@pytest.mark.parametrize("length", ["steps=2", "epochs=0.5"])
def test_the_same_command_finds_its_run_whose_warmup_was_shortened(config, resolve, length):
    words = ("schedule=warmup_cosine", length, *SMALL)
    cfg = resolve(*words)
    setup.prepare(cfg)
    assert (cfg.steps, cfg.schedule.num_warmup_steps, cfg.about.full_warmup) == (2, 0, 10)
    assert identity.run_identity(cfg) == cfg.about.identity
    run_folder.create(cfg.folder, cfg, {})
    again = resolve(*words)
    setup.prepare(again)
    assert again.schedule == cfg.schedule
    with pytest.raises(InputError, match="made with another config"):
        resolve(*words, "seed=3")
    with pytest.raises(InputError, match="is 0 in the run, which is too short for 10"):
        resolve(*words, "schedule.num_warmup_steps=10")
    resume = [f"resume={cfg.folder}", "schedule.num_warmup_steps=0"]
    assert resolve_run(config(*resume), "default", resume, in_sweep=False).schedule == cfg.schedule
    assert OmegaConf.load(Path(cfg.folder) / run_folder.CONFIG).schedule.num_warmup_steps == 0


def test_a_sweep_whose_cells_would_differ_in_silence_is_refused(tmp_path):
    words = ["-m", f"outputs={tmp_path}", "schedule=warmup_cosine"]
    for swept in cells.compose([*words, "steps=2", "seed=1,2"], CONF):
        assert swept.cfg.schedule.num_warmup_steps == 0
    with pytest.raises(InputError, match=r"it would be 0 for steps=2 and 10 for steps=300. Give schedule.num_warmup"):
        cells.compose([*words, "steps=2,300"], CONF)
    assert len(cells.compose([*words, "steps=2,300", "schedule.num_warmup_steps=1"], CONF)) == 2


def test_a_search_whose_trials_would_differ_in_silence_is_refused(tmp_path):
    words = ["-m", "hydra/launcher=local", "search=random", f"outputs={tmp_path}", "schedule=warmup_cosine"]
    for length in ("steps=2,300", "epochs=1,3"):
        with pytest.raises(InputError, match=r"Give schedule.num_warmup_steps"):
            read_search_command([*words, length], CONF)
    assert read_search_command([*words, "steps=2,300", "schedule.num_warmup_steps=1"], CONF) is not None
