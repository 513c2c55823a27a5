"""``task: auto`` chooses by outputs and labels, and says why."""

import pytest
import torch

from lrsearch.task.auto import choose_task

N, IMAGES, IDS = 6, torch.randn(6, 3, 8, 8), torch.arange(30).view(6, 5)
LOGITS, ONE = torch.randn(N, 4), torch.randn(N, 1)
CLASSES, BITS = torch.arange(N) % 4, (torch.arange(N * 4) % 3 > 0).view(N, 4)


@pytest.mark.parametrize(("raw", "labels", "inputs", "name", "probabilities"), [
    (LOGITS, CLASSES, IMAGES, "classification", False),
    (LOGITS, CLASSES[:, None], IMAGES, "classification", False),
    (LOGITS, None, IMAGES, "classification", False),
    (LOGITS, torch.eye(4)[CLASSES], IMAGES, "classification", False),
    (LOGITS.softmax(-1), CLASSES, IMAGES, "classification", True),
    (LOGITS.softmax(-1), None, IMAGES, "classification", True),
    (LOGITS.softmax(-1).half(), None, IMAGES, "classification", True),
    (LOGITS, BITS.float(), IMAGES, "binary", False),
    (LOGITS.sigmoid(), BITS, IMAGES, "binary", True),
    (LOGITS.sigmoid(), None, IMAGES, "binary", True),
    (ONE, torch.arange(N) % 2, IMAGES, "binary", False),
    (ONE[:, 0], (torch.arange(N) % 2).float(), IMAGES, "binary", False),
    (ONE.sigmoid(), torch.arange(N)[:, None] % 2, IMAGES, "binary", True),
    (ONE, torch.rand(N), IMAGES, "regression", None),
    (ONE, None, IMAGES, "regression", None),
    (LOGITS, torch.rand(N, 4), IMAGES, "regression", None),
    (torch.randn(N, 5, 8, 8), torch.zeros(N, 8, 8, dtype=torch.long), IMAGES, "segmentation", False),
    (torch.randn(N, 5, 8, 8), None, IMAGES, "segmentation", False),
    (torch.randn(N, 5, 8, 8).softmax(1), None, IMAGES, "segmentation", True),
    (torch.randn(N, 3, 8, 8), None, IMAGES, "regression", None),
    (torch.randn(N, 5, 9), IDS, {"input_ids": IDS}, "tokens", False),
    ({"logits": torch.randn(N, 5, 9)}, None, {"input_ids": IDS}, "tokens", False),
    ({"last_hidden_state": torch.randn(N, 5, 9), "pooler": None}, None, {"input_ids": IDS}, "embedding", None),
    (torch.nn.functional.normalize(LOGITS), None, IMAGES, "embedding", None),
    ((LOGITS, ONE), None, IMAGES, "several", None),
    ({"boxes": torch.randn(N, 4), "scores": LOGITS.softmax(-1)}, None, IMAGES, "several", None),
])
def test_the_task_that_outputs_and_labels_tell(raw, labels, inputs, name, probabilities):
    task, why = choose_task(raw, labels, inputs)
    assert task.name == name
    assert getattr(task, "probabilities", None) == probabilities
    assert len(why) > 10


def test_the_output_that_is_named_counts():
    raw = {"aux": ONE, "logits": LOGITS}
    assert choose_task(raw, None, IMAGES)[0].picked(raw) is LOGITS
    task, _ = choose_task(raw, None, IMAGES, "aux")
    assert task.name == "regression"
    assert task.picked(raw) is ONE
