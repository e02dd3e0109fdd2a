"""What the name of a metric in metrics.jsonl says of it."""


def usual_mode(metric: str) -> str:
    """Which is better, "min" or "max", where nobody says."""
    parts = metric.split("/")
    is_cost = bool({"loss", "grad_norm", "memory"} & set(parts)) or parts[-1].endswith("seconds")
    return "min" if is_cost else "max"
