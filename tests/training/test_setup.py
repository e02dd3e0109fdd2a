import pytest

from bbu_train.errors import InputError
from bbu_train.training import setup


def test_pictures_with_more_objects_than_queries_are_all_named(samples):
    with pytest.raises(InputError, match=r"(?s)head.num_queries=1.*a: 3 objects.*b: 2 objects.*Raise head.num_queries"):
        setup.check_num_objects(samples, num_queries=1)


def test_a_model_without_a_head_takes_any_number_of_objects(samples):
    setup.check_num_objects(samples, num_queries=None)


@pytest.mark.parametrize("limit", [0, 101])
def test_a_limit_without_positions_is_refused(limit):
    with pytest.raises(InputError, match="positions for 1 to 100 tokens"):
        setup.check_max_tokens(limit, max_positions=100)
