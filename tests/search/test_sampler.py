import numpy as np
import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from lrsearch.search.sampler import SPREAD, LearnedSampler, Observation, build_sampler, distributions

NAMES = ("a", "b", "c", "d", "e")
SPACE = distributions(NAMES, {"params": (0.1, 1.0)})
THETA = np.array([0.0, -1.0, 2.0, 0.5, 0.0])
PHI = np.array([0.0, 1.5, -0.5])


def observations(n):
    """Synthetic trials of layers whose damage is really e^θ, and of families whose is e^φ, times the profile's."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        damage, family = rng.lognormal(-3, 1, len(NAMES)), rng.integers(0, 3, len(NAMES))
        yield Observation(damage, family, float(np.log((damage * np.exp(THETA + PHI[family])).sum()) + rng.normal(0, 0.05)))


def proposals(seen, targets=(), seed=0, draws=1):
    """The sampler's next ``draws`` proposals after trials that are observed as ``seen`` and had ``targets``."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    targets = [*targets, *[0.5] * (len(seen) - len(targets))]
    neutral = dict.fromkeys(SPACE, 0.0)
    for target in targets:
        study.add_trial(create_trial(params={**neutral, "target/params": target}, distributions=SPACE, values=[1.0, 1.0]))
    by_number = dict(enumerate(seen))
    sampler = LearnedSampler(SPACE, lambda trial: by_number.get(trial.number), seed)
    pending = [create_trial(state=TrialState.RUNNING) for _ in range(draws)]
    for i, trial in enumerate(pending):
        trial.number = len(targets) + i
    return [sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial)) for trial in pending]


def test_without_observations_the_weights_are_the_profiles_own():
    (values,) = proposals([None] * 4)
    assert {v for k, v in values.items() if not k.startswith("target/")} == {0.0}
    assert values.keys() == SPACE.keys()


def test_planted_weights_are_recovered():
    draws = proposals(list(observations(60)), draws=20)
    layers = np.array([[d[f"layer/{n}"] for n in NAMES] for d in draws])
    families = np.array([[d[f"family/{f}"] for f in ("low-rank", "low-rank+sparse")] for d in draws])
    assert (layers.argmax(1) == 2).all()
    assert (np.median(layers, 0).argsort()[[0, -1]] == [1, 2]).all()
    assert (families[:, 0] > families[:, 1] + 1).all()


def test_few_observations_leave_the_draws_spread_about_the_prior():
    few, many = (np.std([list(d.values())[1:] for d in proposals(list(observations(n)), draws=30)], axis=0).mean() for n in (2, 60))
    assert many < few / 2


def test_the_seed_decides():
    seen = list(observations(10))
    assert proposals(seen, seed=1) == proposals(seen, seed=1)
    assert proposals(seen, seed=1) != proposals(seen, seed=2)
    first, second = proposals(seen, seed=1, draws=2)
    assert first != second


def test_proposals_stay_within_the_space():
    seen = [Observation(np.ones(5), np.zeros(5, dtype=int), value) for value in (-200.0, 200.0, 50.0)]
    for values in proposals(seen, draws=10):
        assert all(SPACE[k].low <= v <= SPACE[k].high for k, v in values.items())
    assert SPACE["layer/a"].high == SPREAD


@pytest.mark.parametrize(("tried", "low", "high"), [([0.9, 0.8, 0.5], 0.1, 0.5), ([0.1, 0.2, 0.3], 0.3, 1.0), ([], 0.1, 1.0)])
def test_the_target_fills_the_widest_gap(tried, low, high):
    for values in proposals([], tried, draws=5):
        assert low < values["target/params"] < high


def test_a_span_of_one_target_is_that_target():
    space = distributions(NAMES, {"params": (0.3, 0.3)})
    trial = create_trial(state=TrialState.RUNNING)
    trial.number = 0
    assert LearnedSampler(space, lambda _: None, 0).sample_relative(optuna.create_study(), trial, space)["target/params"] == 0.3


@pytest.mark.parametrize(
    ("name", "kind"), [("learned", LearnedSampler), ("tpe", TPESampler), ("random", RandomSampler), ("nsga2", NSGAIISampler)]
)
def test_samplers_by_name(name, kind):
    assert type(build_sampler(name, SPACE, lambda _: None, 0)) is kind
