"""Handwritten digits: scikit-learn's bundled images at 32 px, and a MobileNetV3 trained on them."""

import sys
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lrsearch.spec.blobs import LocalStore
from lrsearch.spec.cache import cache_folder

EPOCHS, BATCH, SEED = 16, 64, 0
_SPLITS = {"train": slice(0, 1000), "calibration": slice(1000, 1200), "score": slice(1200, 1797)}


def data(split: Literal["train", "calibration", "score"]) -> TensorDataset:
    """Images ``n x 1 x 32 x 32`` in about [-1, 1] and labels; 1,000, 200 and 597 of them, disjoint."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    x = F.interpolate(x, size=32, mode="bilinear", align_corners=False)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))[_SPLITS[split]]
    return TensorDataset(x[order], torch.from_numpy(digits.target)[order])


def model() -> nn.Module:
    """A MobileNetV3-Small (0.58 M parameters), trained dense on the first call and cached."""
    network: nn.Module = timm.create_model("mobilenetv3_small_050", num_classes=10, in_chans=1)
    store, name = LocalStore(cache_folder() / "examples"), f"digits-mobilenetv3_small_050-{EPOCHS}.safetensors"
    store.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(store.folder / "digits.lock"):  # another process may train it now
        if (saved := store.get(name)) is None:
            print("The example's network is trained first, once: some 15 seconds.", file=sys.stderr, flush=True)
            _train(network, *data("train").tensors)
            store.put(name, save(network.state_dict()))
        else:
            network.load_state_dict(load(saved))
    return network.eval()


def _train(network: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for m in network.modules():
            if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                m.reset_parameters()
        steps = EPOCHS * (len(x) // BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        network.train()
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x))[: len(x) // BATCH * BATCH].view(-1, BATCH):
                loss = F.cross_entropy(network(_shifted(x[index])), y[index], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()


def _shifted(x: Tensor) -> Tensor:
    """Each batch moved by up to two pixels."""
    dy, dx = (int(v) for v in torch.randint(-2, 3, (2,)))
    return torch.roll(F.pad(x, (2, 2, 2, 2), value=-1.0), (dy, dx), (2, 3))[:, :, 2:-2, 2:-2]
