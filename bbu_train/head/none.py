"""The choice of no head."""


def build(width: int) -> None:
    """Return None for any backbone width: the language model stays alone."""
