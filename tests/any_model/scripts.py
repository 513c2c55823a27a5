"""Scripts of users, one function each: a small model of some kind, its data, and a search. By hand: ``python scripts.py NAME``,
which prints what was seen.

Models are tiny and random: what counts is that a search takes them as they are, and that what it says of its front is true.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrsearch
from lrsearch.compress import artifact
from lrsearch.task.data import Examples
from lrsearch.task.stored import task_from_dict

LIMIT = 0.6  # of the dense model's cost
RULE = {
    "density": {"min": 0.1, "max": 0.6, "steps": 3}, "rank_ratio": {"min": 0.1, "max": 0.5, "steps": 2},
    "combined_rank_ratio": {"min": 0.1, "max": 0.1, "steps": 1}, "combined_density": {"min": 0.2, "max": 0.4, "steps": 2},
}  # fmt: skip
SPACE = lrsearch.Space(rules=[lrsearch.Rule(**RULE)])
TWO_STEPS = {"finetune": {"steps": 2, "rungs": 1, "batch": 16}}


@dataclass
class Found:
    """A search, and what it was given."""

    result: lrsearch.Result
    model: nn.Module
    score: Any
    limit: str
    finetuned: bool


@dataclass
class Row:
    """A script, and what is expected of it.

    Attributes:
        task: that is chosen.
        export: whether the export is checked too.
        quick: whether it runs by default.
        refused: what the one line says, where the model is refused.
        needs: a package that is not always there.
        tolerance: of the divergence, computed again in other batches.
    """

    script: Callable[[], Found]
    task: str = "classification"
    export: bool = False
    quick: bool = False
    refused: str = ""
    needs: str = ""
    tolerance: float = 0.01


ROWS: dict[str, Row] = {}


def row(**expected: Any) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Enter a script into the table under its name."""

    def enter(script: Callable[[], Found]) -> Callable[[], Found]:
        ROWS[script.__name__] = Row(script, **expected)
        return script

    return enter


def search(model: nn.Module, calibration: Any, score: Any, limit: str = "params", **settings: Any) -> Found:
    """What all scripts do: two trials of a small space under a budget, into ``runs/study``."""
    budget = lrsearch.Budget(**{limit: LIMIT})
    small = {"trials": 2, "control_points": 1, "sampler": "random"}
    result = lrsearch.search(model, calibration=calibration, score=score, budget=budget, space=SPACE, search=small, **settings)
    return Found(result, model, score, limit, "proxy" in settings)


def images(n: int, seed: int, channels: int = 3, size: int = 8, classes: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=g), torch.randint(classes, (n,), generator=g)


def vectors(n: int, seed: int, *size: int) -> Tensor:
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(seed))


def whole(n: int, seed: int, most: int, *size: int) -> Tensor:
    """Integers from 0 to below ``most``."""
    return torch.randint(most, (n, *size), generator=torch.Generator().manual_seed(seed))


def cnn(channels: int = 3, outputs: int = 5) -> nn.Sequential:
    """Images (n, channels, 8, 8) → (n, outputs)."""
    first = nn.Conv2d(channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(16, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, outputs))


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, outputs))


# networks for images


@row(export=True, quick=True)
def sequential_cnn() -> Found:
    return search(cnn().eval(), images(48, 0), images(32, 1))


@row()
def cnn_1d() -> Found:
    model = nn.Sequential(nn.Conv1d(4, 16, 5), nn.ReLU(), nn.Conv1d(16, 24, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 5))
    return search(model, (vectors(48, 0, 4, 30), whole(48, 0, 5)), (vectors(32, 1, 4, 30), whole(32, 1, 5)), "weight_bytes")


@row()
def resnet18_at_32() -> Found:
    import torchvision

    model = torchvision.models.resnet18(num_classes=10).eval()
    return search(model, images(16, 0, size=32, classes=10), images(8, 1, size=32, classes=10))


@row()
def mobilenet_v3_small() -> Found:
    import torchvision

    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # they learn what they normalise at once, so that the outputs are more than biases
    with torch.no_grad():
        model(images(64, 2, size=32)[0])
    model.eval()
    return search(model, images(16, 0, size=32, classes=10), images(8, 1, size=32, classes=10), "weight_bytes")


@row(export=True)
def vision_transformer() -> Found:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # torchvision begins at zero
    return search(model, images(32, 0, size=16), images(16, 1, size=16))


@row(export=True)
def conv3d() -> Found:
    model = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 12, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 5))
    return search(model, (vectors(32, 0, 1, 7, 7, 7), whole(32, 0, 5)), (vectors(16, 1, 1, 7, 7, 7), whole(16, 1, 5)))


@row(export=True, quick=True, task="segmentation")
def segmentation() -> Found:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    return search(model, (images(32, 0)[0], whole(32, 0, 4, 8, 8)), (images(16, 1)[0], whole(16, 1, 4, 8, 8)), "weight_bytes")


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU())
        self.decoder = nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1)

    def forward(self, x):
        return self.decoder(self.encoder(x))


@row(export=True, task="regression")
def autoencoder_with_transposed_convolutions() -> Found:
    calibration, score = images(32, 0)[0], images(16, 1)[0]
    return search(AutoEncoder(), (calibration, calibration), (score, score))


# Hugging Face


def tiny_bert(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=16,
        num_labels=3, initializer_range=0.3,
    )
    return getattr(transformers, kind)(config).eval()


def tokens(n: int, seed: int, padded: bool = False) -> dict[str, Tensor]:
    ids = whole(n, seed, 50, 12)
    if not padded:
        return {"input_ids": ids}
    mask = (torch.arange(12) < whole(n, seed + 9, 8, 1) + 5).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@row(needs="transformers")
def hugging_face_vit() -> Found:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4, num_labels=5,
        initializer_range=0.3,
    )
    model = ViTForImageClassification(config).eval()
    (a, y), (b, z) = images(32, 0, size=16), images(16, 1, size=16)
    return search(model, {"pixel_values": a, "labels": y}, {"pixel_values": b, "labels": z})


@row(needs="transformers", task="classification")
def hugging_face_bert() -> Found:
    model = tiny_bert("BertForSequenceClassification")
    return search(model, {**tokens(32, 0), "labels": whole(32, 0, 3)}, {**tokens(16, 1), "labels": whole(16, 1, 3)}, "weight_bytes")


@row(needs="transformers", export=True)
def hugging_face_bert_with_mask() -> Found:
    from transformers import BatchEncoding

    model = tiny_bert("BertForSequenceClassification")
    return search(model, (BatchEncoding(tokens(32, 0, True)), whole(32, 0, 3)), (BatchEncoding(tokens(16, 1, True)), whole(16, 1, 3)))


@row(needs="transformers", task="tokens")
def hugging_face_token_logits_with_mask() -> Found:
    model = tiny_bert("BertForTokenClassification")
    calibration, score = tokens(32, 0, True), tokens(16, 1, True)
    a = whole(32, 0, 3, 12).where(calibration["attention_mask"] == 1, -100)
    b = whole(16, 1, 3, 12).where(score["attention_mask"] == 1, -100)
    return search(model, {**calibration, "labels": a}, {**score, "labels": b})


@row(needs="transformers", task="embedding")
def hugging_face_embeddings() -> Found:
    return search(tiny_bert("BertModel"), tokens(32, 0, True), tokens(16, 1, True))


@row(needs="datasets", export=True)
def hugging_face_dataset() -> Found:
    import datasets

    def data(n: int, seed: int) -> datasets.Dataset:
        x, y = images(n, seed)
        return datasets.Dataset.from_dict({"image": x.numpy(), "label": y.numpy()}).with_format("torch")

    return search(cnn(), data(48, 0), data(32, 1))


class WithProtocol:
    """Examples as dicts, by index, as data sets of Hugging Face have them."""

    def __init__(self, n: int, seed: int) -> None:
        self.x, self.y = images(n, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.x[index], "label": self.y[index]}


@row()
def data_set_of_dicts() -> Found:
    return search(cnn(), WithProtocol(48, 0), WithProtocol(32, 1))


# sequences


class Recurrent(nn.Module):
    """(n, steps, 8) → (n, 5)."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.project, self.cell, self.head = nn.Linear(8, 64), kind(64, 16, batch_first=True), nn.Linear(16, 5)
        self.hidden = nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.cell(self.hidden(self.project(x).relu()))[0][:, -1])


@row(export=True)
def lstm() -> Found:
    return search(Recurrent(nn.LSTM), (vectors(32, 0, 10, 8), whole(32, 0, 5)), (vectors(16, 1, 10, 8), whole(16, 1, 5)))


@row()
def gru() -> Found:
    return search(Recurrent(nn.GRU), (vectors(32, 0, 10, 8), whole(32, 0, 5)), (vectors(16, 1, 10, 8), whole(16, 1, 5)))


class Language(nn.Module):
    """Tokens (n, 12) → logits (n, 12, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 5)

    def forward(self, ids):
        return self.head(self.block(self.embed(ids)))


@row(task="tokens", export=True)
def token_logits() -> Found:
    torch.manual_seed(0)
    return search(Language(), (whole(32, 0, 20, 12), whole(32, 2, 5, 12)), (whole(16, 1, 20, 12), whole(16, 3, 5, 12)))


# structure


class Tied(nn.Module):
    """An autoencoder of vectors whose second half is the first one, used again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.mix, self.two, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(self.mix(self.one(x).relu()).relu()).relu())


@row(export=True)
def tied_weights() -> Found:
    return search(Tied(), (vectors(48, 0, 24), whole(48, 0, 5)), (vectors(32, 1, 24), whole(32, 1, 5)))


class ImageAndVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = cnn(outputs=24), mlp(7, 24), nn.Linear(24, 5)

    def forward(self, image, vector):
        return self.head(self.image(image) + self.vector(vector))


@row(export=True, quick=True)
def two_inputs() -> Found:
    (a, y), (b, z) = images(48, 0), images(32, 1)
    return search(ImageAndVector(), ((a, vectors(48, 0, 7)), y), ((b, vectors(32, 1, 7)), z))


class Experts(nn.Module):
    """Each example goes through the expert that its gate prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        chosen, out = self.gate(x).argmax(1), x.new_zeros(len(x), 16)
        for number, expert in enumerate(self.experts):
            if (mine := chosen == number).any():
                out[mine] = expert(x[mine])
        return self.head(out)


@row()
def mixture_of_experts() -> Found:
    torch.manual_seed(0)
    return search(Experts(), (vectors(64, 0, 12), whole(64, 0, 5)), (vectors(32, 1, 12), whole(32, 1, 5)))


@row(export=True)
def compiled() -> Found:
    return search(torch.compile(cnn()), images(48, 0), images(32, 1))


@row()
def data_parallel() -> Found:
    return search(nn.DataParallel(cnn()), images(48, 0), images(32, 1), "weight_bytes")


# data


@row()
def data_loader() -> Found:
    calibration = DataLoader(TensorDataset(*images(48, 0)), batch_size=10, shuffle=True)
    return search(cnn(), calibration, DataLoader(TensorDataset(*images(32, 1)), batch_size=10))


@row()
def no_labels() -> Found:
    return search(cnn(), images(48, 0)[0], images(32, 1)[0])


@row()
def numpy_arrays() -> Found:
    (a, y), (b, z) = images(48, 0), images(32, 1)
    return search(cnn(), (a.numpy(), y.numpy()), (b.numpy(), np.asarray(z)))


class Cast(nn.Module):
    """Computes with integers as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cnn()

    def forward(self, x):
        return self.net(x / 255 if x.dtype == torch.uint8 else x.float())


@row(export=True)
def integer_inputs() -> Found:
    return search(Cast(), (whole(48, 0, 9, 3, 8, 8), whole(48, 0, 5)), (whole(32, 1, 9, 3, 8, 8), whole(32, 1, 5)))


@row()
def uint8_inputs() -> Found:
    a, b = (whole(n, seed, 256, 3, 8, 8).to(torch.uint8) for n, seed in ((48, 0), (32, 1)))
    return search(Cast(), (a, whole(48, 0, 5)), (b, whole(32, 1, 5)), "weight_bytes")


@row()
def bool_inputs() -> Found:
    return search(Cast(), (images(48, 0)[0] > 0, whole(48, 0, 5)), (images(32, 1)[0] > 0, whole(32, 1, 5)))


def of_type(dtype: torch.dtype, limit: str) -> Found:
    torch.manual_seed(0)
    (a, y), (b, z) = images(48, 0), images(32, 1)
    return search(cnn().to(dtype), (a.to(dtype), y), (b.to(dtype), z), limit)


@row(export=True)
def float16() -> Found:
    return of_type(torch.float16, "params")


@row()
def bfloat16() -> Found:
    return of_type(torch.bfloat16, "weight_bytes")


@row(export=True)
def float64() -> Found:
    return of_type(torch.float64, "weight_bytes")


# outputs


def numbers(outputs: int, labels: tuple[int, ...], **settings: Any) -> Found:
    calibration, score = (vectors(48, 0, 12), vectors(48, 2, *labels)), (vectors(32, 1, 12), vectors(32, 3, *labels))
    return search(mlp(12, outputs), calibration, score, **settings)


@row(task="regression", quick=True, export=True)
def regression_of_one_value() -> Found:
    return numbers(1, ())


@row(task="regression")
def regression_with_a_column_of_labels() -> Found:
    return numbers(1, (1,), limit="weight_bytes")


@row(task="regression")
def regression_of_several_values() -> Found:
    return numbers(3, (3,))


class Squeezed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze(-1)


@row(task="regression")
def regression_of_flat_outputs_with_a_column_of_labels() -> Found:
    calibration, score = (vectors(48, 0, 12), vectors(48, 2, 1)), (vectors(32, 1, 12), vectors(32, 3, 1))
    return search(Squeezed(*mlp(12, 1)), calibration, score)


@row(task="binary")
def one_logit_with_float_labels() -> Found:
    return search(mlp(12, 1), (vectors(48, 0, 12), whole(48, 0, 2).float()), (vectors(32, 1, 12), whole(32, 1, 2).float()))


@row(task="binary", export=True)
def multi_label() -> Found:
    return search(mlp(12, 4), (vectors(48, 0, 12), whole(48, 0, 2, 4).float()), (vectors(32, 1, 12), whole(32, 1, 2, 4).float()))


@row()
def ends_in_softmax() -> Found:
    return search(nn.Sequential(*cnn(), nn.Softmax(1)), images(48, 0), images(32, 1))


class Detector(nn.Module):
    """Images → scores (n, 3) and boxes (n, 4), as a dict or a tuple."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.body, self.scores, self.boxes, self.named = cnn(outputs=24), nn.Linear(24, 3), nn.Linear(24, 4), named

    def forward(self, x):
        h = self.body(x).relu()
        return {"scores": self.scores(h), "boxes": self.boxes(h)} if self.named else (self.scores(h), self.boxes(h))


@row(task="several", quick=True, export=True)
def detector_that_returns_a_dict() -> Found:
    return search(Detector(True), images(48, 0)[0], images(32, 1)[0])


@row(task="several")
def detector_that_returns_a_tuple() -> Found:
    return search(Detector(False), images(48, 0)[0], images(32, 1)[0])


@row(task="several")
def detector_with_labels_for_each_output() -> Found:
    def data(n: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        return images(n, seed)[0], {"scores": whole(n, seed, 3), "boxes": vectors(n, seed, 4)}

    return search(Detector(True), data(48, 0), data(32, 1))


@row(task="several")
def detector_whose_outputs_are_weighed() -> Found:
    weighed = {"task": {"scores": "classification", "boxes": "regression"}, "output": {"scores": 1.0, "boxes": 0.5}}
    return search(Detector(True), images(48, 0)[0], images(32, 1)[0], **weighed)


@row()
def one_output_of_a_detector() -> Found:
    return search(Detector(True), images(48, 0, classes=3), images(32, 1, classes=3), output="scores")


class Encoder(nn.Module):
    """Vectors of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12, 16)

    def forward(self, x):
        return F.normalize(self.net(x), dim=1)


@row(task="embedding", export=True)
def embedding_model() -> Found:
    return search(Encoder(), vectors(48, 0, 12), vectors(32, 1, 12))


# two steps of finetuning


@row(task="regression", quick=True)
def finetuned_regression() -> Found:
    return numbers(2, (2,), train=(vectors(32, 7, 12), vectors(32, 8, 2)), proxy=TWO_STEPS)


@row(task="segmentation")
def finetuned_segmentation() -> Found:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    a, b, c = ((images(n, seed)[0], whole(n, seed, 4, 8, 8)) for n, seed in ((32, 0), (16, 1), (32, 2)))
    return search(model, a, b, train=c, proxy=TWO_STEPS)


@row(needs="transformers")
def finetuned_hugging_face_bert() -> Found:
    a, b, c = ({**tokens(n, seed, True), "labels": whole(n, seed, 3)} for n, seed in ((32, 0), (16, 1), (32, 2)))
    return search(tiny_bert("BertForSequenceClassification"), a, b, train=c, proxy=TWO_STEPS)


# what cannot be taken: one line, which says what to do


@row(refused="TorchScript cannot be taken apart.*Bring the model that it was made of")
def torchscript_trace() -> Found:
    return search(torch.jit.trace(cnn().eval(), images(2, 0)[0]), images(48, 0), images(32, 1))


@row(refused="TorchScript cannot be taken apart.*Bring the model that it was made of")
def torchscript_script() -> Found:
    return search(torch.jit.script(cnn().eval()), images(48, 0), images(32, 1))


@row(refused="quantised model.*Bring the model in floating point", quick=True)
def dynamic_int8() -> Found:
    model = torch.ao.quantization.quantize_dynamic(mlp(12, 5), {nn.Linear})
    return search(model, (vectors(48, 0, 12), whole(48, 0, 5)), (vectors(32, 1, 12), whole(32, 1, 5)))


@row(refused="lazy modules have no weights yet.*Run the model once")
def lazy() -> Found:
    return search(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), images(48, 0), images(32, 1))


@row(refused="exported program.*Bring the model that it was exported from")
def exported_program() -> Found:
    return search(torch.export.export(cnn().eval(), (images(2, 0)[0],)), images(48, 0), images(32, 1))


@row(refused="Bring the model that it was exported from")
def module_of_an_exported_program() -> Found:
    return search(torch.export.export(cnn().eval(), (images(2, 0)[0],)).module(), images(48, 0), images(32, 1))


@row(refused="at least one Linear layer or convolution")
def no_weights() -> Found:
    return search(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), images(48, 0), images(32, 1))


@row(refused="must name one of the model's outputs.*The model returns scores, boxes")
def unknown_output() -> Found:
    return search(Detector(True), images(48, 0, classes=3), images(32, 1, classes=3), output="masks")


@row(refused="must return tensors")
def no_tensors() -> Found:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn()

        def forward(self, x):
            return ["cat" if logits[0] > 0 else "dog" for logits in self.net(x)]

    return search(Text(), images(48, 0), images(32, 1))


@row(refused="must return the same for the same inputs.*Take out what is random")
def random_forward() -> Found:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn()

        def forward(self, x):
            return self.net(x) + torch.randn(5)

    return search(Noisy(), images(48, 0), images(32, 1))


@row(refused="the model takes image, vector; got extra.*Rename or remove")
def unknown_keys() -> Found:
    (a, y), (b, z) = images(48, 0), images(32, 1)
    calibration, score = ({"image": x, "vector": vectors(len(x), 2, 7), "extra": vectors(len(x), 3, 7)} for x in (a, b))
    return search(ImageAndVector(), (calibration, y), (score, z))


# what is true of every front


def seen(found: Found, export: bool) -> dict[str, Any]:
    """What a script's result shows: the front, and for each member what it costs and how far its outputs are, computed again."""
    result, front = found.result, found.result.front
    about: dict[str, Any] = {"rows": len(front), "limit": found.limit, "finetuned": found.finetuned}
    about |= {"dense": result.dense.to_dict(), "members": []}
    examples = Examples(found.score, "score", model=found.model)
    for index in front.index:
        member, (_, kept) = result.load(index), artifact.read_plan(result.folder / front.model[index])
        task = task_from_dict(kept["task"])
        far = [
            task.divergence(task.run_inference(member, b.inputs), task.run_inference(found.model.eval(), b.inputs))
            for b in examples.batches(10)
        ]
        about["task"] = task.name
        about["members"].append({
            "recorded": float(front.divergence[index]), "computed": float(torch.cat(far).mean()),
            "params": int(front.params[index]), "counted": sum(p.numel() for p in member.parameters()),
            "weight_bytes": int(front.weight_bytes[index]), "steps": int(front.finetune_steps[index]),
        })
    if export:
        certificate = result.export(index=int(front.index[-1]))
        about["unchecked"] = dict(certificate.unchecked)
        about["failures"] = [check.missed() for check in certificate.failures]
        about["checks"] = [check.name for check in certificate.checks]
    return about


def _run(name: str, export: bool, folder: Path) -> None:
    """Run one script in ``folder``: what it shows, or the line with which it was refused, is written there."""
    os.environ["LRSEARCH_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    torch.manual_seed(0)
    started = time.perf_counter()
    try:
        shown = seen(ROWS[name].script(), export)
    except lrsearch.LrsearchError as error:
        shown = {"refused": str(error)}
    except Exception:
        shown = {"failed": traceback.format_exc()}
    (folder / "shown.json").write_text(json.dumps({**shown, "seconds": round(time.perf_counter() - started, 1)}, indent=1))


def alone(name: str, folder: Path, export: bool) -> dict[str, Any]:
    """Run one script in a process of its own, forked from one that has imported lrsearch and done nothing else."""
    process = FORKS.Process(target=_run, args=(name, export, folder))
    process.start()
    process.join()
    written = folder / "shown.json"
    return json.loads(written.read_text()) if written.exists() else {"failed": f"exit code {process.exitcode}"}


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lrsearch.workflows.search", "lrsearch.workflows.export"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--export", action=argparse.BooleanOptionalAction, default=None, help="as the table says by default")
    chosen = parser.parse_args()
    for name in chosen.names:
        with tempfile.TemporaryDirectory() as folder:
            shown = alone(name, Path(folder), ROWS[name].export if chosen.export is None else chosen.export)
        print(name, json.dumps(shown, indent=1), flush=True)


if __name__ == "__main__":
    main()
