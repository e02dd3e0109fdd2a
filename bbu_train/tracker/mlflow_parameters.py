"""The parameters of a run in MLflow: the choice of every config group, and every value of the resolved config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bbu_train.runtime.nested import leaves

RECORD_KEYS = ("about", "tracker")
"""Keys of the config that say how the run is recorded, not what it does; they have no parameters."""


def parameters_of(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return the parameters by name: `head` is the choice of that group, `loss.weights.giou` a value.

    2.0 is written as 2, as both are the same value, so that a search finds it whichever way it was typed. `config` is
    resolved; the choices are in the environment.json of the run's `folder`.
    """
    environment = folder / "environment.json"
    choices = json.loads(environment.read_text(encoding="utf-8")).get("choices", {}) if environment.exists() else {}
    values = {key: value for key, value in leaves(config) if key.split(".")[0] not in RECORD_KEYS}
    recorded = {key: choice for key, choice in choices.items() if key not in RECORD_KEYS}
    return {key: _text(value) for key, value in (values | recorded).items()}


def _text(value: Any) -> str:
    """Write a value as an override of the command line would."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
