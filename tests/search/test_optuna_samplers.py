import optuna
import pytest
import toy
from optuna.distributions import FloatDistribution
from optuna.samplers import CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from lrsearch.errors import ConfigError
from lrsearch.search.optuna_samplers import Scalarised, cmaes_sampler, sampler_in, trial_seed
from lrsearch.search.proposals import Proposals
from lrsearch.spec.config import SearchConfig
from lrsearch.spec.samplers import SAMPLERS

SPACE = {"x": FloatDistribution(-3, 3), "y": FloatDistribution(-3, 3)}


@pytest.mark.parametrize(("name", "kind"), [("tpe", TPESampler), ("gp", GPSampler), ("random", RandomSampler), ("nsga2", NSGAIISampler)])
def test_samplers_by_name(name, kind):
    assert type(SAMPLERS[name].make(0, None)) is kind


def test_seed_and_trials_decide_what_is_drawn():
    def drawn(*seeds):
        return optuna.create_study(sampler=SAMPLERS["random"].make(trial_seed(*seeds), None)).ask(SPACE).params

    assert drawn(0, 1) == drawn(0, 1)
    assert len({tuple(drawn(*seeds).values()) for seeds in ((0, 1), (1, 0), (0, 2))}) == 3


def test_a_sampler_of_one_objective_in_a_study_of_two_goes_where_its_value_is_least():
    pytest.importorskip("cmaes")
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.sampler = Scalarised(CmaEsSampler(seed=0), SPACE, lambda t: t.values and t.values[0])
    for _ in range(150):
        trial = study.ask(SPACE)
        x, y = trial.params.values()
        study.tell(trial, [(x - 1) ** 2 + (y + 2) ** 2, 0.0])
    last = [t.params for t in study.get_trials()[-20:]]
    assert abs(sum(p["x"] for p in last) / 20 - 1) < 0.3
    assert abs(sum(p["y"] for p in last) / 20 + 2) < 0.3


def test_without_the_package_it_is_named(monkeypatch):
    def missing(self, **_):
        raise ImportError("cmaes")

    monkeypatch.setattr(CmaEsSampler, "__init__", missing)
    with pytest.raises(ConfigError, match=r"pip install cmaes") as caught:
        cmaes_sampler(0)
    assert caught.value.place == "search.sampler"


def test_a_sampler_of_optuna_itself_is_asked_and_noted_by_its_class():
    own = RandomSampler(3)
    settings, found = sampler_in({"search": {"sampler": own, "trials": 2}})
    assert found is own
    assert settings["search"]["trials"] == 2
    config = SearchConfig(**settings["search"])
    assert config.sampler == "optuna.samplers._random:RandomSampler"
    assert Proposals(toy.decoder({}), ["params"], config, None, own).sampler(0) is own
    assert type(Proposals(toy.decoder({}), ["params"], config).sampler(0)) is RandomSampler, "by its class where it is not at hand"


def test_a_path_that_makes_no_sampler_is_told():
    with pytest.raises(ConfigError, match=r"^search\.sampler: .*must make a sampler of Optuna's; got dict"):
        Proposals(toy.decoder({}), ["params"], SearchConfig(sampler="builtins:dict")).sampler(0)
