"""Searches: what is drawn, what becomes of it, and that nothing is lost or run twice when the controller dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import searches

from bbu_train.cli import main as command_line
from bbu_train.compare import comparison
from bbu_train.errors import InputError, SweepPreempted
from bbu_train.runtime import preemption
from launchers import jobs, status
from launchers.__main__ import main
from launchers.ledger import Ledger
from launchers.local import Local
from launchers.preflight import check as preflight
from launchers.preflight.check import NotChecked
from launchers.search import command as search_command
from launchers.search import start as search
from launchers.search.trials import recorded

ROOT = Path(__file__).resolve().parents[3]
WEIGHT = "loss.weights.giou"
BEGIN = """
import sys
from pathlib import Path
from launchers.search import command as search_command
from launchers.search import start as search
from launchers.ledger import Ledger
command = search_command.read(sys.argv[1:], Path({conf!r}))
search.begin(Ledger(Path("outputs/s/ledger").absolute()), command, sys.argv[1:], command.cell({first!r}))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder with the launcher's config; the tests' working directory has outputs/s/."""
    (tmp_path / "conf/hydra/launcher").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/formula.yaml").write_text(searches.CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BBU_OUTPUTS", raising=False)
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths).rstrip(os.pathsep))
    return tmp_path / "conf"


@pytest.fixture
def ledger(own):
    return Ledger(own.parent / "outputs/s/ledger")


@pytest.fixture
def arguments(own):
    """A function from overrides to the arguments of a search of two trials of four steps."""
    small = ("search.num_trials=2", "search.poll_seconds=0.02", "steps=4", "eval_every=1", "sweep=s")
    options = ("-m", "--config-dir", str(own), "hydra/launcher=formula", "tracker=jsonl")
    return lambda *overrides: [
        *options,
        f"search={'random' if overrides[0] != 'tpe' else 'tpe'}",
        *small,
        *overrides[1:],
    ]


@pytest.fixture
def begin(arguments, ledger):
    """A function that starts a search and gives its exit code."""

    def start(*overrides: str) -> int:
        given = arguments(*overrides)
        command = search_command.read(given, ROOT / "conf")
        return search.begin(ledger, command, given, command.cell(search_command.made_study(command).ask().params))

    return start


@pytest.fixture
def start_process(arguments):
    """A function that starts a search in a process of its own; what is left of it is killed at the end."""
    processes = []

    def start(first: dict, *overrides: str) -> subprocess.Popen:
        program = BEGIN.format(conf=str(ROOT / "conf"), first=first)
        processes.append(subprocess.Popen([sys.executable, "-c", program, *arguments(*overrides)]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def drawn(ledger):
    return [said["params"] for _, said in recorded(ledger)]


def states(ledger) -> Counter:
    return Counter(row.state.name for row in status.rows(ledger))


def num_attempts(ledger) -> list[int]:
    return [entry.newest().number for entry, _ in recorded(ledger)]


def wait_for(what, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited for {seconds} s"
        time.sleep(0.02)
    return found


def test_the_same_search_with_more_trials_goes_on_and_repeats_none(begin, ledger, capsys):
    assert begin("random", f"{WEIGHT}=interval(1.5,5)", "search.num_trials=1") == 0
    first = drawn(ledger)
    assert begin("random", f"{WEIGHT}=interval(1.5,5)", "search.num_trials=2") == 0
    assert [said["number"] for _, said in recorded(ledger)] == [0, 1]
    assert drawn(ledger)[:1] == first
    assert num_attempts(ledger) == [1, 1]
    assert states(ledger) == {"done": 2}
    best = min(drawn(ledger), key=lambda params: abs(params[WEIGHT] - searches.BEST))
    assert f": {WEIGHT}={best[WEIGHT]}" in capsys.readouterr().out.split("The best is ")[-1]


def test_a_search_whose_controller_is_killed_goes_on_as_if_it_had_not_been(
    begin, start_process, ledger, own, monkeypatch, capsys
):
    space = ("tpe", "search.sampler.n_startup_trials=1", "search.num_trials=3", f"{WEIGHT}=interval(1.5,5)", "seed=1,2")
    process = start_process({WEIGHT: 2.0, "seed": "1"}, *space)
    wait_for(lambda: len(drawn(ledger)) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["resume", "s"]) == 0
    assert num_attempts(ledger) == [1, 1, 1]
    assert states(ledger) == {"done": 3}
    interrupted = drawn(ledger)
    (own.parent / "again").mkdir()
    monkeypatch.chdir(own.parent / "again")
    whole = Ledger(own.parent / "again/outputs/s/ledger")
    ledger.folder = whole.folder
    assert begin(*space) == 0
    assert drawn(whole) == interrupted


def test_a_poor_trial_is_ended_and_not_started_again(begin, ledger, capsys):
    space = (f"{WEIGHT}={searches.BEST},0.5", "search.pruner.n_startup_trials=1", "search.seed=2")
    assert begin("random", *space) == 0
    assert drawn(ledger)[0] == {WEIGHT: "3.0"}, "with this seed the good trial comes first"
    assert states(ledger) == {"done": 1, "pruned": 1}
    assert main(["status", "s"]) == 0
    says = capsys.readouterr().out
    assert "pruned: eval/ap50 was 0.0004826 at step 1, poor by MedianPruner" in says
    assert main(["resume", "s"]) == 0
    assert num_attempts(ledger) == [1, 1]


def test_failed_and_diverged_trials_do_not_end_a_search_that_ends_where_its_space_does(begin, ledger, capsys):
    seeds = f"seed=1,{searches.RAISES},{searches.DIVERGES}"
    assert begin("random", seeds, "search.num_trials=9", "launchers.num_parallel=2") == 0
    assert states(ledger) == {"done": 2, "failed": 1}
    assert "3 are all there are" in capsys.readouterr().out


def test_a_search_of_which_nothing_comes_has_failed(begin, ledger):
    with pytest.raises(InputError, match="1 trials have ended, and none with a eval/ap50. See why"):
        begin("random", f"seed={searches.RAISES},{searches.RAISES}.0", "search.num_trials=2")
    assert ledger.search.state(jobs.seen()).name == "failed"


def test_a_metric_that_no_trial_has_ends_the_search_with_those_there_are(begin, ledger):
    with pytest.raises(InputError, match="none has search.metric=eval/ap50. There are: eval/loss/total"):
        begin("random", f"seed={searches.IS_WITHOUT}", f"{WEIGHT}=interval(1.5,5)", "search.num_trials=9")
    assert (
        begin("random", f"seed={searches.IS_WITHOUT}", f"{WEIGHT}=interval(1.5,5)", "search.metric=eval/loss/total")
        == 0
    )
    assert num_attempts(ledger) == [1, 1, 1]


def test_a_second_controller_is_refused_while_the_first_is_there(begin, ledger):
    assert begin("random", f"{WEIGHT}=2,4", "search.num_trials=1") == 0
    ledger.search.claim().begin(jobs.this_process())
    for again in (lambda: begin("random", f"{WEIGHT}=2,4"), lambda: search.resume(ledger)):
        with pytest.raises(InputError, match="The search of s is running already, as local/"):
            again()


def test_another_space_is_refused_and_what_has_changed_is_named(begin, ledger):
    assert begin("random", f"{WEIGHT}=interval(1.5,5)", "seed=1,2", "threads=1", "search.num_trials=1") == 0
    with pytest.raises(InputError) as refusal:
        begin("random", f"{WEIGHT}=interval(1.5,6)", "head=detr,none", "threads=2")
    says = str(refusal.value)
    for problem in (
        "seed was searched over 1,2 and is not now",
        f"{WEIGHT} was searched over interval(1.5,5) and is over interval(1.5,6) now",
        "head=detr,none was not searched before",
        "threads=1 was given before and is not now",
    ):
        assert problem in says
    assert len(drawn(ledger)) == 1


def test_a_search_that_is_asked_to_end_says_so_and_goes_on_with_the_same_command(
    begin, ledger, own_process, monkeypatch
):
    monkeypatch.setattr(searches.Formula, "control", Local.control)

    def ask():
        wait_for(lambda: ledger.folder.exists() and states(ledger)["running"])
        os.kill(os.getpid(), signal.SIGUSR2)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(SweepPreempted) as ended:
            begin("random", f"{WEIGHT}=0.5,0.6", "search.num_trials=1")
    finally:
        asking.join()
        preemption._received.clear()
    assert command_line.exit_code(ended.value) == os.EX_TEMPFAIL
    assert ledger.search.state(jobs.seen()).name == "preempted"
    assert states(ledger) == {"running": 1}
    jobs.cancel([entry.newest().job for entry, _ in recorded(ledger)])


@pytest.mark.parametrize(
    ("signals", "error", "state"), [([], NotChecked, "failed"), (["SIGTERM"], SweepPreempted, "preempted")]
)
def test_a_check_that_is_cut_short_is_held_against_no_trial(begin, ledger, monkeypatch, signals, error, state):
    def killed(command, **options):
        monkeypatch.setattr(preemption, "_received", signals)
        return subprocess.CompletedProcess(command, -signal.SIGTERM)

    monkeypatch.setattr(preflight, "subprocess", SimpleNamespace(run=killed, PIPE=subprocess.PIPE))
    with pytest.raises(error):
        begin("random", "head=none,detr")
    assert states(ledger) == {"done": 1}
    assert ledger.search.state(jobs.seen()).name == state


def test_a_trial_that_slurm_did_not_answer_for_is_started_again(begin, ledger, monkeypatch):
    original, calls = searches.Formula.start, []

    def start(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise jobs.NoAnswer("scontrol show config gave no answer")
        return original(self, *arguments)

    monkeypatch.setattr(searches.Formula, "start", start)
    assert begin("random", f"{WEIGHT}=2,4") == 0
    assert num_attempts(ledger) == [1, 1]
    assert states(ledger) == {"done": 2}


def test_cancel_ends_the_controller_and_its_trials_and_resume_goes_on(start_process, ledger):
    process = start_process({WEIGHT: 0.5}, "random", f"{WEIGHT}=0.5,0.6", "launchers.num_parallel=2")
    wait_for(lambda: states(ledger)["running"] == 2)
    assert main(["cancel", "s"]) == 0
    assert process.wait(10) == -signal.SIGTERM
    assert states(ledger) == {"cancelled": 2}
    assert ledger.search.state(jobs.seen()).name == "cancelled"


def test_real_runs_go_on_without_their_controller_and_a_poor_one_is_pruned(own, ledger, own_process):
    (own / "experiment").mkdir()
    (own / "experiment/good.yaml").write_text("# @package _global_\nsteps: 2\n")
    (own / "experiment/poor.yaml").write_text("# @package _global_\nsteps: 1000\nloss: {weights: {l1: 1000}}\n")
    settings = ("search.num_trials=2", "search.seed=2", "search.poll_seconds=0.2", "search.pruner.n_startup_trials=1")
    small = ("data.num_train=8", "data.num_validation=2", "sampler.num_samples=2", "threads=1", "tracker=jsonl")
    small = (
        *small,
        "head.num_queries=20",
        "head.d_model=64",
        "eval_every=1",
        "save_every=null",
        "schedule.num_warmup_steps=1",
    )
    given = ("hydra/launcher=local", "sweep=s", "search=random", "search.metric=eval/loss/total", *settings, *small)
    command = [sys.executable, "-m", "bbu_train", "-m", "--config-dir", str(own), *given, "experiment=good,poor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(lambda: process.poll() is not None or (ledger.folder.exists() and states(ledger)["running"]))
        process.kill()
        says = process.communicate()[0]
    assert "2 trials, if each were like the first and none pruned" in says
    assert main(["resume", "s"]) == 0
    assert drawn(ledger) == [{"experiment": "good"}, {"experiment": "poor"}]
    assert num_attempts(ledger) == [1, 1]
    assert states(ledger) == {"done": 1, "pruned": 1}
    (apart,) = comparison.compare(own.parent / "outputs", "s", "eval/loss/total", "min", "last").excluded.rows
    assert apart[0] == recorded(ledger)[1][0].run
    assert apart[1].startswith("pruned: eval/loss/total was")


def test_a_trial_is_the_run_that_its_overrides_compose_alone(arguments, config):
    command = search_command.read(arguments("random", "head=none,detr", f"{WEIGHT}=interval(1,5)"), ROOT / "conf")
    cell = command.cell({"head": "none", WEIGHT: 2.5})
    alone = config("head=none", f"{WEIGHT}=2.5", "steps=4", "eval_every=1", "tracker=jsonl")
    assert cell.cfg.about.identity == search_command.identity.run_identity(alone)
    assert cell.cfg.about.title == "head=none giou=2.5"
    assert not any("search" in text for text in cell.overrides)


def test_no_torch_is_imported_to_search_and_no_optuna_to_do_anything_else():
    program = "import sys, launchers.launch, launchers.__main__; assert not {'optuna', 'torch'} & set(sys.modules); "
    program += "import launchers.search.controller; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
