import torch
from torch import nn

from lrsearch.compress.inventory import layer_spec
from lrsearch.compress.matricize import gram, input_rows, to_matrix


def test_rows_times_weight_matrix_is_the_output(layer, layer_input):
    groups = layer_spec(layer, "layer").groups
    rows, matrix = input_rows(layer, layer_input), to_matrix(layer.weight, groups)
    product = torch.cat(list(rows @ matrix.mT), -1)  # (positions, out)
    output = layer(layer_input).movedim(-1 if isinstance(layer, nn.Linear) else -3, -1).flatten(0, -2)
    if layer.bias is not None:
        product = product + layer.bias
    torch.testing.assert_close(product, output)


def test_rows_of_an_unbatched_input(layer, layer_input):
    torch.testing.assert_close(input_rows(layer, layer_input[0]), input_rows(layer, layer_input[:1]))


def test_gram_sums_outer_products():
    rows = torch.randn(2, 5, 3)
    by_hand = torch.stack([sum(torch.outer(x, x) for x in group) for group in rows])
    torch.testing.assert_close(gram(rows), by_hand)
