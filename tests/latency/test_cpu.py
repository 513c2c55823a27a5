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
