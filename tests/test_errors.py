"""A message fits on a screen: the first ten problems of a kind, how many more, and always the remedy."""

import pytest

from bbu_train.errors import all_problems, listed

REMEDY = "Give head.num_queries=28."


@pytest.mark.parametrize(
    ("numbers", "shown", "more"),
    [
        ({"a": 10}, {"a": 10}, []),
        ({"a": 42}, {"a": 10}, ["  ... and 32 more of this kind: a"]),
        ({"a": 11, "b": 1}, {"a": 10, "b": 1}, ["  ... and 1 more of this kind: a"]),
        ({"a": 45, "b": 45, "c": 45, "d": 1}, {"a": 10, "b": 10, "c": 10, "d": 1}, []),
        (dict.fromkeys("abcd", 100), dict.fromkeys("abcd", 7), ["  ... and 93 more of this kind: a"]),
        ({f"kind {i:02}": 2 for i in range(40)}, {"kind 00": 1}, ["  ... and 46 more of 23 other kinds"]),
    ],
)
def test_the_first_of_every_kind_are_shown_and_the_others_counted(numbers, shown, more):
    problems = [f"{kind}: picture {i}" for kind, number in numbers.items() for i in range(number)]
    text = str(all_problems("The data", problems, REMEDY, [problem.split(":")[0] for problem in problems]))
    lines = text.splitlines()
    assert len(lines) <= 40
    assert lines[0] == f"The data: {sum(numbers.values())} problems." and lines[-1] == REMEDY
    for kind, number in shown.items():
        assert sum(line.startswith(f"  {kind}: ") for line in lines) == number
    assert set(more) <= set(lines)


def test_long_lines_and_problems_of_many_lines_are_cut_but_not_the_remedy():
    long = "train.jsonl:1: " + "x" * 5000 + " is not a path"
    many = "\n".join([f"cell {i}" for i in range(100)])
    remedy = f"Give {'y' * 400}."
    text = str(all_problems("y" * 1000, [long, many, many], remedy))
    *lines, last = text.splitlines()
    assert last == remedy and len(lines) < 40
    assert max(map(len, lines)) <= 315
    assert "train.jsonl:1: x" in text and "x is not a path" in text and "... and 2 more" in text


def test_a_list_of_names_says_how_many_more_there_are():
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(30)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more"
    assert len(listed(["z" * 1000] * 1000)) < 700
