"""Methods that differentiate twice run on every kind of network."""

import pytest
import torch
from tests.lab.bench.contract import run
from tests.lab.bench.running import run_config

from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.training import twice_differentiable
from metastep.lab.tasks import load_task

KINDS = (
    "digits/vit",
    "shakespeare/transformer-small",
    "shakespeare/lstm-small",
    "digits/convnet",
    "digits/autoencoder",
)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("name", ["rtho", "marthe-adam"])
def test_a_rate_that_follows_its_derivative_is_learned_on_every_kind_of_network(task, name, tmp_path):
    try:
        load_task(task)
    except OSError as missing:
        pytest.skip(f"{task}: {missing}")
    config = METHODS[name].configure(
        run_config(task=task, batch_size=4, total_steps=4, log_every=2, eval_every=None, test=False, train_size=None),
        {"hyper_lr": 1e-4},
    )
    made = run(config, tmp_path)
    assert made.status == "finished"
    assert made.trainer.optimizer.applied_rate() != config.lr


def test_the_loss_is_the_same_and_the_kernels_are_as_before_it():
    task = load_task("digits/vit")
    torch.manual_seed(0)
    model, batch = task.make_model().eval(), next(task.batches("train", batch_size=8, seed=0))
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.enabled
    torch.testing.assert_close(twice_differentiable(task.loss)(model, batch), task.loss(model, batch))
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.enabled) == before


def test_cudnn_is_left_to_networks_that_do_not_recur():
    seen = []

    def loss(model, batch):
        seen.append(torch.backends.cudnn.enabled)
        return torch.zeros(())

    for model in (torch.nn.LSTM(2, 2), torch.nn.Conv2d(2, 2, 1)):
        twice_differentiable(loss)(model, None)
    assert seen == [False, torch.backends.cudnn.enabled]
