"""What the sweep's ledger, outputs/<sweep>/ledger/<run>/<attempt>/*.json, says of runs that have not ended.

A sweep that was started without a launcher has none.
"""

import json
from pathlib import Path

FOLDER = "ledger"


def names(sweep: Path) -> list[str]:
    """The runs that the ledger knows."""
    return sorted(path.parent.name for path in sweep.glob(f"{FOLDER}/*/cell.json"))


def last_word(sweep: Path, run: str) -> str | None:
    """State and reason of the newest attempt, as its job wrote them; None where there is nothing to read.

    Whether the job is still there only the scheduler knows: `python -m launchers status` asks it.
    """
    attempts = sorted(path for path in (sweep / FOLDER / run).glob("*") if path.name.isdigit())
    if not attempts:
        return "never submitted" if (sweep / FOLDER / run).exists() else None
    state, cancelled = (_read(attempts[-1] / f"{name}.json") for name in ("state", "cancelled"))
    if state.get("state") in ("done", "failed"):  # before it could be cancelled
        cancelled = {}
    name = cancelled.get("state", "cancelled") if cancelled else state.get("state", "queued")
    reason = " ".join(str((cancelled or state).get("reason", "")).split())[:300]
    return f"{name}: {reason}" if reason else str(name)


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return {"reason": f"{path.name} cannot be read"}
    return content if isinstance(content, dict) else {}
