"""What is told of a stage, and when."""

import io

from lrsearch.spec.progress import Lines, lasting


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_when_a_stage_begins_and_ends_and_every_ten_seconds_between():
    clock, out = Clock(), io.StringIO()
    lines = Lines(out, clock)
    lines.stage("Fitting", 4)
    for second in (1, 11, 12, 13):
        clock.now = second
        lines.advance("front of 2")
    assert out.getvalue().splitlines() == [
        "Fitting: 4 to do", "Fitting: 2 of 4, about 11 s left; front of 2", "Fitting: 4 of 4; front of 2"]


def test_the_time_left_follows_the_work_where_that_is_known():
    clock, out = Clock(), io.StringIO()
    lines = Lines(out, clock)
    lines.stage("Fitting", 10)
    clock.now = 20
    lines.expect(0.1)  # one small layer of ten
    lines.advance()
    assert lines.left == 180
    assert out.getvalue().splitlines()[-1] == "Fitting: 1 of 10, about 3 min left"


def test_what_was_done_before_does_not_count_as_fast():
    clock = Clock()
    lines = Lines(io.StringIO(), clock)
    lines.stage("Searching", 100, 90)
    assert lines.left is None
    clock.now = 5
    lines.advance()
    assert lines.left == 45


def test_a_note_is_printable():
    out = io.StringIO()
    Lines(out).note("a\x1b[31mb")
    assert out.getvalue() == "note: a\\x1b[31mb\n"


def test_durations():
    assert [lasting(s) for s in (4, 89, 200, 6000)] == ["about 4 s", "about 89 s", "about 3 min", "about 1.7 h"]
