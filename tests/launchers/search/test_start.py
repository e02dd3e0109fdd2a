"""Searches draw trials, follow them, and lose or repeat none when the controller dies."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import searches
from slurm_sweeps import wait_for

import launchers.__main__
from bbu_train.cli.main import exit_code
from bbu_train.compare import comparison
from bbu_train.errors import InputError, SweepPreempted
from bbu_train.runs.identity import run_identity
from bbu_train.runtime import preemption
from launchers import job_states
from launchers.__main__ import main
from launchers.job_states import SlurmUnavailable, local_job_id
from launchers.ledger import Ledger
from launchers.local import Local
from launchers.preflight import check
from launchers.preflight.check import CheckAborted
from launchers.search.command import create_study, read_search_command
from launchers.search.start import launch_search, resume_search, start_search
from launchers.search.trials import read_trials
from launchers.status import read_statuses

ROOT = Path(__file__).resolve().parents[3]
WEIGHT = "loss.weights.giou"
START = """
import sys
from pathlib import Path
from launchers.search.command import read_search_command
from launchers.search.start import start_search
from launchers.ledger import Ledger
command = read_search_command(sys.argv[1:], Path({conf!r}))
start_search(Ledger(Path("outputs/s/ledger").absolute()), command, sys.argv[1:], command.cell({first!r}))
"""


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Path:
    """The folder with the launcher's config."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "hydra/launcher").mkdir(parents=True)
    (folder / "hydra/launcher/formula.yaml").write_text(searches.CONFIG)
    return folder


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Ledger:
    """The ledger of outputs/s/ in the working directory of the test and its processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BBU_OUTPUTS", raising=False)
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths).rstrip(os.pathsep))
    return Ledger(tmp_path / "outputs/s/ledger")


@pytest.fixture(scope="module")
def arguments(conf) -> Callable[..., list[str]]:
    """A function from a sampler and overrides to the arguments of a search of two trials of four steps."""
    options = ("-m", "--config-dir", str(conf), "hydra/launcher=formula", "tracker=jsonl")
    small = ("search.num_trials=2", "search.poll_seconds=0.02", "steps=4", "eval_every=1", "sweep=s")
    small += ("schedule.num_warmup_steps=1",)
    return lambda sampler, *overrides: [*options, f"search={sampler}", *small, *overrides]


@pytest.fixture
def search(arguments, ledger) -> Callable[..., int]:
    """A function that starts a search and returns its exit code."""

    def start(sampler: str, *overrides: str) -> int:
        words = arguments(sampler, *overrides)
        command = read_search_command(words, ROOT / "conf")
        assert command is not None
        return start_search(ledger, command, words, command.cell(create_study(command).ask().params))

    return start


@pytest.fixture
def start_process(arguments):
    """A function that starts a search in a process of its own, which is killed at the end of the test."""
    processes = []

    def start(first: dict[str, Any], sampler: str, *overrides: str) -> subprocess.Popen[bytes]:
        program = START.format(conf=str(ROOT / "conf"), first=first)
        processes.append(subprocess.Popen([sys.executable, "-c", program, *arguments(sampler, *overrides)]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def drawn(ledger: Ledger) -> list[dict[str, Any]]:
    return [content["params"] for _, content in read_trials(ledger)]


def states(ledger: Ledger) -> Counter[str]:
    return Counter(status.state.name for status in read_statuses(ledger))


def num_attempts(ledger: Ledger) -> list[int]:
    attempts = [entry.newest_attempt() for entry, _ in read_trials(ledger)]
    return [attempt.number if attempt else 0 for attempt in attempts]


def num_begun(ledger: Ledger) -> list[int]:
    """For each trial, the number of its attempts that a process has begun."""
    return [len(list(entry.folder.glob("*/state.json"))) for entry, _ in read_trials(ledger)]


def test_the_same_search_with_more_trials_continues_and_repeats_none(search, ledger, capsys):
    assert search("random", f"{WEIGHT}=interval(1.5,5)", "search.num_trials=1") == 0
    first = drawn(ledger)
    assert search("random", f"{WEIGHT}=interval(1.5,5)", "search.num_trials=2") == 0
    assert [content["number"] for _, content in read_trials(ledger)] == [0, 1]
    assert drawn(ledger)[:1] == first
    assert num_attempts(ledger) == [1, 1]
    assert states(ledger) == {"done": 2}
    best = min(drawn(ledger), key=lambda params: abs(params[WEIGHT] - searches.BEST))
    assert f": {WEIGHT}={best[WEIGHT]}" in capsys.readouterr().out.split("The best is ")[-1]


def test_a_search_continues_after_its_controller_is_killed_and_draws_the_same_trials(
    search, start_process, ledger, tmp_path, monkeypatch
):
    space = ("tpe", "search.sampler.n_startup_trials=1", "search.num_trials=3", f"{WEIGHT}=interval(1.5,5)", "seed=1,2")
    process = start_process({WEIGHT: 2.0, "seed": "1"}, *space)
    wait_for(lambda: len(drawn(ledger)) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["resume", "s"]) == 0
    assert num_begun(ledger) == [1, 1, 1], "an attempt whose process the kill prevented has a successor, and no other"
    assert states(ledger) == {"done": 3}
    interrupted = drawn(ledger)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    whole = Ledger(tmp_path / "again/outputs/s/ledger")
    ledger.folder = whole.folder
    assert search(*space) == 0
    assert drawn(whole) == interrupted


def test_a_poor_trial_is_pruned_and_not_started_again(search, ledger, capsys):
    space = (f"{WEIGHT}={searches.BEST},0.5", "search.pruner.n_startup_trials=1", "search.seed=2")
    assert search("random", *space) == 0
    assert drawn(ledger)[0] == {WEIGHT: "3.0"}, "with this seed the good trial comes first"
    assert states(ledger) == {"done": 1, "pruned": 1}
    assert main(["status", "s"]) == 0
    assert "pruned: eval/ap50 was 0.0004826 at step 1, pruned by MedianPruner" in capsys.readouterr().out
    assert main(["resume", "s"]) == 0
    assert num_attempts(ledger) == [1, 1]


def test_failed_and_diverged_trials_do_not_end_a_search_and_an_exhausted_space_does(search, ledger, capsys):
    seeds = f"seed=1,{searches.RAISES},{searches.DIVERGES}"
    assert search("random", seeds, "search.num_trials=9", "launchers.num_parallel=2") == 0
    assert states(ledger) == {"done": 2, "failed": 1}
    assert "the space is exhausted: the search ends with 3 trials." in capsys.readouterr().out


def test_a_search_without_any_finished_trial_has_failed(search, ledger):
    with pytest.raises(InputError, match="1 trials have ended, and none with a eval/ap50. See why"):
        search("random", f"seed={searches.RAISES},{searches.RAISES}.0", "search.num_trials=2")
    assert ledger.search.state(job_states.lookup()).name == "failed"


def test_a_metric_that_no_trial_logs_ends_the_search_and_the_error_lists_the_logged_ones(search, ledger):
    space = (f"seed={searches.LACKS_METRIC}", f"{WEIGHT}=interval(1.5,5)")
    with pytest.raises(InputError, match="none has search.metric=eval/ap50. There are: eval/loss/total"):
        search("random", *space, "search.num_trials=9")
    assert search("random", *space, "search.metric=eval/loss/total") == 0
    assert num_attempts(ledger) == [1, 1, 1]


def test_a_launcher_that_gives_trials_no_process_of_their_own_is_refused():
    arguments = ["-m", "hydra/launcher=here", "search=random", "seed=1,2"]
    command = read_search_command(arguments, ROOT / "conf")
    assert command is not None
    with pytest.raises(InputError, match="A search needs a process for each trial"):
        launch_search(command, arguments)


def test_a_second_controller_is_refused_while_the_first_is_running(search, ledger):
    assert search("random", f"{WEIGHT}=2,4", "search.num_trials=1") == 0
    ledger.search.add_attempt().begin(local_job_id())
    for again in (lambda: search("random", f"{WEIGHT}=2,4"), lambda: resume_search(ledger)):
        with pytest.raises(InputError, match="The search of s is running already, as local/"):
            again()


def test_another_space_is_refused_and_every_change_is_named(search, ledger):
    assert search("random", f"{WEIGHT}=interval(1.5,5)", "seed=1,2", "threads=1", "search.num_trials=1") == 0
    with pytest.raises(InputError) as error:
        search("random", f"{WEIGHT}=interval(1.5,6)", "head=detr,none", "threads=2")
    message = str(error.value)
    for problem in (
        "seed was searched over 1,2 and is not now",
        f"{WEIGHT} was searched over interval(1.5,5) and is over interval(1.5,6) now",
        "head=detr,none was not searched before",
        "threads=1 was given before and is not now",
    ):
        assert problem in message
    assert len(drawn(ledger)) == 1


def test_a_search_that_a_signal_asks_to_end_is_preempted_and_its_trials_continue(
    search, ledger, own_process, monkeypatch
):
    monkeypatch.setattr(searches.Formula, "start_controller", Local.start_controller)

    def ask():
        wait_for(lambda: ledger.folder.exists() and states(ledger)["running"])
        os.kill(os.getpid(), signal.SIGUSR2)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(SweepPreempted) as preempted:
            search("random", f"{WEIGHT}=0.5,0.6", "search.num_trials=1")
    finally:
        asking.join()
        preemption._received.clear()
    assert exit_code(preempted.value) == os.EX_TEMPFAIL
    assert ledger.search.state(job_states.lookup()).name == "preempted"
    assert states(ledger) == {"running": 1}
    job_states.cancel([entry.newest_attempt().job for entry, _ in read_trials(ledger)])


@pytest.mark.parametrize(
    ("signals", "error", "state"), [([], CheckAborted, "failed"), (["SIGTERM"], SweepPreempted, "preempted")]
)
def test_a_check_that_is_killed_fails_no_trial(search, ledger, monkeypatch, signals, error, state):
    def run(command, **options):
        monkeypatch.setattr(preemption, "_received", signals)
        return subprocess.CompletedProcess(command, -signal.SIGTERM)

    monkeypatch.setattr(check, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
    with pytest.raises(error):
        search("random", "head=none,detr")
    assert states(ledger) == {"done": 1}
    assert ledger.search.state(job_states.lookup()).name == state


def test_a_trial_is_started_again_if_slurm_did_not_answer(search, ledger, monkeypatch):
    original, calls = searches.Formula.start, []

    def start(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise SlurmUnavailable("scontrol show config gave no answer")
        return original(self, *arguments)

    monkeypatch.setattr(searches.Formula, "start", start)
    assert search("random", f"{WEIGHT}=2,4") == 0
    assert num_attempts(ledger) == [1, 1]
    assert states(ledger) == {"done": 2}


def test_cancel_ends_the_controller_and_its_trials(start_process, ledger, monkeypatch):
    monkeypatch.setattr(launchers.__main__, "CANCEL_POLL_SECONDS", 0.1)
    process = start_process({WEIGHT: 0.5}, "random", f"{WEIGHT}=0.5,0.6", "launchers.num_parallel=2")
    wait_for(lambda: states(ledger)["running"] == 2)
    assert main(["cancel", "s"]) == 0
    assert process.wait(10) == -signal.SIGTERM
    assert states(ledger) == {"cancelled": 2}
    assert ledger.search.state(job_states.lookup()).name == "cancelled"


def test_real_runs_continue_without_their_controller_and_a_poor_one_is_pruned(tmp_path, ledger, own_process):
    experiments = tmp_path / "conf/experiment"
    experiments.mkdir(parents=True)
    (experiments / "good.yaml").write_text("# @package _global_\nsteps: 2\n")
    (experiments / "poor.yaml").write_text("# @package _global_\nsteps: 1000\nloss: {weights: {l1: 1000}}\n")
    settings = ("search.num_trials=2", "search.seed=2", "search.poll_seconds=0.2", "search.pruner.n_startup_trials=1")
    settings += ("search=random", "search.metric=eval/loss/total")
    small = ("data.num_train=8", "data.num_validation=2", "sampler.num_samples=2", "threads=1", "tracker=jsonl")
    small += ("head.num_queries=20", "head.d_model=64", "schedule.num_warmup_steps=1")
    small += ("eval_every=1", "save_every=null")
    overrides = ("hydra/launcher=local", "sweep=s", *settings, *small, "experiment=good,poor")
    command = [sys.executable, "-m", "bbu_train", "-m", "--config-dir", str(tmp_path / "conf"), *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(lambda: process.poll() is not None or (ledger.folder.exists() and states(ledger)["running"]))
        process.kill()
        output = process.communicate()[0]
    assert "2 trials, if each were like the first and none pruned" in output
    assert main(["resume", "s"]) == 0
    assert drawn(ledger) == [{"experiment": "good"}, {"experiment": "poor"}]
    assert num_attempts(ledger) == [1, 1]
    assert states(ledger) == {"done": 1, "pruned": 1}
    (excluded_row,) = comparison.compare(tmp_path / "outputs", "s", "eval/loss/total", "min", "last").excluded.rows
    assert excluded_row[0] == read_trials(ledger)[1][0].run
    assert excluded_row[1].startswith("pruned: eval/loss/total was")


def test_a_trial_is_the_run_that_its_overrides_compose_alone(arguments, config):
    command = read_search_command(arguments("random", "head=none,detr", f"{WEIGHT}=interval(1,5)"), ROOT / "conf")
    cell = command.cell({"head": "none", WEIGHT: 2.5})
    default = "data=synthetic_parts", "loss=varifocal"
    values = f"{WEIGHT}=2.5", "steps=4", "schedule.num_warmup_steps=1", "eval_every=1"
    alone = config("head=none", *default, *values, "tracker=jsonl")
    assert cell.cfg.about.identity == run_identity(alone)
    assert cell.cfg.about.title == "head=none giou=2.5"
    assert not any("search" in text for text in cell.overrides)


def test_a_search_imports_no_torch_and_everything_else_no_optuna():
    program = "import sys, launchers.launch, launchers.__main__; assert not {'optuna', 'torch'} & set(sys.modules); "
    program += "import launchers.search.controller; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
