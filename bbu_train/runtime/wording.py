"""Numbers and long texts in messages."""


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return "1 picture", "3 pictures" or "12,000 pictures"; `plural` is for nouns that do not end in "s" then."""
    return f"1 {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def rounded(number: float) -> str:
    """Return a positive number with two decimals, or with two digits if it is small: "2.50", "0.038"."""
    return f"{number:,.2f}" if number >= 0.1 or number == 0 else f"{number:.2g}"


def cut(text: str, num_characters: int) -> str:
    """Return `text`, or its beginning and "..." if it is longer than `num_characters`."""
    return text if len(text) <= num_characters else f"{text[: num_characters - 3]}..."


def duration(seconds: float) -> str:
    """Return a length of time with its two largest units, such as "45 s", "2 min 10 s" or "1 d 3 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    largest, *next_smaller = parts[:2]
    return " ".join(f"{number} {unit}" for number, unit in [largest, *[part for part in next_smaller if part[0]]])
