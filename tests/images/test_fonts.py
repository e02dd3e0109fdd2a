import logging
import warnings

import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from bbu_train.images import fonts


@pytest.fixture
def no_chinese_font(monkeypatch):
    """A machine without fontconfig and without font folders."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(fonts, "FOLDERS", ())
    fonts.cjk_font_file.cache_clear()
    yield
    fonts.cjk_font_file.cache_clear()


def ink(text):
    image = Image.new("L", (200, 40))
    ImageDraw.Draw(image).text((4, 4), text, fill=255, font=fonts.font(24, text))
    return image.tobytes()


def test_latin_text_needs_no_installed_font(no_chinese_font, caplog):
    assert ink("BBU 12") != ink("BBU 13")
    assert not caplog.records


def test_a_missing_chinese_font_is_reported_once_with_the_way_to_get_one(no_chinese_font, caplog):
    with caplog.at_level(logging.WARNING):
        fonts.font(20, "机柜")
        fonts.font(30, "标签")
    assert len(caplog.records) == 1
    assert "apt-get install fonts-noto-cjk" in caplog.text


def test_chinese_text_without_a_font_leaves_visible_boxes(no_chinese_font):
    assert any(ink("机柜"))
    assert ink("机柜") == ink("标签")


def test_a_plot_without_a_font_says_so_once_and_not_for_every_character(no_chinese_font, caplog, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fonts.use_in_plots(["机柜", "标签"])
        figure = Figure()
        figure.suptitle("机柜, 标签")
        figure.savefig(tmp_path / "plot.png")
    assert [record.message for record in caplog.records] == [fonts.WARNING]
    assert not said


def test_a_font_in_a_known_folder_is_found_without_fontconfig(no_chinese_font, monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("NotoSansCJK-Bold.ttc", "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "simsun.ttc"):
        (tmp_path / "deep" / name).touch()
    monkeypatch.setattr(fonts, "FOLDERS", (tmp_path,))
    assert fonts.cjk_font_file() == tmp_path / "deep" / "NotoSansCJK-Regular.ttc"


def test_an_installed_chinese_font_draws_different_characters_differently():
    if fonts.cjk_font_file() is None:
        pytest.skip("no Chinese font is installed (apt-get install fonts-wqy-zenhei)")
    assert ink("机柜") != ink("标签")
