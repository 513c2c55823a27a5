import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.cache import cache_folder


def test_the_cache_folder_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b"
    assert cache_folder().is_dir()


def test_one_that_cannot_be_made_is_refused_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"file/cache: the cache folder must be .* got Not a directory\. Set LRSEARCH_CACHE"):
        cache_folder()
