import platform

import pytest

from lrsearch.latency import runner


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n", "AMD EPYC (avx2)"),
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2 avx512f avx512_vnni\n", "AMD EPYC (avx512_vnni)"),
        ("Features\t: fp asimd asimddp\nHardware\t: Some phone: fast\n", "Some phone: fast (asimddp)"),
        ("model name\t: Old\n", "Old"),
    ],
)
def test_processors_of_one_name_are_told_apart_by_what_they_can_do(told, name, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{told}\nprocessor\t: 1\n{told}")
    monkeypatch.setattr(runner, "CPUINFO", tmp_path / "cpuinfo")
    assert runner.cpu() == name


def test_where_the_system_does_not_say_python_does(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(platform, "processor", lambda: "Chip")
    assert (runner.cpu(), runner.cpu_flags()) == ("Chip", set())


def test_a_system_that_lets_nobody_look_is_as_one_that_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "CPUINFO", tmp_path)
    assert (runner.cpu_flags(), runner.cpu() != "") == (set(), True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("AMD EPYC (avx2)", "AMD EPYC (avx2)", True), ("AMD EPYC", "AMD EPYC (avx2)", True), ("AMD EPYC (avx2)", "AMD EPYC", True),
        ("AMD EPYC (avx2)", "AMD EPYC (avx512_vnni)", False), ("AMD EPYC", "AMD EPYC (7763)", False), ("Chip (R)", "Chip", False),
    ],
)  # fmt: skip
def test_a_name_from_before_lacks_the_extension(one, other, same):
    assert runner.same_cpu(one, other) is same
