"""Averaging optimizers are judged at their averages, with batch norm measured there, and nothing of it stays."""

import copy

import pytest
import torch
from tests.lab.bench.running import differences, run_config

from metastep.lab.baselines.packages import quiet_import
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.run import Run
from metastep.lab.bench.training import RECALIBRATION_BATCHES, make_trainer
from metastep.lab.tasks import load_task

with quiet_import():
    from dog import PolynomialDecayAverager

AVERAGING = (
    *("schedule-free-sgd", "schedule-free-adamw", "schedule-free-radam", "schedule-free-prodigy", "schedule-free-plus"),
    *("dog", "ldog"),
)


def trainer_of(name, task="digits/convnet", **changes):
    data = load_task(task, train_size=100)
    values = {"reps_rel": 1e-3} if name in ("dog", "ldog") else {}  # steps that float32 can see
    config = METHODS[name].configure(run_config(task=task, train_size=100, total_steps=10, **changes), values)
    return make_trainer(config, data), data


def everything(trainer):
    """Weights, buffers, modes, optimizer, data order, random streams."""
    modes = [module.training for module in trainer.network.modules()]
    return copy.deepcopy({**trainer.state_dict(), "modes": modes})


@pytest.mark.parametrize("name", AVERAGING)
def test_nothing_of_an_evaluation_stays_not_even_if_it_fails(name):
    trainer, data = trainer_of(name)
    for _ in range(8):  # Schedule-Free RAdam stands still in the first five
        trainer.advance()
    before = everything(trainer)

    def fail():
        with trainer.evaluating():
            shown = trainer.network.state_dict()
            seen = [key for key in shown if shown[key].is_floating_point()]
            assert all(not torch.equal(shown[key], before["model"][key]) for key in seen)
            data.evaluate(trainer.network, "outer_valid", max_batches=2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not differences(before, everything(trainer))


@pytest.mark.parametrize("name", ["schedule-free-sgd", "schedule-free-adamw"])
def test_schedule_free_shows_the_mean_of_its_base_sequence(name):
    trainer, _ = trainer_of(name, "digits/mlp")
    group, parameters = trainer.optimizer.param_groups[0], list(trainer.network.parameters())
    mean, weights = [p.detach().double().clone() for p in parameters], 0.0
    for _ in range(6):
        trainer.advance()
        weight = group["lr_max"] ** 2
        weights += weight
        for x, p in zip(mean, parameters, strict=True):
            x.lerp_(trainer.optimizer.state[p]["z"].double(), weight / weights)
    with trainer.evaluating():
        for x, p in zip(mean, parameters, strict=True):
            torch.testing.assert_close(p.detach().double(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dog", "ldog"])
def test_dog_shows_the_average_that_its_authors_package_computes(name):
    trainer, _ = trainer_of(name, "digits/mlp")
    theirs = PolynomialDecayAverager(trainer.network)
    for _ in range(8):
        trainer.advance()
        theirs.step()
    with trainer.evaluating():
        torch.testing.assert_close(dict(trainer.network.state_dict()), dict(theirs.averaged_model.state_dict()))


def test_batch_norm_is_measured_on_training_batches_at_the_average():
    trainer, data = trainer_of("schedule-free-sgd")
    for _ in range(5):
        trainer.advance()
    count = min(RECALIBRATION_BATCHES, data.steps_per_epoch(16))
    with trainer.evaluating():
        shown = trainer.network
        first = next(m for m in shown.modules() if isinstance(m, torch.nn.BatchNorm2d))
        inputs = []
        handle = first.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        stream = data.batches("train", batch_size=16, seed=0)
        with torch.no_grad():
            for _ in range(count):
                copy.deepcopy(shown).eval()(next(stream).inputs)
        handle.remove()
        assert len(inputs) == count
        means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(first.running_mean, means)
        assert first.num_batches_tracked == count


def test_what_a_run_writes_down_is_the_loss_at_the_average(tmp_path):
    config = METHODS["schedule-free-adamw"].configure(run_config(total_steps=20, eval_every=20, inner=True))
    run = Run(config, tmp_path, tensorboard=False)
    record = run.execute()
    data, network = run.task, run.trainer.network
    with run.trainer.evaluating():
        at_average = {split: data.evaluate(network, split)["loss"] for split in ("outer_valid", "inner_valid", "test")}
    assert record.valid["loss"][-1] == at_average["outer_valid"]
    assert record.inner["loss"] == at_average["inner_valid"]
    assert record.final["loss"] == at_average["test"]
    assert data.evaluate(network, "test")["loss"] != at_average["test"]


def test_without_an_average_nothing_is_put_in_place_of_the_weights():
    trainer, _ = trainer_of("sgd-momentum/cosine")
    trainer.advance()
    before = everything(trainer)
    with trainer.evaluating():
        assert not differences(before, everything(trainer))
