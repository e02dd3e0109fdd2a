"""How a run says how it goes: a bar on a terminal, else a line every few seconds; and where its time went."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count

from tqdm import tqdm

from bbu_train.runtime.wording import count_of, duration, rounded

log = logging.getLogger(__name__)
NUM_RECENT_STEPS = 50  # that tokens/s and the time left are means over
LOSSES = {"loss/teacher_lm": "teacher", "loss/student_lm": "student", "loss/bbox_l1": "l1", "loss/bbox_giou": "giou"}
LOSSES |= {"loss/objectness": "objectness", "loss/caption": "caption"}
"""The losses that a line names. Auxiliary ones show in the total only."""
SCORES = {"eval/loss/total": "loss", "eval/ap": "AP", "eval/ap50": "AP50", "eval/f1": "F1"}
CLASSLESS_SCORES = {"eval/loss/total": "loss", "eval/agnostic_ap50": "AP50 without classes"}


class ProgressDisplay:
    """Shows the progress on rank 0; on the other ranks `is_main` is False, and nothing is shown.

    With `has_bar` a bar is on the terminal, and the lines go to train.log alone. `clock` gives seconds and never goes
    back; `started` is its time when the run began.
    """

    def __init__(
        self,
        num_steps: int,
        step: int,
        line_seconds: float,
        started: float,
        is_main: bool,
        has_bar: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_steps = num_steps
        self.line_seconds = line_seconds
        self.is_main = is_main
        self.clock = clock
        self.bar = tqdm(total=num_steps, initial=step, unit="step", disable=not (is_main and has_bar))
        self._level = logging.DEBUG if has_bar else logging.INFO
        self._began = clock()
        self._seconds = {"start": self._began - started, "evaluation": 0.0, "saving": 0.0}
        self._num_tokens = 0
        self._recent: deque[tuple[int, float, int]] = deque(maxlen=NUM_RECENT_STEPS + 1)
        self._row: Mapping[str, float] = {}
        self._row_step = 0
        self._last_line: float | None = None

    @contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Count what is done inside as "evaluation" or "saving", which is left out of tokens/s and of the time left."""
        began = self.clock()
        try:
            yield
        finally:
            self._seconds[part] += self.clock() - began

    def step_done(self, step: int, epoch: float, num_tokens: int, row: Mapping[str, float] | None) -> None:
        """Show that `step` is done. `num_tokens` are those of the step, `row` its metrics if they were computed."""
        if not self.is_main:
            return
        self._num_tokens += num_tokens
        self._recent.append((step, self._training_seconds(), self._num_tokens))
        if row:
            self._row, self._row_step = row, step
            self.bar.set_postfix_str(_losses(row), refresh=False)
        self.bar.set_description_str(f"epoch {rounded(epoch)}", refresh=False)
        self.bar.update()
        self._say(lambda: self._line(step, epoch), is_due=step == self.num_steps)

    def while_evaluating(self, step: int, before_batch: Callable[[], None]) -> Callable[[], None]:
        """Wrap `before_batch` so that it also shows how far the evaluation is: it may take as long as many steps."""

        num_batches = count()

        def show_and_call() -> None:
            done = next(num_batches)
            if self.is_main:
                self._last_line = self._began if self._last_line is None else self._last_line
                self._say(lambda: f"step {step:,}: evaluating, {count_of(done, 'batch', 'batches')} done", is_due=False)
            before_batch()

        return show_and_call

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the few metrics that matter, also above a bar."""
        if self.is_main:
            log.info("step %s: validation %s", f"{step:,}", _scores(metrics))

    def time_spent(self) -> str:
        """Say in one line where the time of the run went."""
        parts = {"start": self._seconds["start"], "training": self._training_seconds()} | self._seconds
        return ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())

    def close(self) -> None:
        self.bar.close()

    def _training_seconds(self) -> float:
        return self.clock() - self._began - self._seconds["evaluation"] - self._seconds["saving"]

    def _say(self, text: Callable[[], str], is_due: bool) -> None:
        now = self.clock()
        if is_due or self._last_line is None or now - self._last_line >= self.line_seconds:
            self._last_line = now
            log.log(self._level, "%s", text())

    def _line(self, step: int, epoch: float) -> str:
        (first_step, first_time, first_tokens), (_, now, num_tokens) = self._recent[0], self._recent[-1]
        logged = "" if step == self._row_step else f" at step {self._row_step:,}"
        parts = [f"loss {self._row['loss/total']:.4g}{logged} ({_losses(self._row)})"] if self._row else []
        rates = sorted({value for name, value in self._row.items() if name.startswith("lr/")})
        if rates and not logged:
            parts.append(f"lr {' to '.join(f'{rate:.2g}' for rate in (rates[0], *rates[1:][-1:]))}")
        if step > first_step and now > first_time:  # the first step is not among them: it may compile and allocate
            seconds = now - first_time
            parts.append(f"{(num_tokens - first_tokens) / seconds:,.0f} tokens/s")
            if step < self.num_steps:
                left = seconds / (step - first_step) * (self.num_steps - step)
                parts.append(f"{duration(left)} of training left")
        text = f"step {step:,} of {self.num_steps:,}, epoch {rounded(epoch)}"
        return f"{text}: {', '.join(parts)}" if parts else text


def _losses(row: Mapping[str, float]) -> str:
    return " ".join(f"{label} {row[name]:.3g}" for name, label in LOSSES.items() if name in row)


def _scores(metrics: Mapping[str, float]) -> str:
    labels = SCORES if "eval/ap50" in metrics else CLASSLESS_SCORES
    return ", ".join(f"{label} {metrics[name]:.4g}" for name, label in labels.items() if name in metrics)
