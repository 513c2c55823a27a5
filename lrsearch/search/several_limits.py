"""Several limits: the multiple-choice knapsack where more than one of them binds, by linear and integer programming."""

import numpy as np
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from lrsearch.search.exchanges import Floats, Indices, Limits, PerMetric, fits

TOLERANCES = dict.fromkeys(("primal_feasibility_tolerance", "dual_feasibility_tolerance", "ipm_optimality_tolerance"), 1e-10)  # the least
GAP, NODES = 0.02, 1_000  # of the integer program: share of the damage that the optimum may save; nodes of its branch and bound
PRESENT = 1e-9  # share of a layer from which on the relaxation takes a choice


def relaxed(layer: Indices, damage: Floats, costs: PerMetric, limits: Limits) -> Indices | None:
    """The linear relaxation's solution, its split layers, one per limit at most, rounded to the cheaper side; None if that breaks a limit.

    Args:
        layer: ``(choices,)`` index of the layer each choice belongs to, ascending.
        damage: ``(choices,)``.
        costs: metric → ``(choices,)``.
        limits: metric → largest allowed sum.
    """
    rows, ends = _scaled(costs, limits)
    each = _one_each(layer)
    result = linprog(
        _unit_damage(damage), A_ub=rows, b_ub=ends, A_eq=each, b_eq=np.ones(each.shape[0]), method="highs", options=TOLERANCES,
    )
    return _rounded(layer, result.x, costs, limits) if result.status == 0 else None


def integer(layer: Indices, damage: Floats, costs: PerMetric, limits: Limits, gap: float = GAP) -> Indices | None:
    """A pick within all limits, a share of ``gap`` above the least damage at most; arguments as above.

    None if there is none, or ``NODES`` nodes are too few to find one. Nodes are counted, not seconds, so that no plan
    depends on how busy the machine is.
    """
    rows, ends = _scaled(costs, limits)
    result = milp(
        _unit_damage(damage), integrality=np.ones(len(layer)), bounds=Bounds(0, 1),
        constraints=[LinearConstraint(_one_each(layer), 1, 1), LinearConstraint(rows, ub=ends)],
        options={"mip_rel_gap": gap, "node_limit": NODES},
    )
    if result.x is None:
        return None
    pick = _largest(layer, result.x)
    return pick if fits(pick, costs, limits) else None


def _unit_damage(damage: Floats) -> Floats:
    return damage / (float(damage.max()) or 1.0)


def _one_each(layer: Indices) -> sp.csr_array:
    n = len(layer)
    return sp.csr_array((np.ones(n), (layer, np.arange(n))), shape=(int(layer[-1]) + 1, n))


def _unit(limit: float) -> float:
    return limit if limit > 0 else 1.0


def _scaled(costs: PerMetric, limits: Limits) -> tuple[Floats, Floats]:
    """Each metric's costs as a share of its limit, ``(metrics, choices)``, and the limits likewise, ``(metrics,)``."""
    return np.stack([costs[m] / _unit(limits[m]) for m in limits]), np.array([limits[m] / _unit(limits[m]) for m in limits])


def _largest(layer: Indices, share: Floats) -> Indices:
    """Each layer's choice of the largest share."""
    return np.array([int(np.flatnonzero(layer == k)[share[layer == k].argmax()]) for k in range(int(layer[-1]) + 1)])


def _rounded(layer: Indices, share: Floats, costs: PerMetric, limits: Limits) -> Indices | None:
    """Each layer's largest share; where that breaks a limit, the layers that lower it most cheaply."""
    pick = _largest(layer, share)
    over = sum((costs[m] / _unit(limits[m]) for m in limits), np.zeros(len(layer)))
    for k in np.flatnonzero(np.bincount(layer[share > PRESENT]) > 1):
        split = np.flatnonzero((layer == k) & (share > PRESENT))
        pick[k] = split[over[split].argmin()]
    for k in np.argsort([-over[i] for i in pick], kind="stable"):
        if fits(pick, costs, limits):
            return pick
        members = np.flatnonzero(layer == k)
        pick[k] = members[over[members].argmin()]
    return pick if fits(pick, costs, limits) else None
