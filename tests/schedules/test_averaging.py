"""The average of weights that reaches back over a share of a run."""

import math
import warnings

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import metastep as ms


def averaged(values: list[torch.Tensor], power: float) -> torch.Tensor:
    model = torch.nn.ParameterList([torch.nn.Parameter(values[0].clone())])
    average = AveragedModel(model, multi_avg_fn=ms.polynomial_average(power))
    for value in values:
        with torch.no_grad():
            model[0].copy_(value)
        average.update_parameters(model)
    return average.module[0].detach()


@pytest.mark.parametrize("power", [0, 1.0, 3, 10.0])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_weights_are_those_of_the_formula(power: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = [torch.randn(shape, dtype=torch.float64) for _ in range(40)]
    expected = values[0]
    for t, value in enumerate(values[1:], start=2):
        share = (power + 1) / (power + t)
        expected = (1 - share) * expected + share * value
    torch.testing.assert_close(averaged(values, power), expected, rtol=1e-12, atol=1e-14)


def test_without_power_it_is_the_mean() -> None:
    values = [torch.full((4,), float(k), dtype=torch.float64) for k in range(11)]
    torch.testing.assert_close(averaged(values, 0), torch.full((4,), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("steps", [100, 1000])
def test_it_reaches_back_over_a_share_of_the_run(steps: int) -> None:
    ages = [torch.tensor(float(steps - k), dtype=torch.float64) for k in range(1, steps + 1)]
    assert averaged(ages, 10.0).item() == pytest.approx(steps / 12, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_types_stay(dtype: torch.dtype) -> None:
    values = [torch.full((3,), float(k)).to(dtype) for k in range(6)]
    found = averaged(values, 2.0)
    assert found.dtype == dtype
    exact = averaged([value.to(torch.complex128) for value in values], 2.0)
    torch.testing.assert_close(found.to(torch.complex128), exact, rtol=0.02, atol=0.0)


def test_buffers_are_averaged_and_counts_are_the_last() -> None:
    model = torch.nn.BatchNorm1d(2)
    average = AveragedModel(model, multi_avg_fn=ms.polynomial_average(0), use_buffers=True)
    means = []
    for k in range(1, 5):
        model(torch.full((3, 2), float(k)))
        average.update_parameters(model)
        means.append(model.running_mean.clone())  # type: ignore[union-attr]
    torch.testing.assert_close(average.module.running_mean, torch.stack(means).mean(dim=0))
    assert average.module.num_batches_tracked == 4


def test_an_average_in_float32_follows_a_model_in_bfloat16() -> None:
    model = torch.nn.Linear(1, 1, dtype=torch.bfloat16)
    average = AveragedModel(model, multi_avg_fn=ms.polynomial_average()).float()
    for k in range(1001):
        with torch.no_grad():
            model.weight.fill_(1 + k / 1000)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(2 - 1 / 12, rel=0.01)


@pytest.mark.parametrize("power", [-1, math.nan, math.inf, "10", None, True])
def test_another_power_is_refused(power: object) -> None:
    with pytest.raises(ValueError, match="power must be a number >= 0"):
        ms.polynomial_average(power)  # type: ignore[arg-type]


def with_norm() -> tuple[torch.nn.Module, list[torch.Tensor]]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    return model, [torch.randn(8, 3) for _ in range(3)]


def test_averaged_weights_with_the_statistics_of_others_are_noticed_once() -> None:
    model, batches = with_norm()
    average = ms.AveragedModel(model)
    average.update_parameters(model)
    average.eval()
    with pytest.warns(UserWarning, match="update_bn"):
        average(batches[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average(batches[0])


@pytest.mark.parametrize("remedy", ["update_bn", "buffers", "no norm"])
def test_averaged_weights_with_right_statistics_are_not(remedy: str) -> None:
    model, batches = with_norm()
    if remedy == "no norm":
        model = torch.nn.Linear(3, 1)
    average = ms.AveragedModel(model, use_buffers=remedy == "buffers")
    for _ in range(3):
        average.update_parameters(model)
    if remedy == "update_bn":
        torch.optim.swa_utils.update_bn(batches, average)
    average.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average(batches[0])


def test_it_averages_as_the_function_does_unless_told_otherwise() -> None:
    model = torch.nn.Linear(2, 1)
    ours, mean = ms.AveragedModel(model), ms.AveragedModel(model, multi_avg_fn=ms.polynomial_average(0))
    theirs = AveragedModel(model, multi_avg_fn=ms.polynomial_average())
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            model.weight.fill_(value)
        for average in (ours, mean, theirs):
            average.update_parameters(model)
    assert torch.equal(ours.module.weight, theirs.module.weight)
    torch.testing.assert_close(mean.module.weight, torch.full((1, 2), 7 / 3))
