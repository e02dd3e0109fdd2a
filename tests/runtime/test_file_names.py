import os

import pytest

from bbu_train.runtime.file_names import MAX_BYTES, printable, short_name

GBK = os.fsdecode("设备.jpg".encode("gbk"))
NAMES = ["a.jpg", "设备.jpg", GBK, "长" * 83, "x" * 251, "\ud800", "é" * 47 + "x"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_becomes_text_that_can_be_encoded_and_a_file_name_that_fits(tmp_path, name):
    assert printable(name).encode()
    assert len(short_name(name).encode()) <= MAX_BYTES
    (tmp_path / short_name(name)).touch()


def test_a_byte_that_is_no_utf8_and_a_control_character_are_shown_as_their_values():
    assert printable(os.fsdecode("café\n.jpg".encode("latin-1"))) == r"caf\xe9\x0a.jpg"


def test_a_short_name_stays_and_long_names_with_one_beginning_differ():
    assert short_name("设备") == "设备"
    assert short_name("长" * 83) != short_name("长" * 84)
    assert short_name("长" * 83).startswith("长" * 29)
