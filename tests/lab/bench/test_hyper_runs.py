"""Runs name optimizers that adapt their own rates, and write down what those rates were."""

import math

import pytest
from tests.lab.bench.running import differences, outcome, run_config

from metastep.lab.bench.optimizers import OPTIMIZERS
from metastep.lab.bench.run import LAYER_ENTRIES, Run, applied_rate, layer_rates
from metastep.lab.records import read_records, write_records

HYPER = [name for name in OPTIMIZERS if name.startswith("hyper-")]


def config(optimizer="hyper-sgd", **changes):
    return run_config(optimizer=optimizer, optimizer_options=changes.pop("options", {}), lr=0.01, **changes)


@pytest.mark.parametrize("optimizer", HYPER)
def test_every_hyper_optimizer_runs_and_writes_the_rates_of_its_layers(optimizer, tmp_path):
    run = Run(config(optimizer), tmp_path, tensorboard=False)
    record = run.execute()
    layers = record.layers
    assert record.status == "finished"
    assert layers.names == [name for name, _ in run.trainer.network.named_parameters()]
    assert 1 <= len(layers.step) <= 2 * LAYER_ENTRIES
    assert all(0 < rate < math.inf for rates in layers.rates for rate in rates)
    assert [rates[-1] for rates in layers.rates] == list(layer_rates(run.trainer.optimizer).values())


def test_the_rate_that_is_logged_is_the_mean_rate_that_moved_the_parameters(tmp_path):
    run = Run(config(options={"levels": ["global"], "momentum": 0.9}), tmp_path, tensorboard=False)
    record = run.execute()
    rate = float(run.trainer.optimizer.rates()[0]["global"])
    assert record.train["lr"][-1] == pytest.approx(rate, rel=1e-6)
    assert rate != pytest.approx(0.01, rel=0.01)
    assert applied_rate(run.trainer.optimizer, run.trainer.lr) == record.train["lr"][-1]


def test_other_optimizers_write_no_rates_of_layers(tmp_path):
    assert Run(run_config(), tmp_path, tensorboard=False).execute().layers is None


def test_the_report_reads_the_rates_of_layers(tmp_path):
    record = Run(config(), tmp_path, tensorboard=False).execute()
    file = tmp_path / "records.jsonl"
    write_records([record], file)
    assert next(read_records(file))[1].layers == record.layers


def test_a_run_of_a_hyper_optimizer_goes_on_bit_for_bit(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    Run(config(), whole, tensorboard=False).execute()
    left = iter([False] * 25)
    Run(config(), stopped, tensorboard=False, should_stop=lambda: next(left, True)).execute()
    Run(config(), stopped, tensorboard=False).execute()
    assert not differences(outcome(whole), outcome(stopped))
