"""Names of sweeps and runs, and keys whose values are text: names and paths. No torch is needed here."""

import hashlib
import re
from typing import Any
from unicodedata import normalize

from hydra.core.override_parser.types import Quote, QuotedString

from bbu_train.errors import InputError
from bbu_train.runs.config_keys import parse

MAX_BYTES = 100  # of a name on disk: paths of files below it, and of jobs, have limits of their own
HASH_DIGITS = 8
TEXT_KEYS = re.compile(
    r"run|sweep|resume|outputs|experiment|metric|split|images|out|to|model\.checkpoint|checkpoint\.best_metric|search\.metric"
    r"|data\.(\w+\.)*(root|train|validation)|cluster|cluster\.(partition|account|qos)|tracker\.mlflow\.(uri|artifacts|experiment)"
)
"""Keys of all programs whose values are names or paths: `0105`, `2026_01`, `no`, `1e3`, `12:30` and `a #1` are text."""

HYDRA_SYNTAX = re.compile(
    r"[\[{'\"]|(choice|range|interval|glob|shuffle|sort|tag|str|json_str|extend_list)\(|.*\$\{", re.DOTALL
)


def folder_name(name: str) -> str:
    """Return the name of the folder of a run or a sweep: in NFC, and at most 100 bytes, the last 8 digits a hash.

    Disks and programs differ in how they write `é`, and no file system takes a name above 255 bytes.
    """
    name = normalize("NFC", name)
    data = name.encode()
    if len(data) <= MAX_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
    return f"{data[: MAX_BYTES - HASH_DIGITS - 1].decode(errors='ignore')}-{digest}"


def check_name(key: str, value: Any) -> str:
    """Return the name of a run or a sweep in NFC, or raise InputError if it cannot be that of a folder."""
    name = normalize("NFC", str(value))
    is_folder_name = name.isprintable() and re.fullmatch(r"[^./\\\s][^/\\]*", name)
    if not isinstance(value, str):
        raise InputError(f"{key}={value}: expected a name, which is text. Write it in quotes.")
    if not is_folder_name:
        raise InputError(
            f"{key}={value!r}: {key} becomes a folder's name: no path, no control character, no leading dot or blank."
        )
    return name


def is_text(key: str) -> bool:
    """Whether the values of a key are names or paths."""
    return TEXT_KEYS.fullmatch(key) is not None


def typed_text(value: str) -> str | None:
    """Return the text that a typed value of such a key means: quotes are taken off, and null means no value."""
    if value == "null":
        return None
    if value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1:
        try:
            return str(parse([f"key={value}"])[0].value())
        except InputError:
            return value
    return value


def quote_typed(word: str) -> str:
    """Return a word of a command so that Hydra reads the values of names and paths as they were typed.

    A comma still separates the values of a sweep. Quoted values, lists, references and sweep functions are Hydra's own.
    """
    key, equals, value = word.partition("=")
    is_hydras = HYDRA_SYNTAX.match(value) or ("," in value and re.search("['\"]", value))
    if not equals or not value or is_hydras or not is_text(key.lstrip("+")):
        return word
    return f"{key}={','.join(text if text == 'null' else hydra_text(text) for text in value.split(','))}"


def hydra_text(text: str) -> str:
    """Write a text in the grammar of Hydra's overrides: in quotes, unless it is read as it stands."""
    try:
        (override,) = parse([f"key={text}"])
        is_plain = not override.is_sweep_override() and override.value() == text
    except InputError:
        is_plain = False
    return text if is_plain else QuotedString(text, Quote.double).with_quotes()
