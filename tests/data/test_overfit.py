import pytest
from hydra.utils import instantiate

from bbu_train.data import overfit
from bbu_train.errors import InputError


@pytest.fixture
def load(config, tmp_path):
    """A function from overrides to the splits of data=overfit."""

    def load(*overrides):
        cfg = config(
            "data=overfit", f"outputs={tmp_path}", "data.source.num_train=3", "data.source.num_validation=1", *overrides
        )
        return instantiate(cfg.data, _convert_="all")

    return load


def test_the_first_training_samples_are_validated_on_as_well_and_get_no_teachers(load):
    few, all_of_them = load("data.num_samples=2"), load("data.num_samples=3")
    assert few.validation == few.train == all_of_them.train[:2]
    assert len(all_of_them.train) == 3
    assert few.teachers.draw(few.train[0], 0, few.pool) == few.teachers.draw_validation(few.train[0], few.pool) == ()


def test_more_samples_than_there_are_is_an_error(load):
    source = load("data.num_samples=3")
    with pytest.raises(InputError, match=r"data.num_samples=4: expected a whole number from 1 to the 3"):
        overfit.load(source, 4, source.teachers)
