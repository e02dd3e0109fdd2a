import pytest

from bbu_train.runtime import screen
from bbu_train.runtime.columns import aligned
from bbu_train.runtime.screen import Section
from bbu_train.runtime.wording import duration


def test_sections_are_aligned_and_long_lines_wrapped_but_no_word_is_broken():
    path = "/data/" + "x" * 150
    text = screen.as_text([Section("run", ["new", path]), Section("settings", [" ".join(["threads=1"] * 20)])])
    first, second, *rest = text.splitlines()
    assert (first, second) == ("run       new", f"          {path}")
    assert rest[0].startswith("settings  threads=1 threads=1")
    assert all(line.startswith("            threads=1") for line in rest[1:])
    assert all(len(line) <= screen.MAX_COLUMNS for line in rest)


def test_a_section_without_lines_is_left_out():
    assert screen.as_text([Section("choices", []), Section("run", ["new"])]) == "run  new"


def test_more_than_a_screen_is_cut_where_it_is_longest_and_kept_in_full():
    sections = [Section("data", [f"line {i}" for i in range(50)]), Section("run", ["new"], more=["as said"])]
    lines = screen.as_text(sections).splitlines()
    assert len(lines) == screen.MAX_LINES
    assert lines[-3:] == ["      line 37", "      ... 12 more lines: environment.json", "run   new"]
    assert len(screen.as_dict(sections)["data"]) == 50
    assert screen.as_dict(sections)["run"] == ["new", "as said"]


def test_a_table_has_numbers_to_the_right():
    assert aligned([("llm", "1,000", "frozen"), ("adapter", "20", "rate 1")]) == [
        "llm      1,000  frozen",
        "adapter     20  rate 1",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.7, "1 min"), (130, "2 min 10 s"), (3600, "1 h"), (7260, "2 h 1 min"), (90000, "1 d 1 h")],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text
