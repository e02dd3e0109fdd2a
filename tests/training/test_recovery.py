"""A whole run that runs out of memory at each place where a step allocates, and what it keeps of that."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from whole_runs import assert_equal_runs, run_here

from bbu_train.engine.ddp import DdpEngine
from bbu_train.errors import InputError
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.training.learnt_layout import FILE, Adjustment, Device, LearntLayout
from bbu_train.training.recovery import Recovery
from bbu_train.training.step_batches import StepBatches

STEPS = 3
SMALL = [f"steps={STEPS}", "sampler.num_samples=4", "head=none", "loss=language", "eval_every=null", "average=ema"]
TINY = [*SMALL, "sampler.num_samples=2", "data.num_train=4"]
ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr("bbu_train.reporting.final_report.write_plots", lambda *arguments: [])


class Memory:
    """A device that runs out of memory at `sites[step]`, one after the other."""

    def __init__(self, monkeypatch, sites):
        self.sites = sites
        self.engine = None
        forward, backward, prepare = DdpEngine.__call__, DdpEngine.backward, MixedAdamW._prepare

        def call(engine, batch):
            self.engine = engine
            losses = forward(engine, batch)
            self.check("forward")
            return losses

        def go_back(engine, objective):
            backward(engine, objective)  # so that there are gradients to discard
            self.check("backward")

        def allocate(optimizer):
            writes = prepare(optimizer)
            self.check("optimizer")
            return writes

        monkeypatch.setattr(DdpEngine, "__call__", call)
        monkeypatch.setattr(DdpEngine, "backward", go_back)
        monkeypatch.setattr(MixedAdamW, "_prepare", allocate)

    def check(self, site):
        remaining = self.sites.get(self.engine.optimizer.num_updates)
        if remaining and remaining[0] == site:
            del remaining[0]
            raise ERROR


def state(recovery, average):
    """Everything that a step moves."""
    optimizer = recovery.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [value for parameter in parameters for value in optimizer.state[parameter].values()]
    tensors = [*(p.detach() for p in parameters), *moments, *average.averages.values(), torch.get_rng_state()]
    return [tensor.clone() for tensor in tensors]


@pytest.fixture
def attempts_leave_nothing(monkeypatch):
    """Compare everything before and after each attempt that failed. Returns the list of their first lines."""
    from bbu_train.average.ema import ExponentialMovingAverage

    averages, failures = [], []
    make, attempt = ExponentialMovingAverage.__init__, Recovery._attempt

    def keep(average, *arguments, **settings):
        make(average, *arguments, **settings)
        averages.append(average)

    def compare(recovery, function):
        before = state(recovery, averages[-1])
        result = attempt(recovery, function)
        if hasattr(result, "message"):
            failures.append(result.message)
            assert all(map(torch.equal, state(recovery, averages[-1]), before))
        return result

    monkeypatch.setattr(ExponentialMovingAverage, "__init__", keep)
    monkeypatch.setattr(Recovery, "_attempt", compare)
    return failures


@pytest.fixture
def in_more_parts(outputs, monkeypatch):
    """The folder of a run that has 1, 2 and 4 micro-batches in its three steps, because its loader says so."""
    give, numbers = StepBatches.__next__, []

    def give_more(batches):
        step = len(numbers)
        batches.start(step, 2**step)
        names, micro_batches = give(batches)
        numbers.append(len(micro_batches))
        return names, micro_batches

    with monkeypatch.context() as patch:
        patch.setattr(StepBatches, "__next__", give_more)
        folder = run_here(outputs, "in-more-parts", *SMALL)
    assert numbers == [1, 2, 4]
    return folder


def test_a_run_that_runs_out_of_memory_goes_on_in_more_micro_batches(
    outputs, in_more_parts, attempts_leave_nothing, monkeypatch, capsys
):
    """A step is made once more as it is, then in twice as many, bit for bit as if that had been known before."""
    memory = Memory(monkeypatch, {1: ["forward", "backward"], 2: ["optimizer", "optimizer"]})
    folder = run_here(outputs, "out-of-memory", *SMALL, "num_workers=1")
    assert memory.sites == {1: [], 2: []}
    assert attempts_leave_nothing == [str(ERROR)] * 4
    assert_equal_runs(folder, in_more_parts, step=STEPS)
    warnings = [line for line in (folder / "train.log").read_text().splitlines() if " WARNING " in line]
    steps = [line for line in warnings if "ran out of memory" in line]
    assert [f"Step {step} ran out of memory" in line for step, line in enumerate(steps, start=2)] == [True] * 2
    assert "From now on a step has 4 of them instead of 2" in steps[-1]
    told = "memory  the device ran out of memory; from step 3 on, 4 micro-batches a step instead of 1"
    assert told in capsys.readouterr().out
    assert json.loads((folder / FILE).read_text())["num_parts"] == {"asked": 1, "taken": 4, "step": 2}


def test_a_sample_that_does_not_fit_alone_ends_the_run_with_its_name_and_its_size(outputs, monkeypatch):
    Memory(monkeypatch, {0: ["backward"] * 3})
    size = r"The sample \S+ alone needs .* tokens, .* patches .* objects.*max_pixels"
    with pytest.raises(InputError, match=size) as error:
        run_here(outputs, "too-large", *TINY)
    assert error.value.__context__ is None
    assert json.loads((outputs / "smoke/too-large" / FILE).read_text())["num_parts"]["taken"] == 2


def test_an_error_after_the_first_write_of_an_update_is_raised(tmp_path):
    optimizer = SimpleNamespace(num_updates=0)
    engine = SimpleNamespace(device=torch.device("cpu"), num_micro_batches=1)
    recovery = Recovery(SimpleNamespace(evaluation_steps=[]), engine, None, optimizer, 0, tmp_path)

    def fail(num_updates):
        optimizer.num_updates += num_updates
        raise ERROR

    assert recovery._attempt(partial(fail, 0)).message == str(ERROR)
    with pytest.raises(torch.OutOfMemoryError):
        recovery._attempt(partial(fail, 1))


def test_what_was_learnt_holds_on_a_device_with_at_most_as_much_memory_and_for_other_numbers_of_ranks(tmp_path):
    layout = LearntLayout(num_parts=Adjustment(asked=1, taken=4, step=10))
    layout.write(tmp_path, Device("cuda", "A", 80))
    assert (
        LearntLayout.read(tmp_path, Device("cuda", "A", 80))
        == LearntLayout.read(tmp_path, Device("cuda", "B", 48))
        == layout
    )
    assert LearntLayout.read(tmp_path, Device("cuda", "A", 81)) == LearntLayout()
    assert LearntLayout.read(tmp_path, Device("cpu", "CPU", 64)) == LearntLayout()
    assert LearntLayout.read(Path("nowhere"), Device("cuda", "A", 80)) == LearntLayout()
    assert [layout.num_micro_batches(asked) for asked in (1, 4, 6)] == [4, 4, 6]


@pytest.mark.parametrize("content", ["", "{}", "null", '{"device": {"kind": "cpu"}}', '{"num_parts": 3}'])
def test_a_damaged_file_of_what_was_learnt_is_named(tmp_path, content):
    (tmp_path / "learnt_layout.json").write_text(content)
    with pytest.raises(InputError, match=r"learnt_layout.json is damaged .* delete it"):
        LearntLayout.read(tmp_path, Device("cuda", "A", 80))
