"""A font that can draw a text, Chinese included, without a font file of our own."""

import functools
import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageFont

FOLDERS = (
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path.home() / ".local/share/fonts",
    Path.home() / ".fonts",
    Path("/System/Library/Fonts"),
    Path("/Library/Fonts"),
    Path.home() / "Library/Fonts",
    Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts",
)
"""Where Linux, macOS and Windows keep fonts."""

FAMILIES = (
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "wqy-zenhei",
    "wqy-microhei",
    "pingfang",
    "hiragino sans gb",
    "stheiti",
    "msyh",
    "simhei",
    "simsun",
    "droidsansfallback",
    "arphic",
    "uming",
    "ukai",
)
"""Beginnings of the file names of families with Chinese glyphs, the best to read first."""

WARNING = (
    "No font with Chinese characters is installed: they are drawn as empty boxes. Install one: "
    "`apt-get install fonts-noto-cjk`, `dnf install google-noto-sans-cjk-fonts`, `apk add font-noto-cjk`, "
    "or copy NotoSansCJK-Regular.ttc from https://github.com/notofonts/noto-cjk into ~/.local/share/fonts."
)


def font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels that can draw `text`.

    Text in Latin letters always gets the font inside Pillow, so that it looks the same on every machine. Other text
    gets an installed Chinese font; where there is none, its letters become boxes, and a warning says so once.
    """
    if not needs_cjk(text):
        return _built_in(size)
    path = cjk_font_file()
    return _from_file(path, size) if path else _built_in(size)


def needs_cjk(text: str) -> bool:
    """Whether `text` has a character beyond Latin Extended-B, where the glyphs of Pillow's own font end."""
    return any(character > "\u024f" for character in text)


@functools.cache
def cjk_font_file() -> Path | None:
    """The best installed font file with Chinese characters; warns, once, where there is none."""
    found = _known_to_fontconfig() or _known_by_name()
    if not found:
        logging.getLogger(__name__).warning(WARNING)
        return None
    return min(found, key=_preference)


def use_in_plots(texts: Sequence[str]) -> None:
    """Let matplotlib fall back to an installed Chinese font, as drawing does, where a text needs one.

    Where there is none, its own warning for every character is left out: `WARNING` has said it all.
    """
    if not any(map(needs_cjk, texts)):
        return
    if (path := cjk_font_file()) is None:
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        return
    from matplotlib import font_manager, rcParams

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # the font's one weight will do
    font_manager.fontManager.addfont(path)
    rcParams["font.family"] = ["DejaVu Sans", font_manager.FontProperties(fname=path).get_name()]


def _known_to_fontconfig() -> list[Path]:
    """Font files that say that they cover Chinese; none where fontconfig is not installed."""
    program = shutil.which("fc-list")
    if program is None:
        return []
    listing = subprocess.run([program, ":lang=zh", "file"], capture_output=True, encoding="utf-8", check=False).stdout
    paths = [Path(line.strip().rstrip(":")) for line in listing.splitlines() if line.strip()]
    return [path for path in paths if path.suffix.lower() in (".ttf", ".ttc", ".otf", ".otc")]


def _known_by_name() -> list[Path]:
    files = (path for folder in FOLDERS if folder.is_dir() for path in folder.rglob("*.[to]t[fc]"))
    return [path for path in files if path.name.lower().startswith(FAMILIES)]


def _preference(path: Path) -> tuple[int, bool, str]:
    """Sorts by family, then the regular weight, then by path, so that a machine always chooses the same file."""
    name = path.name.lower()
    rank = next((rank for rank, family in enumerate(FAMILIES) if name.startswith(family)), len(FAMILIES))
    plain = name.startswith("wqy") or "regular" in name
    return rank, not plain, str(path)


@functools.lru_cache(maxsize=256)
def _built_in(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=256)
def _from_file(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)
