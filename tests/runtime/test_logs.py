import logging

import pytest

from bbu_train.runtime import logs

log = logging.getLogger("bbu_train.test")


@pytest.fixture
def stderr(capsys):
    """A function that returns what was written to stderr. No message is kept; the root logger is restored later."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.forget_kept()
    yield lambda: capsys.readouterr().err
    root.handlers, root.level = handlers, level


def test_what_all_ranks_log_is_shown_once(stderr):
    logs.start(is_main=False)
    log.warning("suspicious")
    log.error("broken")
    assert stderr() == "error: broken\n"


def test_messages_before_a_run_has_a_folder_reach_its_log(stderr, tmp_path):
    logs.start(is_main=True)
    log.debug("early")
    logs.start(is_main=True)
    log.warning("%s", "suspicious")
    assert logs.kept_warnings() == ["suspicious"]
    logs.to_file(tmp_path)
    log.debug("late")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["early", "suspicious", "late"]


def test_a_run_does_not_keep_the_messages_of_one_that_ended_before_it_had_a_folder(stderr, tmp_path):
    logs.start(is_main=True)
    log.warning("of the first")
    logs.forget_kept()
    logs.start(is_main=True)
    assert logs.kept_warnings() == []
