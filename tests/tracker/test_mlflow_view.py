"""What a person sees first in MLflow: parameters that can be searched, columns, colours of runs."""

import json

from tracked_runs import CONFIG, begin

from bbu_train.tracker.mlflow_store import find_or_create_experiment
from bbu_train.tracker.mlflow_view import COLOR, VIEW, take_color


def found(tracked, text):
    """Return the names of the runs that MLflow's own search finds."""
    client = tracked.mlflow.uploader.client
    runs = client.search_runs([tracked.mlflow.uploader.experiment_id], text)
    return {run.info.run_name for run in runs}


def test_mlflows_search_finds_runs_by_any_value_of_the_config_and_by_choice(outputs):
    for run, weight in {"a": 2.0, "b": 5}.items():
        folder = outputs / "sweep" / run
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text(json.dumps({"choices": {"head": "dino" if run == "a" else "detr"}}))
        tracked = begin(outputs, run=run, config=CONFIG | {"loss": {"weights": {"giou": weight}}, "lr": 1e-6})
        tracked.mlflow.close("done")
    assert found(tracked, "params.`loss.weights.giou` = '2'") == {"a"}
    assert found(tracked, "params.head = 'detr' and params.lr = '1e-06' and params.seed = '17'") == {"b"}


def test_a_value_that_changes_on_resume_stops_nothing_and_the_first_one_stays(outputs):
    begin(outputs, config=CONFIG | {"log_every": 1}).mlflow.close("preempted")
    resumed = begin(outputs, step=1, config=CONFIG | {"log_every": 5, "new": True})
    resumed.log(2)
    resumed.mlflow.close("done")
    run = resumed.stored()
    assert (run.info.status, run.data.metrics["loss/total"]) == ("FINISHED", 1 / 3)
    assert (run.data.params["log_every"], run.data.params["new"]) == ("1", "true")


def test_the_columns_are_the_chosen_metrics_and_what_the_commands_set(outputs):
    begin(outputs, run="a", overrides=["loss.weights.giou=2", "seed=1"]).mlflow.close("done")
    tracked = begin(outputs, run="b", overrides=["seed=2", "+optimizer.groups.x.lr=1"])
    tracked.mlflow.close("done")
    experiment = tracked.mlflow.uploader.client.get_experiment(tracked.mlflow.uploader.experiment_id)
    view = json.loads(experiment.tags[VIEW])
    metrics = ["metrics.`eval/ap50`", "metrics.`loss/total`"]
    parameters = ["params.`loss.weights.giou`", "params.`seed`", "params.`optimizer.groups.x.lr`"]
    assert view["selectedColumns"] == metrics + parameters
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`eval/ap50`", False)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_runs_have_colours_of_their_own_and_keep_them_when_they_resume(outputs):
    colors = {}
    for run in "abcd":
        tracked = begin(outputs, run=run)
        colors[run] = tracked.stored().data.tags[COLOR]
        tracked.mlflow.close("preempted")
    assert len(set(colors.values())) == 4
    assert begin(outputs, run="b", step=1).stored().data.tags[COLOR] == colors["b"]
    client = tracked.mlflow.uploader.client
    other = find_or_create_experiment(client, "other", None)
    assert len({take_color(client, other) for _ in range(50)}) == 50
