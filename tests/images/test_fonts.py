import logging
import subprocess
import sys
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from bbu_train.images import fonts

CHINESE = fonts.CHINESE + "标签"


@pytest.fixture
def install(monkeypatch):
    """A function that makes the given files the only fonts of this machine."""

    def forget():
        fonts._installed_cjk_font.cache_clear()
        fonts._warn_once.cache_clear()

    def install(*paths):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in paths])
        forget()

    yield install
    monkeypatch.undo()
    forget()


def write_font(path, characters):
    """Write a font in which each of `characters` is a bar of its own width; a .ttc has it as its only face."""
    path.parent.mkdir(exist_ok=True)
    names = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    builder.setupGlyf({name: bar(200 + 100 * index) for index, name in enumerate(names)})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    if path.suffix == ".ttc":
        collection = TTCollection()
        collection.fonts = [builder.font]
        collection.save(path)
    else:
        builder.save(path)
    return path


def bar(width):
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (width, 700), (width, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def ink(text):
    image = Image.new("L", (200, 40))
    ImageDraw.Draw(image).text((4, 4), text, fill=255, font=fonts.font(24, text))
    return image.tobytes()


def test_latin_text_gets_the_same_font_whatever_is_installed(install, tmp_path, caplog):
    install()
    bare = ink("BBU 12")
    assert bare != ink("BBU 13")
    assert ink("undecodable \ufffd")
    assert not caplog.records
    install(write_font(tmp_path / "NotoSansCJK-Regular.ttc", CHINESE + "B"))
    assert ink("BBU 12") == bare


def test_a_missing_chinese_font_is_reported_once_for_the_datas_texts_with_the_way_to_get_one(install, caplog):
    install()
    with caplog.at_level(logging.WARNING):
        fonts.font(20, "机柜")  # as an untrained model may write
        assert fonts.cjk_font_file() is None  # as data that is drawn asks for, before a run's first screen
        fonts.check(["bbu/zte", "Grüße", "кабель", "\ufffd"])
        assert not caplog.records
        fonts.check(["bbu", "机柜"])
        fonts.check(["标签"])
    assert len(caplog.records) == 1
    assert "apt-get install fonts-noto-cjk" in caplog.text


def test_chinese_text_without_a_font_leaves_visible_boxes(install):
    install()
    assert any(ink("机柜"))
    assert ink("机柜") == ink("标签")


def test_a_plot_without_a_font_says_so_once_and_not_for_every_character(install, caplog, tmp_path):
    install()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        fonts.use_in_plots(["机柜", "标签"])
        figure = Figure()
        figure.suptitle("机柜, 标签")
        figure.savefig(tmp_path / "plot.png")
    assert [record.message for record in caplog.records] == [fonts.WARNING]
    assert not shown


@pytest.mark.parametrize("suffix", ["ttf", "ttc"])
def test_a_plot_falls_back_to_the_chinese_font(install, tmp_path, suffix):
    install(write_font(tmp_path / f"Rack.{suffix}", CHINESE))
    with rc_context(), warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        fonts.use_in_plots(["loss", "机柜"])
        figure = Figure()
        figure.suptitle("loss 机柜")
        figure.savefig(tmp_path / "plot.png")
    assert not shown


@pytest.mark.parametrize("suffix", ["ttf", "ttc"])
def test_an_installed_chinese_font_draws_different_characters_differently(install, tmp_path, suffix):
    path = write_font(tmp_path / f"Rack.{suffix}", CHINESE)
    install(path)
    assert fonts.cjk_font_file() == path
    assert ink("机柜") != ink("标签")


def test_a_font_that_lacks_a_chinese_character_or_is_damaged_is_not_chosen(install, tmp_path):
    japanese = write_font(tmp_path / "NotoSansCJK-Japanese.ttf", CHINESE.replace("设", ""))
    damaged = tmp_path / "NotoSansCJK-Regular.ttc"
    damaged.write_bytes(b"ttcf")
    chinese = write_font(tmp_path / "Unknown.ttf", CHINESE)
    install(japanese, damaged, tmp_path / "gone.ttf", chinese)
    assert fonts.cjk_font_file() == chinese


def test_the_most_legible_family_and_its_regular_weight_are_chosen(install, tmp_path):
    names = ("a/simsun.ttf", "b/wqy-zenhei.ttf", "c/NotoSansCJK-Bold.ttc", "d/NotoSansCJK-Regular.ttc")
    paths = [write_font(tmp_path / name, CHINESE) for name in names]
    for _ in names:
        install(*paths)
        assert fonts.cjk_font_file() == paths.pop()


def test_a_real_chinese_font_is_found_and_drawn():
    fonts._installed_cjk_font.cache_clear()
    if fonts.cjk_font_file() is None:
        pytest.skip("no Chinese font is installed (apt-get install fonts-wqy-zenhei)")
    assert ink("机柜") != ink("标签")


def test_importing_fonts_does_not_import_matplotlib():
    code = "import sys, bbu_train.images.fonts; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
