import sys

import pytest

from bbu_train.runtime import progress_bar
from bbu_train.runtime.progress_bar import ProgressBar


@pytest.mark.parametrize("is_terminal", [False, True])
def test_only_a_terminal_gets_carriage_returns(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0)
    monkeypatch.setattr(progress_bar, "DELAY", 0)
    with ProgressBar(1200, "predicting") as bar:
        bar.update()
        bar.update(1099)
    shown = capsys.readouterr().err
    assert ("\r" in shown) == is_terminal
    if not is_terminal:
        assert shown == "predicting: 1 of 1,200\npredicting: 1,100 of 1,200\n"


def test_a_quick_job_shows_nothing(capsys):
    with ProgressBar(2, "predicting") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
