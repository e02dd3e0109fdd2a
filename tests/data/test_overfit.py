import pytest
from hydra.utils import instantiate

from bbu_train.data import overfit
from bbu_train.errors import InputError


@pytest.fixture(scope="module")
def load(config, tmp_path_factory):
    """A function from a number of samples to the splits of data=overfit, which come from 3 training pictures."""
    folder = tmp_path_factory.mktemp("overfit")
    cfg = config("data=overfit", f"outputs={folder}", "data.source.num_train=3", "data.source.num_validation=1")
    return lambda num_samples: instantiate(cfg.data, num_samples=num_samples, _convert_="all")


def test_the_first_training_samples_are_also_validated_on_and_get_no_teachers(load):
    two, three = load(2), load(3)
    assert two.validation == two.train == three.train[:2]
    assert len(three.train) == 3
    assert two.teachers.draw(two.train[0], 0, two.pool) == two.teachers.draw_validation(two.train[0], two.pool) == ()


@pytest.mark.parametrize("num_samples", [0, 4])
def test_a_number_of_samples_that_the_source_lacks_is_an_error(load, num_samples):
    source = load(3)
    with pytest.raises(InputError, match=rf"data.num_samples={num_samples}: expected a whole number from 1 to 3"):
        overfit.load(source, num_samples, source.teachers)
