"""No head."""


def build(width: int) -> None:
    """The language model alone, whatever its width."""
