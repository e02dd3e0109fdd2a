"""Nested mappings, such as a composed config, as dotted keys with their values."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in a mapping. Lists and empty mappings count as values."""
    if isinstance(config, Mapping) and (config or not prefix):
        for name, value in config.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, config
