"""The character encoding of a text file, as its byte order mark or its XML declaration says."""

import codecs
import re

# Byte order marks, and what XML begins with if it has none. UTF-32 before UTF-16: its mark begins with the other's.
FIRST_BYTES = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""")

# Files that declare the first are often in the second, which contains it. Browsers do nearly the same (WHATWG).
CONTAINED_IN = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "cp950",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "ascii": "utf-8",
}


def codec_of(data: bytes) -> str:
    """Return the name of Python's codec for a text file. Without a mark and a declaration it is UTF-8.

    Raises LookupError for a declared encoding that Python does not know.
    """
    for first, codec in FIRST_BYTES.items():
        if data.startswith(first):
            return codec
    declared = DECLARATION.match(data)
    codec = codecs.lookup(declared[1].decode("ascii")).name if declared else "utf-8"
    if codec.startswith(("utf-16", "utf-32")):  # false: the declaration itself could be read as ASCII
        return "utf-8"
    return CONTAINED_IN.get(codec, codec)
