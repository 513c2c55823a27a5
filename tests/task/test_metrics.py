"""The metrics that are built in."""

import pytest
import torch

from lrsearch.task.metrics import R2


def test_labels_of_regression_are_never_broadcast():
    squared = R2().sums(torch.arange(4.0), torch.zeros(4, 1))[:, 0]
    assert torch.equal(squared, torch.arange(4.0).double() ** 2)
    with pytest.raises(RuntimeError, match="shape"):
        R2().sums(torch.ones(4, 3), torch.ones(4, 1))
