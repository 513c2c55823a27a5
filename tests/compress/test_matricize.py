from math import prod

import pytest
import torch
from torch import nn

from lrsearch.compress import matricize
from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import gram, input_rows, row_chunks, to_matrix


def test_rows_times_weight_matrix_is_the_output(layer, layer_input):
    rows, matrix = input_rows(layer, layer_input), to_matrix(layer.weight, layer_spec(layer, "layer"))
    product = torch.cat(list(rows @ matrix.mT), -1)  # (positions, out)
    output = layer(layer_input).movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).flatten(0, -2)
    if layer.bias is not None:
        product = product + layer.bias
    torch.testing.assert_close(product, output)


def test_rows_of_an_unbatched_input(layer, layer_input):
    torch.testing.assert_close(input_rows(layer, layer_input[0]), input_rows(layer, layer_input[:1]))


@pytest.mark.parametrize(("most", "chunks"), [(0, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (100, [4])])
def test_rows_in_chunks_of_examples_are_the_same(layer, layer_input, monkeypatch, most, chunks):
    per_example = layer_input[0].numel() * (1 if isinstance(layer, nn.Linear) else prod(layer.kernel_size))
    monkeypatch.setattr(matricize, "ROWS_CHUNK", most * per_example)
    other = torch.randn_like(layer_input)
    parts = list(row_chunks(layer, layer_input, other))
    whole = input_rows(layer, layer_input), input_rows(layer, other)
    assert [part.shape[1] * 4 // whole[0].shape[1] for part, _ in parts] == chunks
    assert all(torch.equal(torch.cat(halves, 1), rows) for halves, rows in zip(zip(*parts, strict=True), whole, strict=True))


def test_gram_sums_outer_products():
    rows = torch.randn(2, 5, 3)
    by_hand = torch.stack([sum(torch.outer(x, x) for x in group) for group in rows])
    torch.testing.assert_close(gram(rows), by_hand)
    total = torch.ones(2, 3, 3)
    assert gram(rows, total) is total
    torch.testing.assert_close(total, by_hand + 1)
