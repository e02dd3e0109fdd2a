import numpy as np
import pytest
from PIL import Image
from scored import prediction

from bbu_train.images.overlay import COLORS
from bbu_train.reporting import final_report
from bbu_train.types.samples import Object, Picture

BOX = (20.0, 30.0, 120.0, 130.0)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (1000, 750), (90, 90, 90)).save(path)
    return Picture(path, 1000, 750, (Object(BOX, "螺丝/符合要求"),))


def colors_in(path):
    """Of the palette, give or take what JPEG makes of them."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    return [color for color in COLORS if (np.abs(pixels - color).sum(axis=1) < 12).sum() > 50]


def test_a_gallery_is_a_sheet_of_small_pictures_named_by_its_step_and_written_again_in_its_place(picture, tmp_path):
    found = [(picture, prediction((BOX, 0.9, "螺丝"), ((500, 300, 900, 700), 0.8, "label")))] * 4
    [path] = final_report.write_gallery(
        tmp_path, 30, found, {"eval/f1_threshold": 0.5, "eval/f1": 0.7, "eval/ap50": 0.6}
    )
    first = path.read_bytes()
    assert path == tmp_path / "gallery/step-00000030.jpg"
    assert len(colors_in(path)) == 2
    with Image.open(path) as sheet:
        assert max(sheet.size) < 2.5 * final_report.GALLERY_SIZE
    assert final_report.write_gallery(
        tmp_path, 30, found, {"eval/f1_threshold": 0.5, "eval/f1": 0.7, "eval/ap50": 0.6}
    ) == [path]
    assert path.read_bytes() == first


def test_before_anything_is_found_as_many_of_the_best_are_drawn_as_there_are_objects(picture, tmp_path):
    found = prediction(((500, 300, 900, 700), 0.2, "label"), ((200, 100, 400, 600), 0.1, "bbu"))
    [path] = final_report.write_gallery(tmp_path, 0, [(picture, found)], {"eval/f1_threshold": 1.0, "eval/f1": 0.0})
    assert len(colors_in(path)) == 1


def test_of_nothing_there_is_no_gallery(tmp_path):
    assert final_report.write_gallery(tmp_path, 0, [], {}) == []
    assert not (tmp_path / "gallery").exists()
