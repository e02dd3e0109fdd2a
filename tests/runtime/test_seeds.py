import json
import subprocess
import sys

import pytest

from bbu_train.runtime.seeds import generator


def draws(*key):
    return generator(*key).integers(0, 2**63, 4).tolist()


def test_equal_keys_give_equal_draws():
    assert draws("teachers", 17, 0, "train.jsonl:12") == draws("teachers", 17, 0, "train.jsonl:12")


@pytest.mark.parametrize(
    "other", [("b", 1, 2), ("a", 2, 1), ("a", 1), ("a", 1, 2, 0), ("a", 12), ("a1", 2), ("a", "1", 2), ("a", 1, -2)]
)
def test_different_keys_give_different_draws(other):
    assert draws("a", 1, 2) != draws(*other)


def test_one_generator_does_not_disturb_another():
    first = generator("a")
    generator("a").random(100)
    assert first.integers(0, 2**63, 4).tolist() == draws("a")


def test_another_process_with_another_hash_seed_draws_the_same():
    program = "import json; from bbu_train.runtime.seeds import generator\n"
    program += "print(json.dumps(generator('epoch', 17, '机柜').integers(0, 2**63, 4).tolist()))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True, env={"PYTHONHASHSEED": "5"}
    )
    assert json.loads(result.stdout) == draws("epoch", 17, "机柜")


def test_the_draws_of_a_key_never_change():
    """A run resumed with a later version of the code must see the data in the same order."""
    assert generator("epoch", 17, 0).permutation(8).tolist() == [0, 1, 3, 2, 7, 6, 5, 4]
