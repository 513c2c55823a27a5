import numpy as np
import pytest

from lrsearch.search.surrogate import Surrogate, Traits

LAYERS = 6


def plans(rng, n):
    """Damage and family of each layer."""
    return rng.lognormal(-3, 1, (n, LAYERS)), rng.integers(0, 3, (n, LAYERS))


def truth(damage, family):
    """log KL of layers and families whose damage is really some factor of what is predicted."""
    layer = np.exp(np.array([0.0, -0.6, 0.8, 0.3, 0.0, -0.4]))
    return 0.9 * np.log((damage * layer * np.array([1.0, 2.0, 0.7])[family]).sum(1)) - 0.2


def test_the_prior_is_the_summed_damage():
    damage, family = plans(np.random.default_rng(0), 4)
    traits = Traits.of(damage, family)
    mean, stderr = Surrogate(Traits.of(damage[:0], family[:0]), np.zeros(0)).predict(traits)
    assert mean == pytest.approx(np.log(damage.sum(1)))
    assert (stderr > 0.4).all()


def test_it_learns_what_the_damage_is_off_by():
    rng = np.random.default_rng(0)
    damage, family = plans(rng, 160)
    log_kl = truth(damage, family)
    seen, new = Traits.of(damage[:80], family[:80]), Traits.of(damage[80:], family[80:])
    mean, stderr = Surrogate(seen, log_kl[:80]).predict(new)
    off = mean - log_kl[80:]
    before = new.total - log_kl[80:]
    assert off.std() < before.std() / 1.5
    assert 0.5 < (np.abs(off) < stderr).mean() < 0.95


def test_what_was_seen_is_known_and_what_is_like_it_nearly():
    rng = np.random.default_rng(0)
    damage, family = plans(rng, 30)
    log_kl = truth(damage, family)
    surrogate = Surrogate(Traits.of(damage, family), log_kl)
    mean, stderr = surrogate.predict(Traits.of(damage, family))
    assert mean == pytest.approx(log_kl, abs=0.1)
    damage[:, 0] *= 1.3
    _, near = surrogate.predict(Traits.of(damage, family))
    other, families = plans(rng, 30)
    _, far = surrogate.predict(Traits.of(other, families))
    assert stderr.mean() < near.mean() < far.mean()


def test_the_scale_of_the_damage_cancels_in_the_spread():
    damage, family = plans(np.random.default_rng(0), 5)
    once, tenfold = Traits.of(damage, family), Traits.of(10 * damage, family)
    assert tenfold.spread == pytest.approx(once.spread)
    assert tenfold.total == pytest.approx(once.total + np.log(10))
    assert (once.spread**2).sum(1) == pytest.approx(1)


def test_what_is_measured_with_noise_is_believed_in_part():
    rng = np.random.default_rng(0)
    damage, family = plans(rng, 120)
    log_kl, traits = truth(damage, family), Traits.of(damage, family)
    luck, common = 0.3 * rng.standard_normal(120), 0.2
    noise = 0.3**2 * np.eye(120) + common**2
    surrogate = Surrogate(traits, log_kl + luck + common, noise)
    left = surrogate.expected - log_kl
    assert left.std() < luck.std() / 1.5
    assert np.corrcoef(surrogate.expected, log_kl)[0, 1] > np.corrcoef(log_kl + luck, log_kl)[0, 1]


def test_without_noise_what_was_measured_is_believed():
    damage, family = plans(np.random.default_rng(0), 20)
    log_kl = truth(damage, family)
    assert Surrogate(Traits.of(damage, family), log_kl).expected == pytest.approx(log_kl)
