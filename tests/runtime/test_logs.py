import logging
import sys

import pytest

from bbu_train.runtime import logs

log = logging.getLogger("bbu_train.test")


@pytest.fixture
def stderr(capsys):
    """A function that returns what was written to stderr. The root logger is restored afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers, root.level = handlers, level


def test_a_terminal_shows_the_start_of_a_run_and_warnings_only_beside_the_bar(stderr, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.start(is_main=True)
    log.info("what was read")
    logs.make_room_for_progress_bar()
    log.info("step 3")
    log.warning("suspicious")
    assert stderr() == "what was read\nwarning: suspicious\n"


def test_a_file_gets_every_message(stderr, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    logs.start(is_main=True)
    logs.make_room_for_progress_bar()
    log.info("step 3")
    assert stderr() == "step 3\n"


def test_what_all_ranks_log_is_shown_once(stderr):
    logs.start(is_main=False)
    logs.make_room_for_progress_bar()
    log.warning("suspicious")
    log.error("broken")
    assert stderr() == "error: broken\n"


def test_messages_before_a_run_has_a_folder_reach_its_log(stderr, tmp_path):
    logs.start(is_main=True)
    logs.keep_until_file()
    log.debug("early")
    logs.to_file(tmp_path)
    log.debug("late")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["early", "late"]
