"""What the sweep's ledger, outputs/<sweep>/ledger/<run>/<attempt>/*.json, knows of unfinished runs.

A sweep that was started without a launcher has no ledger.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = "ledger"


def run_names(sweep: Path) -> list[str]:
    """Return the names of the runs in the ledger, sorted."""
    return sorted(path.parent.name for path in sweep.glob(f"{FOLDER}/*/cell.json"))


def last_status(sweep: Path, run: str) -> str | None:
    """Return "state: reason" of the newest attempt, as its job wrote it; None if the ledger does not know the run.

    Only the scheduler knows whether the job still exists: `python -m launchers status` asks it.
    """
    attempts = sorted(path for path in (sweep / FOLDER / run).glob("*") if path.name.isdigit())
    if not attempts:
        return "never submitted" if (sweep / FOLDER / run).exists() else None
    state, cancelled = (_read_object(attempts[-1] / f"{name}.json") for name in ("state", "cancelled"))
    if state.get("state") in ("done", "failed"):  # the job ended before the cancellation reached it
        cancelled = {}
    name = cancelled.get("state", "cancelled") if cancelled else state.get("state", "queued")
    reason = " ".join(str((cancelled or state).get("reason", "")).split())[:300]
    return f"{name}: {reason}" if reason else str(name)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return {"reason": f"{path.name} cannot be read"}
    return content if isinstance(content, dict) else {}
