"""Numbers and long texts in messages."""


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return "1 picture", "3 pictures" or "12,000 pictures"; `plural` is for nouns that do not end in "s" then."""
    return f"1 {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def cut(text: str, num_characters: int) -> str:
    """Return `text`, or its beginning and "..." if it is longer than `num_characters`."""
    return text if len(text) <= num_characters else f"{text[: num_characters - 3]}..."
