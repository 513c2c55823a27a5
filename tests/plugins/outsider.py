"""A package of somebody else's: one of each that a study can name. Nothing inside lrsearch knows of it."""

import numpy as np
import torch
from optuna.samplers import RandomSampler
from torch import nn

from lrsearch.extend import BACKENDS, FORMATS, METRICS, PATTERNS, SAMPLERS, CostMetric, Layout, LowRank, Pattern, Sampler

ASKED, TIMED = [], []


@FORMATS.register
class Outer(LowRank):
    """Two factors, of linear layers alone."""

    name = "outer"

    def refusal(self, layer):
        return "" if layer.kind == "linear" else "outer is for linear layers"

    def max_rank(self, layer):
        return (min(layer.rows, layer.columns),)

    def shapes(self, layer, rank):
        return (rank[0], layer.columns), (rank[0], layer.rows)

    def macs(self, layer, rank):
        return layer.positions * self.params(layer, rank)

    def start(self, weight, problem, rank):
        u, s, v = torch.linalg.svd(weight[0])
        return s[: rank[0], None] * v[: rank[0]], u.T[: rank[0]]

    def compose(self, layer, factors):
        return (factors[1].T @ factors[0]).view(layer.matrix_shape)

    def contract(self, layer, x, factors, conv, bias):
        y = x @ factors[0].T @ factors[1]
        return y if bias is None else y + bias


@PATTERNS.register
class EveryOtherRow(Pattern):
    """Half of the outputs, always the same ones, which a runtime leaves out."""

    name = "every-other-row"
    drops = "outputs"
    density = 0.5

    def refusal(self, layer):
        return "needs an even number of outputs, ungrouped" if layer.groups > 1 or layer.rows % 2 else ""

    def layout(self, layer):
        return Layout((layer.rows, layer.columns), (1,))

    def allowed(self, layer):
        return np.arange(layer.rows) % 2 == 0


@PATTERNS.register
class Diagonals(Pattern):
    """Cyclic diagonals of a linear layer: an atom has a value of each output."""

    name = "diagonals"

    def refusal(self, layer):
        return "" if layer.kind == "linear" else "diagonals are for linear layers"

    def order(self, layer):
        row, diagonal = np.meshgrid(np.arange(layer.rows), np.arange(layer.columns))
        return (row * layer.columns + (row + diagonal) % layer.columns).ravel()

    def layout(self, layer):
        return Layout((layer.columns, layer.rows), (1,))


@METRICS.register
class Energy(CostMetric):
    """Of multiplications and of reading weights; absolute limits may be below 1."""

    name, unit, title, ratio_key = "energy_uj", "microjoules", "energy, % of dense", "energy_ratio"

    def layer(self, layer, plan, cost):
        return 4.6e-6 * cost.macs + 1.6e-4 * cost.weight_bytes

    def rest(self, cost):
        return self.layer(None, None, cost)


@BACKENDS.register
class Eager:
    """Calls the module."""

    name = "eager"

    def version(self):
        return "1"

    def build(self, module: nn.Module, sample, threads):
        def run():
            with torch.inference_mode():
                module(sample)

        TIMED.append(type(module).__name__)
        return [run]


class Noting(RandomSampler):
    """Notes that it was asked."""

    def sample_relative(self, study, trial, search_space):
        ASKED.append(trial.number)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        ASKED.append(trial.number)
        return super().sample_independent(study, trial, param_name, param_distribution)


@SAMPLERS.register
class Noted(Sampler):
    """Random."""

    name = "noted"

    def make(self, seed, proposals):
        return Noting(seed)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 1, 6, 6, generator=generator)
    return x, (x[:, 0, 0].argmax(1)) % 4
