"""The study's log, where its disk is full."""

import logging
import os

from lrsearch.workflows.steps.log import log_to


def test_a_line_that_cannot_be_written_is_left_out(tmp_path, capsys):
    log = log_to(tmp_path / "search.log")
    with log:
        logging.getLogger("lrsearch").info("written")
        os.close(log.handler.stream.fileno())
        logging.getLogger("lrsearch").info("lost")
    assert capsys.readouterr().err == ""
    assert "written" in (tmp_path / "search.log").read_text()
