"""No early stopping: the run ends after its steps."""

from collections.abc import Mapping


class NoStopping:
    """The interface of `Patience` for a run that never ends early."""

    rule: str | None = None
    reason: str | None = None

    def update(self, metrics: Mapping[str, float]) -> None: ...

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None: ...
