"""What a person sees first in MLflow: the page of an experiment's runs, columns, order and colours."""

import colorsys
import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlflow

KIND = "mlflow.experimentKind", "custom_model_development"
"""Without this tag MLflow shows the experiment as a language-model application, with judges and prompts."""
TRAINING = "workflowType=machine_learning"  # in an address: the view for training runs
VIEW_NAME = "bbu_train"
VIEW = f"mlflow.sharedViewState.{VIEW_NAME}"
"""The experiment's tag with the state of a page, which an address asks for by name (`viewStateShareKey`)."""
NUM_COLORS = "mlflow.bbu_train.num_colors"  # the experiment's tag: how many colours its runs have taken
COLOR = "mlflow.runColor"
MAX_PARAMETER_COLUMNS = 20


def runs_page(address: str, experiment_id: str) -> str:
    """Return the address of the experiment's runs, in the view for training runs, which is not MLflow's default.

    `address` is that of the server, or empty for a link within MLflow's pages.
    """
    return f"{address}#/experiments/{experiment_id}/runs?{TRAINING}&viewStateShareKey={VIEW_NAME}"


def artifact_page(experiment_id: str, run_id: str, path: str) -> str:
    """Return the link, within MLflow's pages, that shows an artifact of a run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}?{TRAINING}"


def prepare_view(
    client: "mlflow.MlflowClient", experiment_id: str, metrics: Sequence[str], parameters: Collection[str]
) -> None:
    """Show these columns on the experiment's page: the metrics, and what its runs have set, in the order of their runs.

    The runs are sorted by the first metric, highest first. Sorting by a metric also lists the cells of a sweep: in
    MLflow's own order they are hidden below their parent. The caller holds the lock of the store.
    """
    tags = client.get_experiment(experiment_id).tags
    shown = json.loads(tags.get(VIEW, "{}")).get("selectedColumns", [])
    columns = [_column("metrics", name) for name in metrics]
    known = [name for name in shown if name.startswith("params.")]
    known += [name for name in (_column("params", each) for each in parameters) if name not in known]
    view = {"selectedColumns": columns + known[:MAX_PARAMETER_COLUMNS]}
    if metrics:
        view |= {"orderByKey": columns[0], "orderByAsc": False}
    wanted = dict([KIND]) | {VIEW: json.dumps(view, ensure_ascii=False)}
    for name, value in wanted.items():
        if name not in tags or (name == VIEW and tags[name] != value):
            client.set_experiment_tag(experiment_id, name, value)


def take_color(client: "mlflow.MlflowClient", experiment_id: str) -> str:
    """Return a colour that no other run of the experiment has: hues at golden angles, the farthest apart.

    The caller holds the lock of the store. A server has none: runs that start in the same instant may share one.
    """
    number = int(client.get_experiment(experiment_id).tags.get(NUM_COLORS, 0))
    client.set_experiment_tag(experiment_id, NUM_COLORS, number + 1)
    lightness = (0.45, 0.6, 0.35)[number % 3]
    red, green, blue = (
        round(255 * part) for part in colorsys.hls_to_rgb(0.58 + number * 0.618033988749895, lightness, 0.65)
    )
    return f"#{red:02x}{green:02x}{blue:02x}"


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
