"""The inner product: exact in low precision, whatever the layout, without reading the device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from metastep.core.inner import gradient_products, inner_product

fixed = settings(derandomize=True, deadline=None, max_examples=60)


def plain(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


@given(shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4), seed=st.integers(0, 99))
@fixed
def test_it_is_the_sum_of_products_for_any_shapes(shapes: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    a, b = ([torch.randn(shape).double() for shape in shapes] for _ in range(2))
    found = inner_product(a, b)
    assert found.item() == pytest.approx(plain(a, b), rel=1e-12, abs=1e-12)
    assert (found.shape, found.dtype) == ((), torch.float64)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "strided": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_the_layouts_of_the_partners_do_not_matter(left: str, right: str) -> None:
    torch.manual_seed(0)
    a, b = LAYOUTS[left](torch.randn(2, 3, 4, 5).double()), LAYOUTS[right](torch.randn(2, 3, 4, 5).double())
    assert inner_product([a], [b]).item() == pytest.approx(plain([a], [b]), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_accumulated_in_single(dtype: torch.dtype) -> None:
    ones = torch.ones(100_000, dtype=dtype)  # a float16 sum would stop at 2048, a product of 300s overflow
    assert inner_product([ones], [ones]).item() == 100_000
    large = torch.full((10,), 300.0, dtype=dtype)
    assert inner_product([large], [large]).item() == pytest.approx(10 * float(large[0]) ** 2)


def test_a_small_tensor_beside_a_large_one_is_not_lost() -> None:
    large, small = torch.full((1,), 1e8), torch.full((1,), 1e-3)
    assert inner_product([large, small], [large.sign(), small.sign()]).item() == pytest.approx(1e8 + 1e-3, abs=1e-6)


def test_mixed_dtypes_meet_in_the_wider() -> None:
    a, b = torch.randn(5).bfloat16(), torch.randn(5).double()
    assert inner_product([a], [b]).item() == pytest.approx(plain([a], [b]), rel=1e-14)


def test_complex_tensors_give_the_real_part_of_the_hermitian_product() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(7, dtype=torch.complex128), torch.randn(7, dtype=torch.complex128)
    expected = (a.conj() * b).sum().real.item()
    assert inner_product([a], [b]).item() == pytest.approx(expected)
    assert inner_product([a.conj()], [b.conj()]).item() == pytest.approx(expected)


def test_no_value_is_read() -> None:
    with FakeTensorMode():  # its tensors have none
        found = inner_product([torch.empty(2, 3, device="cuda")], [torch.empty(2, 3, device="cuda")])
    assert found.device.type == "cuda"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "at least one tensor"),
        ([torch.ones(2)], [], "shorter|longer"),
        ([torch.ones(2)], [torch.ones(3)], "agree in shape"),
        ([torch.ones(1, 2)], [torch.ones(2)], "agree in shape"),
    ],
)
def test_lists_that_are_no_partners_are_refused(a: list, b: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inner_product(a, b)


def test_products_of_a_gradient_that_is_never_there_as_a_whole_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 2), (2,), (4,))]
    parameters[2].requires_grad_(False)
    others = [[torch.randn_like(parameter) for parameter in parameters] for _ in range(2)]

    def loss() -> torch.Tensor:
        return (parameters[0] @ parameters[1] * parameters[2][:3]).exp().sum()

    gradients = torch.autograd.grad(loss(), parameters[:2])
    expected = torch.stack([inner_product(gradients, other[:2]) for other in others])
    torch.testing.assert_close(gradient_products(loss(), parameters, others), expected, rtol=1e-12, atol=0)
    assert [parameter.grad for parameter in parameters] == [None] * 3
    assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters)
    unrelated = torch.nn.Parameter(torch.ones(()))
    assert gradient_products(loss(), [unrelated], [[torch.ones(())]]) is None
