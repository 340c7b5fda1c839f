"""Multi-scale deformable attention: both forms are the sum of the paper, to the bit of float64 that addition leaves."""

import math

import pytest
import torch

from recollect.layers.deformable import DeformableAttention, Pyramid
from recollect.ops.deformable_attention import by_embedding_bag, by_grid_sample, deformable_attention

SHAPES = [(5, 7), (3, 4), (1, 2)]


def inputs(batch=2, queries=6, heads=2, width=3, points=4):
    torch.manual_seed(0)
    layout = (batch, queries, heads, len(SHAPES), points)
    values = torch.randn(batch, sum(h * w for h, w in SHAPES), heads, width).double()
    locations = torch.rand(*layout, 2).double() * 1.6 - 0.3  # some outside
    weights = torch.rand(*layout).double()
    return values.requires_grad_(), SHAPES, locations.requires_grad_(), weights.requires_grad_()


def by_hand(values, shapes, locations, weights):
    """The definition, one corner at a time."""
    batch, queries, heads = weights.shape[:3]
    result = torch.zeros(batch, queries, heads, values.shape[-1]).double()
    for b, q, h, level, p in torch.cartesian_prod(*(torch.arange(n) for n in weights.shape)).tolist():
        height, width = shapes[level]
        start = sum(r * c for r, c in shapes[:level])
        x, y = (locations[b, q, h, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, h, level, p]
                    result[b, q, h] += share * values[b, start + row * width + column, h]
    return result.flatten(2)


@pytest.mark.parametrize("form", [by_grid_sample, by_embedding_bag, deformable_attention])
def test_is_the_definition(form):
    given = inputs()
    with torch.no_grad():
        assert torch.allclose(form(*given), by_hand(*given), atol=1e-12, rtol=0)


def test_both_forms_have_the_same_gradients():
    given = inputs()
    tensors = [given[0], given[2], given[3]]
    reference, fast = by_grid_sample(*given), by_embedding_bag(*given)
    upstream = torch.randn_like(reference)
    for one, two in zip(
        torch.autograd.grad(reference, tensors, upstream), torch.autograd.grad(fast, tensors, upstream)
    ):
        assert torch.allclose(one, two, atol=1e-11, rtol=0)


def test_diverged_coordinates_give_nan_and_no_crash():
    values, shapes, locations, weights = inputs()
    with torch.no_grad():
        locations[0, 0] = math.nan
        read = by_embedding_bag(values, shapes, locations, weights)
    assert read[0, 0].isnan().all() and read[0, 1:].isfinite().all() and read[1].isfinite().all()


def test_bf16_reads_at_float32_coordinates():
    values, shapes, locations, weights = (x if isinstance(x, list) else x.detach().float() for x in inputs())
    wide = deformable_attention(values, shapes, locations, weights)
    narrow = deformable_attention(values.bfloat16(), shapes, locations, weights.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert torch.allclose(narrow.float(), wide, atol=0.15, rtol=0.05)


def test_padded_cells_are_never_read():
    torch.manual_seed(0)
    attention = DeformableAttention(8, heads=2, levels=len(SHAPES), points=2).double()
    cells = torch.randn(1, sum(h * w for h, w in SHAPES), 8).double()
    padding = torch.zeros(cells.shape[:2], dtype=torch.bool)
    padding[:, 30:35] = True
    changed = cells.masked_fill(padding.unsqueeze(-1), 1e6)
    valid = torch.ones(1, len(SHAPES), 4).double()
    queries, references = torch.randn(1, 5, 8).double(), torch.rand(1, 5, 4).double()
    one, two = (attention(queries, references, Pyramid(c, SHAPES, padding, valid)) for c in (cells, changed))
    assert torch.equal(one, two)
