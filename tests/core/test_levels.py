"""Rows, units, layers: every element is counted once at every level."""

import torch

from metastep.core.inner import fold, row_dots, row_sums, row_views, spread
from metastep.core.levels import make_layout

SHAPES = [torch.Size(s) for s in ((4, 3), (4,), (2, 5, 3, 3), (), (1,), (0, 2), (3, 0))]
DIMS = [0, None, 1, None, None, 0, 0]


def layout(units=True, layer_keys=None, unit_keys=None, dims=DIMS):
    names = [str(i) for i in range(len(SHAPES))]
    return make_layout(
        SHAPES,
        units=units,
        unit_dims=dims,
        layer_keys=layer_keys or names,
        unit_keys=unit_keys or names,
        device=torch.device("cpu"),
    )


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def rows_of(lay, values):
    return torch.cat([row_sums(v, dim) for v, dim in zip(values, lay.unit_dims, strict=True)]).unsqueeze(0)


def test_the_levels_are_nested():
    values = tensors()
    for units in (True, False):
        lay = layout(units)
        rows = rows_of(lay, values)
        total = sum(v.sum() for v in values)
        torch.testing.assert_close(fold(rows, lay, "global")[0], total.reshape(1))
        torch.testing.assert_close(fold(rows, lay, "layer")[0], torch.stack([v.sum() for v in values]))
        if units:
            torch.testing.assert_close(fold(rows, lay, "unit")[0].sum(), total)
            torch.testing.assert_close(fold(rows, lay, "unit")[0, 5:10], values[2].sum(dim=(0, 2, 3)))


def test_elements_are_counted_once_at_every_level():
    for units in (True, False):
        lay = layout(units)
        for level in ("global", "layer", *(("unit",) if units else ())):
            assert float(lay.elements[level].sum()) == sum(shape.numel() for shape in SHAPES)


def test_a_rate_goes_back_to_the_elements_that_it_was_summed_from():
    lay = layout()
    values = tensors()
    rates = torch.arange(1.0, lay.sizes["unit"] + 1, dtype=torch.float64)
    views = row_views(spread(rates, lay, "unit"), lay.unit_dims, values)
    full = [view.expand_as(value) for view, value in zip(views, values, strict=True)]
    sums = fold(rows_of(lay, [f * v for f, v in zip(full, values, strict=True)]), lay, "unit")[0]
    torch.testing.assert_close(sums, rates * fold(rows_of(lay, values), lay, "unit")[0])


def test_tensors_with_one_key_share_their_layer():
    lay = layout(layer_keys=["a", "a", "b", "b", "b", "c", "c"])
    sums = fold(rows_of(lay, tensors()), lay, "layer")[0]
    assert sums.shape == (3,)
    torch.testing.assert_close(sums[0], tensors()[0].sum() + tensors()[1].sum())


def test_tied_tensors_share_their_units_and_others_of_another_length_do_not():
    lay = layout(unit_keys=["w", "w", "w", "3", "4", "5", "6"], dims=[0, 0, 1, None, None, 0, 0])
    sums = fold(rows_of(lay, tensors()), lay, "unit")[0]
    torch.testing.assert_close(sums[:4], tensors()[0].sum(1) + tensors()[1])
    assert lay.unit_offsets[2] == 4


def test_dots_are_sums_of_products_in_every_memory_format():
    generator = torch.Generator().manual_seed(0)
    for shape, dims in (((4, 3, 2, 5), (None, 0, 1)), ((7,), (None, 0)), ((), (None,)), ((0, 3), (None, 0))):
        a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        for dim in dims:
            expected = row_sums(a * b, dim)
            torch.testing.assert_close(row_dots(a, b, dim), expected)
            if len(shape) == 4:
                last = a.to(memory_format=torch.channels_last)
                torch.testing.assert_close(row_dots(last, b, dim), expected)
