"""The table of methods: every entry says what it is, runs, goes on after a kill, and is not disturbed by a look."""

import math
import sys
from dataclasses import asdict, replace

import pytest
import torch
from tests.lab.bench.contract import ONE_OF_EACH, STEPS, Killed, base_config, run
from tests.lab.bench.running import differences, outcome

from metastep.core.levels import LEVELS
from metastep.core.rates import RULES
from metastep.lab.bench.config import MetaConfig, RunConfig
from metastep.lab.bench.methods import METHODS, available, method_named
from metastep.lab.bench.optimizers import OPTIMIZERS, make_optimizer
from metastep.lab.bench.schedules import SCHEDULES
from metastep.lab.tasks import load_task
from metastep.lab.tasks.task import Task
from metastep.optim.options import HDM
from metastep.schedules import MLRSNet, ScaleRule, load_schedule

every = pytest.mark.parametrize("name", METHODS)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


# ---- the contract


@one_of_each
def test_every_method_runs_in_silence_and_goes_on_bit_for_bit_after_a_kill(name, tmp_path, capsys):
    config = METHODS[name].configure(base_config())
    record = run(config, tmp_path / "whole").execute()
    assert record.status == "finished"
    assert all(map(math.isfinite, [*record.final.values(), *record.train["loss"], *record.train["lr"]]))
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", dies_at=7)  # after the checkpoint of step 4
    run(config, tmp_path / "killed")
    assert not differences(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))
    assert capsys.readouterr() == ("", "")


@one_of_each
def test_a_look_at_the_validation_data_changes_nothing_in_the_training(name, tmp_path):
    config = METHODS[name].configure(base_config(test=False))
    run(replace(config, eval_every=1), tmp_path / "looked")
    run(replace(config, eval_every=None), tmp_path / "not")
    looked, never = outcome(tmp_path / "looked"), outcome(tmp_path / "not")
    assert looked["valid"] != {}
    assert not differences(looked["trainer"], never["trainer"])


@one_of_each
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_every_method_as_diverged(name, factor, tmp_path, monkeypatch):
    loss, taken = Task.loss, [0]

    def spoilt(self, model, batch):
        taken[0] += torch.is_grad_enabled()
        return loss(self, model, batch) * (factor if taken[0] > 7 else 1)

    monkeypatch.setattr(Task, "loss", spoilt)
    made = run(METHODS[name].configure(base_config()), tmp_path)
    record = made.execute()
    assert (record.status, record.train["loss"][-1]) == ("diverged", None)
    assert 4 <= made.trainer.steps < STEPS


def test_the_methods_under_contract_are_of_every_optimizer_schedule_level_and_rule():
    tried = [METHODS[name] for name in ONE_OF_EACH]
    assert {method.optimizer for method in tried} == {m.optimizer for m in METHODS.values() if available(m)}
    assert {s for s in SCHEDULES if s != "mlr-snet-published"} <= {method.schedule for method in tried}
    hyper = [method.options for method in tried if method.optimizer.startswith("hyper-")]
    assert {level for options in hyper for level in options["levels"]} == set(LEVELS)
    assert {options["rule"] for options in hyper} == {*RULES, HDM}
    nesterov = [method for method in METHODS.values() if method.name.startswith("hyper-sgd-nesterov/")]
    assert nesterov
    assert {method.name for method in nesterov} <= set(ONE_OF_EACH)


# ---- what the table says


@every
def test_every_method_says_where_it_is_from_and_what_it_tunes(name):
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.source
    assert method.space.keys() == method.defaults.keys()
    assert all(method.defaults[value] in space for value, space in method.space.items())
    assert method.optimizer in OPTIMIZERS
    assert (method.package is None) == (method.extra is None)


def test_the_table_holds_every_schedule_over_every_base_optimizer():
    for base in ("sgd", "sgd-momentum", "sgd-nesterov", "adam", "adamw"):
        assert {f"{base}/{schedule}" for schedule in SCHEDULES} <= METHODS.keys()
    assert METHODS["sgd/constant"].configure(base_config()).optimizer_options == {"weight_decay": 1e-3}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.missing])
def test_configuring_a_method_changes_nothing_but_what_is_the_methods(name):
    method, base = METHODS[name], base_config(seed=3, clip_norm=1.0, noise="flip", noise_rate=0.2)
    before = asdict(base)
    values = {value: _other(space, method.defaults[value]) for value, space in method.space.items()}
    made = method.configure(base, values)
    assert asdict(base) == before
    assert made == method.configure(base, values)
    assert RunConfig.from_json(made.to_json()) == made
    own = {"optimizer", "optimizer_options", "schedule", "lr", "scale", "warmup_steps", "meta"}
    after = asdict(made)
    assert {key: after[key] for key in before if key not in own} == {k: before[k] for k in before if k not in own}
    told = {**made.optimizer_options, "lr": made.lr}
    if method.shares:
        told["hyper_lr"] = max(told["hyper_lr"][level] / share for level, share in method.shares.items())
    told["warmup"] = made.warmup_steps / made.total_steps
    told["meta_lr"] = None if made.meta is None else made.meta.meta_lr
    for value in values:
        rounded = {"warmup": 0.5 / STEPS, "hyper_lr": 1e-12}.get(value, 0.0)
        assert told[value] == (pytest.approx(values[value], abs=rounded) if rounded else values[value])


@one_of_each
def test_weight_decay_is_the_tasks_where_the_optimizer_has_one(name):
    method = METHODS[name]
    config = method.configure(base_config())
    assert ("weight_decay" in config.optimizer_options) is method.weight_decay
    model = load_task("wine/mlp").make_model()
    options = {**method.configure(base_config()).optimizer_options, "weight_decay": 1e-3}
    if method.weight_decay:
        made = make_optimizer(config.optimizer, model, config.lr, options, steps_per_epoch=5)
        assert all(group["weight_decay"] == 1e-3 for group in made.param_groups)
    else:
        with pytest.raises(ValueError, match="has no weight_decay; it has "):
            make_optimizer(config.optimizer, model, config.lr, options, steps_per_epoch=5)


def test_a_decoupled_decay_is_not_added_to_gradients():
    base = base_config(optimizer="adamw", optimizer_options={"weight_decay": 0.05})
    for name, expected in (
        ("sgd-momentum/cosine", 5e-4),
        ("adam/cosine", 5e-4),
        ("hyper-sgd/global", 5e-4),
        ("adadelta", 5e-4),
        ("adamw/cosine", 0.05),
        ("nadamw/cosine", 0.05),
        ("hyper-adamw/global", 0.05),
    ):
        assert METHODS[name].configure(base).optimizer_options["weight_decay"] == expected
    assert METHODS["sgd/cosine"].configure(base_config()).optimizer_options == {"weight_decay": 1e-3}


@pytest.mark.parametrize("name", ["sgd-nesterov/cosine", "hyper-sgd-nesterov/global+layer", "hd-sgd-nesterov"])
def test_nesterov_momentum_reaches_the_optimizer(name):
    config = METHODS[name].configure(base_config())
    made = make_optimizer(config.optimizer, load_task("wine/mlp").make_model(), config.lr, config.optimizer_options)
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in made.param_groups)


def test_a_method_that_learns_has_a_meta_update_now_and_then_or_as_the_base_says():
    learner = METHODS["sgd/mlr-snet"]
    assert learner.configure(base_config(total_steps=1000)).meta == MetaConfig(every=10)
    assert learner.configure(base_config(meta=MetaConfig(every=7)), {"meta_lr": 0.002}).meta == MetaConfig(
        every=7, meta_lr=0.002
    )
    assert METHODS["sgd/cosine"].configure(base_config(meta=MetaConfig(every=7))).meta is None


def test_a_run_from_before_scales_could_be_given_has_a_measured_one():
    text = base_config().to_json()
    assert '"scale": "measured"' in text
    assert RunConfig.from_json(text.replace('"scale": "measured",', "")) == base_config()
    with pytest.raises(ValueError, match="scale must be measured, momentum or lr, got 'fixed'"):
        base_config(scale="fixed")


def test_over_adam_a_learned_schedule_is_scaled_by_the_tuned_rate(tmp_path):
    config = METHODS["adam/mlr-snet"].configure(base_config(), {"lr": 0.004})
    made = run(config, tmp_path)
    assert made.trainer.lr.scale == 0.004
    assert 0 < made.trainer.lr.get_last_lr()[0] < 0.004
    assert load_schedule(tmp_path / "schedule.safetensors").config() == MLRSNet(trained_for="adam").config()


@pytest.mark.parametrize(("name", "share"), [("sgd/mlr-snet", 1.0), ("sgd-momentum/mlr-snet", 0.1)])
def test_over_momentum_the_published_scale_is_divided_by_what_momentum_lengthens_a_step(name, share, tmp_path):
    made = run(METHODS[name].configure(base_config()), tmp_path)
    lr = made.trainer.lr
    assert lr.scale == pytest.approx(share * ScaleRule().gamma(lr.initial_loss, lr.num_classes), rel=1e-12)
    assert load_schedule(tmp_path / "schedule.safetensors").scale == ScaleRule()
    assert ("ours" in METHODS[name].summary) is (share < 1)


# ---- what is not there


def test_an_unknown_method_gets_the_nearest_names():
    with pytest.raises(ValueError, match="method must be a known name, got 'adam/cosin'; did you mean adam/cosine"):
        method_named("adam/cosin")


def test_a_value_of_what_a_method_does_not_tune_is_refused():
    with pytest.raises(ValueError, match=r"values must be of what sgd/cosine tunes \(lr\), got momentum"):
        METHODS["sgd/cosine"].configure(base_config(), {"momentum": 0.5})


@pytest.mark.parametrize(("name", "package"), [(n, m.package) for n, m in METHODS.items() if m.package])
def test_an_absent_package_is_named_with_the_extra_that_brings_it(name, package, monkeypatch):
    method = METHODS[name]
    monkeypatch.setitem(sys.modules, package, None)
    for module in [module for module in sys.modules if module.startswith("metastep.lab.baselines.packages.")]:
        monkeypatch.delitem(sys.modules, module)
    assert not available(method)
    words = rf"needs the package {package}, which is not installed; run pip install 'metastep\[bench\]'"
    with pytest.raises(ImportError, match=f"method {name} {words}"):
        method_named(name)
    with pytest.raises(ImportError, match=words):
        make_optimizer(method.optimizer, load_task("wine/mlp").make_model(), 0.1, {})


def test_what_nobody_can_run_says_why():
    assert not available(METHODS["velo"])
    with pytest.raises(ImportError, match=r"method velo cannot be run: no package .* has VeLO for torch"):
        method_named("velo")
    with pytest.raises(ImportError, match="method velo cannot be run"):
        METHODS["velo"].configure(base_config())


@pytest.mark.parametrize("name", ["sgd/mlr-snet-published", "adam/mlr-snet-published"])
def test_the_published_snapshots_are_missed_by_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("METASTEP_DATA", str(tmp_path))
    assert not available(METHODS[name])
    with pytest.raises(FileNotFoundError, match="needs the schedule mlr-snet-published, which is not there"):
        method_named(name)


def _other(space, default):
    """Another value of a space than its default."""
    values = getattr(space, "values", None)
    if values is not None:
        return next(value for value in values if value != default)
    return space.high if default != space.high else space.low
