"""Which examples of its data a study uses for what."""

import math

from lrsearch.spec.config import ProxyConfig
from lrsearch.task.data import Examples, shuffled
from lrsearch.train.teacher import MOST_HELD_OUT


def split_calibration(calibration: Examples, held_out: float) -> tuple[Examples, Examples]:
    """The examples that layers are fitted to, and the last share of them, which decides."""
    units = calibration.units
    cut = max(1, round(units * (1 - held_out)))
    return calibration.part(range(cut)), calibration.part(range(min(cut, units - 1), units))


def training_part(train: Examples, config: ProxyConfig) -> Examples:
    """As many examples as the finetune uses, to train on or to judge by, so that no more than those are read."""
    finetune = config.finetune
    if not finetune.steps:
        return train.part(range(1))
    trained_on = finetune.steps * train.draws(finetune.batch)
    needed = trained_on + min(MOST_HELD_OUT, math.ceil(trained_on * finetune.held_out / (1 - finetune.held_out)) + 1)
    return train if needed >= train.units else train.part(sorted(shuffled(train.units, finetune.seed)[:needed]))
