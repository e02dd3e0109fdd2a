"""The lines that say how a run goes. The clock is the test's own."""

import logging

import pytest

from bbu_train.training.progress_display import ProgressDisplay

ROW = {"loss/total": 3.25, "loss/student_lm": 1.5, "loss/aux_bbox_l1": 9.0, "lr/llm": 1e-6, "lr/vision": 2e-6}


class Run:
    """A run of 100 steps of 10 s and 200 tokens each, which began 5 s before its first step."""

    def __init__(self, **choices):
        self.now, self.step = 5.0, 0
        fixed = {"num_steps": 100, "step": 0, "line_seconds": 30, "started": 0.0, "is_main": True, "has_bar": False}
        self.display = ProgressDisplay(**fixed | choices, clock=lambda: self.now)

    def train(self, num_steps, row=ROW):
        for _ in range(num_steps):
            self.now += 10
            self.step += 1
            self.display.step_done(self.step, self.step / 20, 200, row)

    def evaluate(self, seconds, batch_seconds=10):
        with self.display.spending("evaluation"):
            before_batch = self.display.while_evaluating(self.step, lambda: None)
            for _ in range(seconds // batch_seconds):
                before_batch()
                self.now += batch_seconds
        self.display.evaluated(self.step, {"eval/loss/total": 2.0, "eval/ap50": 0.5, "eval/ap50/bbu": 0.25})


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.DEBUG, "bbu_train")
    return lambda level=logging.INFO: [record.getMessage() for record in caplog.records if record.levelno == level]


def test_a_line_comes_for_the_first_step_then_every_so_many_seconds_and_for_the_last_step(lines):
    Run().train(100)
    assert [int(line.split()[1]) for line in lines()] == [*range(1, 100, 3), 100]
    first, second, *_, last = lines()
    assert first == "step 1 of 100, epoch 0.05: loss 3.25 (student 1.5), lr 1e-06 to 2e-06"
    assert second == f"{first.replace('1 of', '4 of').replace('0.05', '0.20')}, 20 tokens/s, 16 min of training left"
    assert last.endswith(", 20 tokens/s")


def test_the_rate_and_the_time_left_leave_evaluations_out(lines):
    run = Run()
    run.train(5)
    run.evaluate(1000)
    run.train(5)
    assert lines()[-1].endswith("20 tokens/s, 15 min 10 s of training left")
    assert run.display.time_spent() == "start 5 s, training 1 min 40 s, evaluation 16 min 40 s, saving 0 s"


def test_an_evaluation_shows_that_it_goes_on_and_ends_with_few_metrics(lines):
    run = Run()
    run.evaluate(60)
    assert lines() == ["step 0: evaluating, 3 batches done", "step 0: validation loss 2, AP50 0.5"]


def test_beside_a_bar_the_lines_are_for_the_file_alone(lines, capsys):
    run = Run(has_bar=True)
    run.train(2)
    run.evaluate(10)
    run.display.close()
    assert lines() == ["step 2: validation loss 2, AP50 0.5"]
    assert len(lines(logging.DEBUG)) == 1
    shown = capsys.readouterr().err
    assert "epoch 0.10: " in shown
    assert "student 1.5" in shown


def test_other_ranks_say_nothing(lines):
    run = Run(is_main=False)
    run.train(3)
    run.evaluate(60)
    assert not lines() + lines(logging.DEBUG)


def test_a_step_without_a_row_shows_the_last_one(lines):
    run = Run()
    run.train(1)
    run.train(3, row=None)
    assert "loss 3.25" in lines()[-1]
