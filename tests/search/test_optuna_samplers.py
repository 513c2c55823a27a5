import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from lrsearch.errors import ConfigError
from lrsearch.search.optuna_samplers import Scalarised, cmaes_sampler, optuna_sampler

SPACE = {"x": FloatDistribution(-3, 3), "y": FloatDistribution(-3, 3)}


@pytest.mark.parametrize(("name", "kind"), [("tpe", TPESampler), ("gp", GPSampler), ("random", RandomSampler), ("nsga2", NSGAIISampler)])
def test_samplers_by_name(name, kind):
    assert type(optuna_sampler(name, [0, 0])) is kind


def test_seed_and_trials_decide_what_is_drawn():
    def drawn(*seeds):
        return optuna.create_study(sampler=optuna_sampler("random", seeds)).ask(SPACE).params

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
