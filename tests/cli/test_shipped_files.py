from pathlib import Path

import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec import shipped
from lrsearch.spec.shipped import find, load_space, load_study

ROOT = Path(__file__).parents[2]
STUDIES, SPACES = (sorted(p.stem for p in (ROOT / kind).glob("*.yaml")) for kind in ("studies", "search_spaces"))


def test_there_are_some():
    assert "digits" in STUDIES
    assert {"mobilenetv3", "efficientnet", "vit", "cifar_resnet"} <= set(SPACES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_is_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_study(name)
    assert config.name == name
    assert config.model
    assert config.data


@pytest.mark.parametrize("name", SPACES)
def test_every_shipped_space_is_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_space(name).rules


def test_a_file_of_the_users_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("studies", "digits").parent.name == "studies"
    (tmp_path / "digits").write_text("name: mine")
    assert find("studies", "digits") == Path("digits")


def test_an_installed_package_has_its_own(tmp_path, monkeypatch):
    (tmp_path / "lrsearch" / "studies").mkdir(parents=True)
    (tmp_path / "lrsearch" / "studies" / "inside.yaml").write_text("name: inside")
    monkeypatch.setattr(shipped, "_HERE", tmp_path / "lrsearch")
    assert find("studies", "inside").read_text() == "name: inside"
    with pytest.raises(ConfigError, match="Shipped: inside"):
        find("studies", "outside")
