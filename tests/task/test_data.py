from collections import UserDict

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lrsearch.errors import DataError
from lrsearch.task import data
from lrsearch.task.data import Examples, shuffled
from lrsearch.task.fingerprints import refuse_overlap
from lrsearch.task.forward import tensors

X, Y = torch.arange(40.0).view(10, 4), torch.arange(10) % 3


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


KINDS = {
    "pair": (X, Y),
    "tensor dataset": TensorDataset(X, Y),
    "dataset": Listed(list(zip(X, Y, strict=True))),
    "dataset with int labels": Listed(list(zip(X, Y.tolist(), strict=True))),
}


@pytest.mark.parametrize("cap", [data.MEMORY_CAP, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_data_reads_the_same(monkeypatch, kind, cap):
    monkeypatch.setattr(data, "MEMORY_CAP", cap)
    order = [7, 2, 9, 0, 5]
    examples = Examples(kind, "score", order)
    batches = list(examples.batches(2))
    assert [len(b) for b in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([b.inputs for b in batches]), X[order])
    assert torch.equal(torch.cat([b.labels for b in batches]), Y[order])
    assert torch.equal(examples.labels(), Y[order])
    part = examples.part([3, 1])
    assert (len(examples), len(part)) == (5, 2)
    assert torch.equal(next(part.batches(5)).inputs, X[[0, 2]])


@pytest.mark.parametrize("nested", [lambda d: (d, Y), lambda d: UserDict({**d, "label": Y}), lambda d: ({"both": d}, Y)])
def test_a_mapping_that_is_no_dict_is_read_as_one(nested):
    read, plain = (Examples(nested(kind({"a": X, "b": X + 1})), "score") for kind in (UserDict, dict))
    batch, same = next(read.batches(10)), next(plain.batches(10))
    assert len(read) == 10
    assert batch.inputs.keys() == same.inputs.keys()
    assert all(torch.equal(a, b) for a, b in zip(tensors(batch.inputs), tensors(same.inputs), strict=True))
    assert torch.equal(batch.labels, Y)


BAD = {
    "nothing": None,
    "empty pair": (X[:0], Y[:0]),
    "empty dataset": Listed([]),
    "pair of unequal lengths": (X, Y[:9]),
    "list of two tensors": [X, X],
    "number": 3,
    "dataset of triples": Listed([(X[0], X[0], Y[0])]),
    "dataset of images": Listed([("image.png", 1)]),
    "labels on some": Listed([(X[0], 0), (X[1], None)]),
    "examples of no input": Listed([{"label": 1}]),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_wrong_data_are_refused(bad):
    with pytest.raises(DataError, match=r"^data\.score"):
        Examples(bad, "score")


def test_the_shuffle_is_fixed_and_a_permutation():
    assert shuffled(50) == shuffled(50)
    assert sorted(shuffled(50)) == list(range(50)) != shuffled(50)


def test_overlap_names_both_sets_and_the_inputs():
    calibration, score = Examples((X[:5], Y[:5]), "calibration"), Examples((X[[3, 4, 4, 8]], Y[:4]), "score")
    with pytest.raises(DataError, match=r"data\.calibration and data\.score.*got 3 inputs in both, in data.score at 0, 1, 2"):
        refuse_overlap(score, Examples((X[9:], Y[9:]), "train"), calibration)


def test_only_the_score_data_must_be_apart():
    calibration, train = Examples((X[:5], Y[:5]), "calibration"), Examples((X[:7], Y[:7]), "train")
    assert refuse_overlap(Examples((X[7:], Y[7:]), "score"), calibration, train).keys() == {"score", "calibration", "train"}
    with pytest.raises(DataError, match=r"data\.train and data\.score.*got 1 inputs in both"):
        refuse_overlap(Examples((X[6:], Y[6:]), "score"), calibration, train)


def test_fingerprints_are_of_the_examples_whatever_their_order():
    def prints(rows, labels=Y):
        return refuse_overlap(Examples((X[:2], Y[:2]), "score"), Examples((X[rows], labels[rows]), "calibration"))

    first = prints([4, 5, 6])
    assert first.keys() == {"calibration", "score"}
    assert prints([6, 4, 5]) == first
    assert prints([4, 5, 7])["calibration"] != first["calibration"]
    assert prints([4, 5, 7])["score"] == first["score"]
    assert prints([4, 5, 6], Y + 1)["calibration"] != first["calibration"]


class Augmented(Listed):
    """Other inputs at every reading."""

    def __init__(self, items):
        super().__init__(items)
        self.read = 0

    def __getitem__(self, index):
        self.read += 1
        return self.items[index][0] + self.read, self.items[index][1]


@pytest.mark.parametrize("cap", [data.MEMORY_CAP, 0])
def test_data_that_read_differently_each_time_are_known(monkeypatch, cap):
    monkeypatch.setattr(data, "MEMORY_CAP", cap)
    items = list(zip(X, Y, strict=True))
    assert Examples(Augmented(items), "calibration").random
    assert Examples(Augmented(items), "calibration").part([1, 2]).random
    assert not Examples(Listed(items), "calibration").random


def test_a_part_of_a_loader_beyond_the_cap_is_read_again_and_not_kept(monkeypatch):
    monkeypatch.setattr(data, "MEMORY_CAP", 0)
    read = []

    def collated(items):
        read.append(len(items))
        return torch.stack([x for x, _ in items]), torch.tensor([int(y) for _, y in items])

    examples = Examples(DataLoader(TensorDataset(X, Y), 2, collate_fn=collated), "train")
    part = examples.part([4, 1, 3])
    before = len(read)
    assert torch.equal(torch.cat([b.inputs for b in part.batches(2)]), X[[2, 3, 6, 7, 8, 9]])
    assert len(read) == before + 5
    assert (len(part), part.units) == (6, 3)
    assert torch.equal(part.at(torch.tensor([1])).inputs, X[[6, 7]])
    assert torch.equal(next(part.part([2]).batches(2)).inputs, X[[8, 9]])


@pytest.mark.parametrize("cap", [data.MEMORY_CAP, 0])
def test_of_a_loader_whose_shapes_vary_the_batch_that_is_not_finite_is_named(monkeypatch, cap):
    monkeypatch.setattr(data, "MEMORY_CAP", cap)
    batches = [torch.ones(2, 3 + i) for i in range(5)]
    batches[3][1, 2] = torch.nan
    whole = Examples(DataLoader(batches, batch_size=None), "score")
    for examples in (whole, whole.part([4, 3, 1]).part([2, 1])):
        with pytest.raises(DataError, match=r"^data\.score: inputs must be finite; got NaN or infinity in batch 3\. "):
            examples.digests()


@pytest.mark.parametrize(("cap", "device", "pinned"), [(0, "cuda", 2), (0, "cpu", 0), (data.MEMORY_CAP, "cuda", 0)])
def test_what_is_streamed_to_cuda_goes_through_pinned_memory(monkeypatch, cap, device, pinned):
    monkeypatch.setattr(data, "MEMORY_CAP", cap)
    examples, told = Examples([(torch.ones(1), torch.tensor(i)) for i in range(6)], "train"), []
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda t: told.append("pinned") or t)
        patch.setattr(torch.Tensor, "to", lambda t, to, non_blocking=False: told.append((str(to), non_blocking)) or t)
        next(examples.batches(4, device))
    assert told == (["pinned", (device, True)] * pinned or [(device, False)] * 2)
