from unicodedata import normalize

import pytest

from bbu_train.data.annotations import clean_description


@pytest.mark.parametrize(
    "written",
    [
        "screw/m4",
        " screw/m4\n",
        "screw / m4",
        "\tscrew/ m4\u3000",
        "\ufeffscrew/m4\u200b",
        "\u00a0screw\u200b/\u2060m4\r",
    ],
)
def test_blanks_around_a_description_and_its_levels_make_no_other_class(written):
    assert clean_description(written) == "screw/m4"


def test_descriptions_are_normalized_as_the_tokenizer_does_it():
    assert clean_description(normalize("NFD", "répéteur/à côté")) == "répéteur/à côté"


def test_blanks_within_a_level_stay():
    assert clean_description("wind  baffle/not there") == "wind  baffle/not there"
