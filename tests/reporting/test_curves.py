import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from bbu_train.reporting import curves, loss_plot, rate_plot

WEIGHTS = {"student_lm": 1.0, "bbox_l1": 5.0, "dense_objectness": 2.0, "teacher_lm": 0.0}


@pytest.fixture
def plotted(tmp_path, monkeypatch):
    """A function from rows of metrics.jsonl to the axes of losses.png and of rates.png."""

    def plot(rows):
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        loss_plot.plot_losses(tmp_path / "metrics.jsonl", tmp_path / "losses.png", WEIGHTS)
        rate_plot.plot_rates(tmp_path / "metrics.jsonl", tmp_path / "rates.png")
        return [figure.axes for figure in figures]

    return plot


def row(step):
    losses = {"student_lm": 3.0 / step, "bbox_l1": 0.5, "dense_objectness": 8.0 / step}
    return {"step": step} | {f"loss/{name}": value for name, value in losses.items()}


def total(step):
    losses = {name.removeprefix("loss/"): value for name, value in row(step).items() if name != "step"}
    return {"loss/total": sum(WEIGHTS[name] * value for name, value in losses.items())}


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def lines(axes):
    return {line.get_label(): line.get_data() for line in axes.lines}


def test_the_first_panel_says_what_the_total_is_made_of_the_largest_part_first(plotted):
    rows = [row(step) | total(step) for step in (1, 2, 4)]
    losses, _ = plotted([*rows, {"step": 4, "eval/loss/total": 3.0, "eval/ap": 0.1}])
    assert labels(losses[0]) == [
        "7.25  loss/total",
        "4  55%  2 x loss/dense_objectness",
        "2.5  34%  5 x loss/bbox_l1",
        "0.75  10%  1 x loss/student_lm",
    ]
    whole, *parts = lines(losses[0]).values()
    np.testing.assert_allclose(sum(values for _, values in parts), whole[1])


def test_each_loss_has_axes_with_its_name_meaning_weight_and_evaluations(plotted):
    rows = [row(step) | total(step) for step in (1, 2)]
    losses, _ = plotted([*rows, {"step": 2, "eval/loss/total": 3.0, "eval/loss/new": 1.0}])
    titles = [axes.get_title("left") for axes in losses[1:]]
    assert titles == ["loss/total", "loss/student_lm", "loss/bbox_l1", "loss/dense_objectness", "loss/new"]
    notes = [text.get_text() for text in losses[4].texts]
    assert notes == ["image tokens: object or not, summed over a picture; weight 2"]
    assert losses[3].get_title("right") == "0.5 to 0.5"
    assert lines(losses[1])["evaluation"][1].tolist() == [3.0]


def test_a_long_run_shows_its_moving_average_and_a_short_one_every_step(plotted):
    many, _ = plotted([row(step) for step in range(1, 201)])
    [(steps, values)] = [line for label, line in lines(many[0]).items() if label.endswith("student_lm")]
    assert len(steps) == 196
    assert values[0] == pytest.approx(np.mean([3.0 / step for step in range(1, 6)]))
    assert steps[0] == 3
    few, _ = plotted([row(step) for step in (1, 2)])
    assert all(line.get_marker() == "o" for line in few[0].lines)


def test_values_that_are_not_finite_are_gaps_that_are_counted_and_spread_over_no_average(plotted):
    rows = [{"step": step, "loss/student_lm": "NaN" if step == 50 else 1.0} for step in range(1, 121)]
    losses, _ = plotted(rows)
    assert np.isfinite(lines(losses[0])["1  100%  1 x loss/student_lm"][1]).all()
    assert losses[1].get_title("right") == "1 to 1 (1 not finite)"
    nothing, rates = plotted([{"step": 3, "loss/student_lm": "NaN", "grad_norm/llm": "Infinity"}])
    assert labels(nothing[0]) == ["nan  -  1 x loss/student_lm"]
    assert "no value is finite" in [text.get_text() for text in nothing[0].texts]
    assert labels(rates[1]) == ["nan  nan  grad_norm/llm (1 not finite)"]


@pytest.mark.parametrize("rows", [[], [{"step": 0, "eval/loss/total": 3.0}]], ids=["no row", "only an evaluation"])
def test_a_run_without_a_step_says_so(plotted, rows):
    losses, rates = plotted(rows)
    for axes in (losses[0], *rates):
        assert [text.get_text() for text in axes.texts] == ["no step was logged"]


def test_groups_with_the_same_rates_share_a_line_and_rates_are_not_averaged(plotted):
    rows = [
        {"step": step, "lr/llm": step * 1e-6, "lr/vision": step * 1e-6, "lr/head": 1e-3, "grad_norm/total": 2.0}
        for step in range(1, 101)
    ]
    _, (rates, norms) = plotted(rows)
    assert labels(rates) == ["0.0001  0.0001  lr/llm, lr/vision", "0.001  0.001  lr/head"]
    assert lines(rates)[labels(rates)[0]][0].tolist() == list(range(1, 101))
    assert rates.get_yscale() == "log"
    assert norms.get_yscale() == "linear"


def test_twelve_curves_have_colors_and_more_have_dashes(plotted):
    _, (_, norms) = plotted([{"step": 1} | {f"grad_norm/group{i}": float(i) for i in range(14)}])
    styles = [(line.get_color(), line.get_linestyle()) for line in norms.lines]
    assert len(set(styles)) == 14
    assert len({color for color, _ in styles[:12]}) == 12


def test_a_legend_covers_no_line(plotted):
    losses, rates = plotted([row(step) | {"lr/llm": 0.1, "grad_norm/llm": 1.0} for step in (1, 2)])
    for axes in (losses[0], *rates):
        figure = axes.get_figure()
        figure.draw_without_rendering()
        box = axes.get_legend().get_window_extent()
        assert box.x0 >= axes.get_window_extent().x1
        assert box.x1 <= figure.bbox.x1


def test_the_last_finite_value_is_found():
    assert curves.as_series([(1, 2.0), (2, math.inf)]).last() == 2.0
    assert math.isnan(curves.as_series([]).last())
