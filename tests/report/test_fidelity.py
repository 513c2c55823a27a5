import numpy as np
import pandas as pd
import pytest

from lrsearch.report.fidelity import beside_cost, fidelity_figure, fidelity_frame, taus

COSTS = np.linspace(0.1, 0.9, 12)


def frame(noise, own=1.0):
    """Plans whose quality is that of their cost and something of their own, which the rung sees through ``noise``."""
    generator = np.random.default_rng(0)
    secret = 0.1 * generator.permutation(12)
    return pd.DataFrame({
        "trial": range(12), "cost": COSTS, "rung 0": -4 * np.log(COSTS) + own * secret + noise * generator.normal(size=12),
        "long": -3 * np.log(COSTS) + secret,
    })


def test_the_cost_alone_makes_tau_high_but_not_beside_cost():
    (found,) = taus(frame(noise=0.3, own=0.0)).to_dict("records")
    assert found["tau"] > 0.6
    assert abs(found["tau_beside_cost"]) < 0.4


def test_a_rung_that_sees_what_is_their_own_has_tau_one_beside_cost():
    (found,) = taus(frame(noise=0.0)).to_dict("records")
    assert found["rung"] == 0
    assert found["tau_beside_cost"] == pytest.approx(1.0)
    assert found["p"] < 1e-4


def test_a_parabola_in_log_cost_leaves_nothing():
    x = np.log(COSTS)
    assert np.allclose(beside_cost(COSTS, 3 + 2 * x - x**2), 0)
    assert not np.allclose(beside_cost(COSTS[:5], (x**2)[:5]), 0)


def score(kl, metric):
    return {"divergence": kl, "metric": metric}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("divergence", {"rung 0": 0.0, "rung 1": -1.0, "long": -4.0}), ("metric", {"rung 0": -0.5, "rung 1": -0.6, "long": -0.9})],
)
def test_quality_is_log_kl_or_the_negated_metric(objective, expected):
    row = {"trial": 3, "cost": {"params": 30}, "rungs": [score(1.0, 0.5), score(0.1, 0.6)], "long": score(1e-9, 0.9)}
    (found,) = fidelity_frame([row], (objective, "params"), {"params": 100}).to_dict("records")
    assert found == pytest.approx({"trial": 3, "cost": 0.3, **expected})


def test_the_figure_has_a_pair_of_panels_per_rung_with_their_taus():
    whole = frame(noise=0.0).assign(**{"rung 1": lambda f: f["rung 0"]})
    figure = fidelity_figure(whole, "title", "log10 KL")
    assert len(figure.data) == 4
    texts = [a.text for a in figure.layout.annotations]
    assert texts[1].startswith("rung 1: tau 0.")
    assert texts[2].startswith("beside cost: tau 1.00")
