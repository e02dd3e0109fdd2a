"""File names as text: any bytes are printable, and a name of any length fits into a file system."""

import hashlib
import re

MAX_BYTES = 96  # of a name that is made from another, so that it has 100 with an ending
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\udc80-\udcff]")  # control characters, and bytes that are no UTF-8
HASH_LENGTH = 8  # hexadecimal digits


def printable(text: str) -> str:
    r"""Return `text` on one line that can be printed and encoded: bytes that are no UTF-8 and controls become "\xNN".

    Python represents such bytes as lone surrogates (PEP 383), which no encoding accepts.
    """
    escaped = UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", text)
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def short_name(text: str) -> str:
    """Return `text` as a file name of at most `MAX_BYTES` bytes of UTF-8. A longer one ends in a hash of the whole."""
    name = printable(text)
    encoded = name.encode()
    if len(encoded) <= MAX_BYTES:
        return name
    digest = hashlib.blake2b(encoded).hexdigest()[:HASH_LENGTH]
    return f"{encoded[: MAX_BYTES - HASH_LENGTH - 1].decode(errors='ignore')}-{digest}"
