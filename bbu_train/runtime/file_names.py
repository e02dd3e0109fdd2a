"""File names as text: any bytes are printable, and a name of any length fits into a file system."""

import hashlib
import re

MAX_BYTES = 96  # of a name that is made from another, so that it has 100 with an ending
UNDECODED_BYTE = re.compile("[\udc80-\udcff]")
HASH_LENGTH = 8  # hexadecimal digits


def printable(text: str) -> str:
    r"""Return `text` with each byte of a file name that is no UTF-8 as "\xNN": it can be written, printed and encoded.

    Python stands for such bytes by lone surrogates (PEP 383), which no encoding accepts.
    """
    escaped = UNDECODED_BYTE.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def short_name(text: str, max_bytes: int = MAX_BYTES) -> str:
    """Return `text` as a file name of at most `max_bytes` bytes of UTF-8. A longer one ends in a hash of the whole."""
    name = printable(text)
    encoded = name.encode()
    if len(encoded) <= max_bytes:
        return name
    digest = hashlib.blake2b(encoded).hexdigest()[:HASH_LENGTH]
    return f"{encoded[: max_bytes - HASH_LENGTH - 1].decode(errors='ignore')}-{digest}"
