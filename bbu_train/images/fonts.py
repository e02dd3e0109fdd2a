"""Fonts that can draw a text, Chinese included, without shipping a font file."""

import functools
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import ImageFont

CHINESE = "机柜设备"  # simplified Chinese: fonts that only cover Japanese or traditional Chinese lack some of these

CJK = "[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"

PREFERRED = ("notosanscjk", "notosanssc", "sourcehansans", "wqy-zenhei", "wqy", "pingfang", "msyh")
"""Beginnings of the file names of legible sans-serif fonts, the best first. Any other font with Chinese comes after."""

WARNING = (
    "No font with Chinese characters is installed: they are drawn as empty boxes. Install one: "
    "`apt-get install fonts-noto-cjk`, `dnf install google-noto-sans-cjk-fonts`, `apk add font-noto-cjk`, "
    "or copy NotoSansCJK-Regular.ttc from https://github.com/notofonts/noto-cjk into ~/.local/share/fonts."
)


def font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels that can draw `text`.

    Latin text always gets Pillow's own font, so it looks the same on every machine. Other text gets an installed
    Chinese font. If there is none, its characters become empty boxes. `check` reports that, for the data's texts: what
    an untrained model writes has characters of any kind.
    """
    return _load(None if _is_latin(text) else _installed_cjk_font(), size)


def check(texts: Iterable[str]) -> None:
    """Log `WARNING`, once in this process, if one of the data's texts has Chinese characters and no font has.

    Call it where texts are drawn: a run draws after its first screen, which no warning then pushes away.
    """
    if any(map(_has_cjk, texts)) and cjk_font_file() is None:
        _warn_once()


def cjk_font_file() -> Path | None:
    """Return the best installed font file with Chinese characters, or None.

    The first face of the file must have the characters, because Pillow and matplotlib draw with that one; a collection
    (.ttc) may have more faces.
    """
    return _installed_cjk_font()


def use_in_plots(texts: Sequence[str]) -> None:
    """Let matplotlib fall back to an installed Chinese font if one of `texts`, which are the user's, needs it.

    If there is none, matplotlib's own warning for every missing character is silenced: `WARNING` says it once.
    """
    if all(map(_is_latin, texts)):
        return
    check(texts)
    if (path := _installed_cjk_font()) is None:
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        return
    from matplotlib import font_manager, rcParams

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns that the font has no bold face
    font_manager.fontManager.addfont(path)
    rcParams["font.family"] = ["DejaVu Sans", font_manager.FontProperties(fname=path).get_name()]


@functools.cache
def _installed_cjk_font() -> Path | None:
    from matplotlib import font_manager  # here because it takes half a second, and few texts need it

    # Not fontManager.ttflist: it is read from a cache, which lacks the fonts that were installed later.
    paths = sorted(map(Path, font_manager.findSystemFonts()), key=_preference)
    return next(filter(_has_chinese, paths), None)


@functools.cache
def _warn_once() -> None:
    logging.getLogger(__name__).warning(WARNING)


def _is_latin(text: str) -> bool:
    """Whether Pillow's own font has glyphs for `text`: they end with Latin Extended-B.

    U+FFFD, which stands for bytes that are no text, is a box in every font.
    """
    return all(character <= "\u024f" or character == "\ufffd" for character in text)


def _has_cjk(text: str) -> bool:
    """Whether `text` has a Chinese, Japanese or Korean character, or a full-width form."""
    return re.search(CJK, text) is not None


def _has_chinese(path: Path) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(str(path))
    except (OSError, RuntimeError):  # unreadable or damaged
        return False
    return all(face.get_char_index(ord(character)) for character in CHINESE)


def _preference(path: Path) -> tuple[int, bool, str]:
    """Sort key: family, then regular weight, then path, so that one machine always chooses the same file."""
    name = path.name.lower()
    rank = next((rank for rank, family in enumerate(PREFERRED) if name.startswith(family)), len(PREFERRED))
    is_regular = name.startswith("wqy") or "regular" in name
    return rank, not is_regular, str(path)


@functools.lru_cache(maxsize=512)
def _load(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    """Return the font of a file, or Pillow's own for None."""
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)
