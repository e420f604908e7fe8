"""Pretrained networks: always the same, better than new ones, and nothing else notices the training."""

import pickle
import subprocess
import sys
from itertools import islice

import pytest
import torch

from metastep.lab.bench.optimizers import make_optimizer
from metastep.lab.tasks.datasets.fine_tuning import PRETRAININGS, pretrained, read_turned_digits
from metastep.lab.tasks.datasets.image_sets import of_classes
from metastep.lab.tasks.images import ImageStore
from metastep.lab.tasks.networks.feedforward import mlp
from metastep.lab.tasks.networks.low_rank import LowRank, with_low_rank
from metastep.lab.tasks.splits import DataOptions
from metastep.lab.tasks.table import RECIPES

DIGITS = "fine-tune/digits-resnet"
IMAGES = "fine-tune/cifar10-convnet"
TEXT, LORA = "fine-tune/shakespeare-transformer", "fine-tune/shakespeare-lora"
STEPS = 40


def made(task, seed=0):
    torch.manual_seed(seed)
    return task.make_model()


def tensors_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def loss_after(task, model, steps):
    optimizer = make_optimizer("adamw", model, task.learning_rate, task.optimizer_options)
    for batch in islice(task.batches("train"), steps):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    return task.evaluate(model, "outer_valid")["loss"]


@pytest.mark.parametrize("name", list(PRETRAININGS))
def test_pretraining_does_not_disturb_the_random_streams_or_the_number_of_threads(name, load):
    load(next(task for task in (DIGITS, TEXT, IMAGES) if RECIPES[task].network.keywords["before"] == name))
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        network = pretrained(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert pretrained(name) is network
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_the_pretrained_network_is_the_same_whatever_the_seed_of_the_run_and_each_run_has_a_copy(load):
    task = load(DIGITS)
    one, other = made(task, 1), made(task, 2)
    assert tensors_equal(one[:-1].state_dict(), other[:-1].state_dict())
    assert not torch.equal(one[-1].weight, other[-1].weight)
    assert torch.equal(one[-1].weight, made(task, 1)[-1].weight)
    with torch.no_grad():
        one[0].weight.zero_()
    assert tensors_equal(made(task, 2).state_dict(), other.state_dict())


def test_another_process_pretrains_the_same_network(load):
    code = (
        "import torch; torch.manual_seed(77); torch.set_num_threads(2)\n"
        "from metastep.lab.tasks.datasets.fine_tuning import pretrained\n"
        "print(sum(float(p.detach().double().abs().sum()) for p in pretrained('digits, turned').parameters()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = sum(float(p.detach().double().abs().sum()) for p in pretrained("digits, turned").parameters())
    assert float(printed) == here


def test_a_task_of_a_pretrained_network_can_be_sent_to_another_process_and_back(load):
    task = load(DIGITS)
    assert tensors_equal(made(pickle.loads(pickle.dumps(task))).state_dict(), made(task).state_dict())


@pytest.mark.parametrize("name", [DIGITS, IMAGES])
def test_a_few_steps_lead_further_from_the_pretrained_network_than_from_a_new_one(name, load):
    task = load(name)
    new = PRETRAININGS[task.network.keywords["before"]].network
    torch.manual_seed(0)
    assert loss_after(task, made(task), STEPS) < loss_after(task, new(task.num_classes), STEPS)


def test_a_pretrained_language_model_begins_better_than_a_new_one(load):
    task = load(TEXT)
    torch.manual_seed(0)
    new = PRETRAININGS["Shakespeare, first half"].network(task.num_classes)
    before, fresh = (task.evaluate(model, "outer_valid")["loss"] for model in (made(task), new))
    assert before < 0.7 * fresh


def test_low_rank_adapters_begin_with_the_pretrained_network_and_alone_are_trained(load):
    task = load(LORA)
    model, whole = made(task), made(load(TEXT))
    batch = next(task.batches("train"))
    assert torch.equal(model(batch.inputs), whole(batch.inputs))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = task.evaluate(model, "outer_valid")["loss"]
    assert loss_after(task, model, STEPS) < start
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    adapters = {name for name, _ in model.named_parameters() if name.endswith((".down", ".up"))}
    assert changed == adapters == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 8  # four linear layers in each of two blocks


@pytest.mark.parametrize("name", ["adamw", "hyper-adamw"])
def test_an_optimizer_gets_the_parameters_that_require_gradients(load, name):
    model = made(load(LORA))
    optimizer = make_optimizer(name, model, 1e-3, {})
    given = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [id(p) for p in given] == [id(p) for p in wanted]


def test_a_low_rank_layer_adds_the_product_of_its_matrices():
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).double()
    adapted = LowRank(layer, rank=2, alpha=4.0)
    x = torch.randn(7, 5, dtype=torch.float64)
    assert torch.equal(adapted(x), layer(x))
    with torch.no_grad():
        adapted.up.normal_()
    weight = layer.weight + 2.0 * adapted.up @ adapted.down
    torch.testing.assert_close(adapted(x), x @ weight.T + layer.bias)


def test_impossible_adapters_are_refused():
    with pytest.raises(ValueError, match="rank must be >= 1, got 0"):
        with_low_rank(mlp(2, inputs=3, hidden=()), rank=0, alpha=1.0)
    with pytest.raises(ValueError, match="network must have linear layers to adapt, got ReLU without"):
        with_low_rank(torch.nn.ReLU(), rank=1, alpha=1.0)


def test_turned_digits_are_the_digits_turned_by_a_quarter(load):
    upright = load(DIGITS).data.splits_by_name["train"]
    turned = read_turned_digits(DataOptions(inner_valid=200, outer_valid=200)).splits_by_name["train"]
    assert torch.equal(turned.labels, upright.labels)
    assert torch.equal(turned.store.images[:, :, :, 0], upright.store.images[:, :, :, 0].rot90(1, (1, 2)))


def test_images_of_some_classes_are_numbered_from_zero():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    chosen = of_classes(ImageStore(images, torch.tensor([5, 0, 7, 6, 4, 5])), range(5, 8))
    assert chosen.labels.tolist() == [0, 2, 1, 0]
    assert chosen.images.flatten().tolist() == [0, 2, 3, 5]


def test_the_halves_of_the_text_do_not_meet(load):
    task = load(TEXT)
    first = PRETRAININGS["Shakespeare, first half"].read(DataOptions(inner_valid=0, outer_valid=0))
    windows = [
        {tuple(row) for split in data.splits_by_name.values() for row in split.inputs.tolist()}
        for data in (task.data, first)
    ]
    assert len(windows[0] & windows[1]) < 5  # a line that Shakespeare repeats
