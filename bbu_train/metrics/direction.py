"""Whether a metric of metrics.jsonl is better when it is lower or higher."""


def usual_mode(metric: str) -> str:
    """Return the better direction, "min" or "max", of a metric whose direction the config leaves open."""
    parts = metric.split("/")
    is_cost = bool({"loss", "grad_norm", "memory", "unknown_class_boxes"} & set(parts)) or parts[-1].endswith("seconds")
    return "min" if is_cost else "max"
