import numpy as np
from toy import decoder

from lrsearch.search.learner import Learner, Observation, noise
from lrsearch.search.proposals import Proposals
from lrsearch.spec.config import SearchConfig

PROPOSALS = Proposals(decoder({}), ["params"], SearchConfig(lowest=0.2))
CANDIDATES = PROPOSALS.candidates(PROPOSALS.parameters)
DRAWN = CANDIDATES.draw([], np.random.default_rng(0))


def truth(pick):
    """log KL, where the head does twenty times as much damage as was predicted."""
    damage = PROPOSALS.decoder.damage[pick] * np.array([1.0, 1.0, 1.0, 20.0])
    return float(np.log(damage.sum() + 1e-3))


def observed(candidates):
    return [Observation(c.pick, truth(c.pick), c.weights) for c in candidates]


def test_without_observations_the_profile_alone_decides():
    learner = Learner(CANDIDATES, ["params"], [])
    mean, _ = learner.predict(np.stack([c.pick for c in DRAWN]))
    damage = np.log([PROPOSALS.decoder.damage[c.pick].sum() + 1e-12 for c in DRAWN])
    assert np.allclose(mean, damage)
    assert len(learner.ranked(DRAWN)) == len(DRAWN)


def test_it_proposes_what_is_better_than_the_profile_would():
    seen = observed(DRAWN[::6])
    learner = Learner(CANDIDATES, ["params"], seen)
    new = [c for c in DRAWN if truth(c.pick) not in {o.log_kl for o in seen}]
    mean, _ = learner.predict(np.stack([c.pick for c in new]))
    off = mean - [truth(c.pick) for c in new]
    plain = [np.log(PROPOSALS.decoder.damage[c.pick].sum() + 1e-12) - truth(c.pick) for c in new]
    assert np.std(off) < np.std(plain) / 2


def test_what_is_running_is_believed_and_not_proposed_next_to():
    learner = Learner(CANDIDATES, ["params"], observed(DRAWN[::10]))
    first = learner.ranked(DRAWN)[0]
    second = learner.ranked(DRAWN, [first.pick])[0]
    assert first.pick.tobytes() != second.pick.tobytes()
    assert learner.ranked(DRAWN, [first.pick])[-1] is not first


def test_children_of_the_front_are_among_the_candidates():
    seen = observed(DRAWN[::10])
    own = {o.pick.tobytes() for o in seen}
    found = Learner(CANDIDATES, ["params"], seen).draw(np.random.default_rng(1))
    assert len(found) > len(CANDIDATES.draw([], np.random.default_rng(1)))
    assert any(c.pick.tobytes() not in own for c in found)


def test_nothing_drawn_is_nothing_ranked():
    assert Learner(CANDIDATES, ["params"], []).ranked([]) == []


def test_the_noise_is_paired_where_losses_were_kept():
    shared = np.random.default_rng(0).exponential(size=100)
    kept = [Observation(np.zeros(4, np.int64), 0.0, None, 0.1, factor * shared) for factor in (1.0, 2.0)]
    found = noise([*kept, Observation(np.zeros(4, np.int64), 0.0, None, 0.2)])
    assert np.allclose(found, np.diag([0, 0, 0.04]))


def test_luck_on_few_images_is_not_taken_for_a_good_plan():
    plain = [Observation(c.pick, truth(c.pick), c.weights, 0.3) for c in DRAWN[::3]]
    lucky = Observation(plain[5].pick, plain[5].log_kl - 0.6, plain[5].weights, 0.3)
    seen = [*plain[:5], lucky, *plain[6:]]
    assert Learner(CANDIDATES, ["params"], seen).believed[5] > lucky.log_kl + 0.3
