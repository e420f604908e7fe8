"""What every task of the table must do."""

import math

import pytest
import torch

from metastep.lab.tasks import describe_tasks, task_names

# Shapes of one example's inputs; for text (time,) of a chunk.
TASKS = {
    "digits/mlp": (1, 8, 8),
    "digits/convnet": (1, 8, 8),
    "digits/mlp-noisy": (1, 8, 8),
    "digits/resnet": (1, 8, 8),
    "digits/vit": (1, 8, 8),
    "digits/autoencoder": (1, 8, 8),
    "diabetes/mlp": (10,),
    "breast-cancer/linear": (30,),
    "wine/mlp": (13,),
    "mnist/mlp": (1, 28, 28),
    "mnist/lenet5": (1, 28, 28),
    "mnist/resnet18": (1, 28, 28),
    "mnist/resnet34": (1, 28, 28),
    "mnist/autoencoder": (1, 28, 28),
    "cifar10/convnet": (3, 32, 32),
    "cifar10/mlp": (3, 32, 32),
    "cifar10/lenet5": (3, 32, 32),
    "cifar10/resnet8": (3, 32, 32),
    "cifar10/resnet18": (3, 32, 32),
    "cifar10/resnet34": (3, 32, 32),
    "cifar10/shufflenetv2": (3, 32, 32),
    "cifar10/mobilenetv2": (3, 32, 32),
    "cifar10/nasnet": (3, 32, 32),
    "cifar100/wrn-28-10": (3, 32, 32),
    "svhn/mlp": (3, 32, 32),
    "svhn/lenet5": (3, 32, 32),
    "svhn/resnet18": (3, 32, 32),
    "svhn/resnet34": (3, 32, 32),
    "tinyimagenet/resnet18": (3, 64, 64),
    "imagenet/resnet50": (3, 224, 224),
    "ptb/lstm2": (35,),
    "ptb/lstm3": (35,),
    "ptb/lstm-small": (20,),
    "shakespeare/lstm": (64,),
    "shakespeare/transformer": (64,),
    "shakespeare/lstm-small": (32,),
    "shakespeare/transformer-small": (32,),
    "shakespeare/embedding": (),
}
# The same data and kind of network are in another task: once is enough.
LIKE_ANOTHER = {"mnist/resnet34", "cifar10/resnet34"}
BATCH = 2


@pytest.fixture(params=[name for name in TASKS if name not in LIKE_ANOTHER])
def task(request, load):
    return load(request.param)


def test_the_table_holds_these_tasks_and_a_line_about_each():
    assert task_names() == list(TASKS)
    assert list(describe_tasks()) == list(TASKS)
    assert all(describe_tasks().values())


def test_batches_have_the_shapes_and_types_that_the_network_takes(task):
    batch = next(task.batches("train", batch_size=BATCH))
    shape = TASKS[task.name]
    assert batch.inputs.shape == (BATCH, *shape)
    if task.metric == "r2":
        assert batch.targets.dtype == batch.inputs.dtype == torch.float32
        assert batch.targets.shape == (BATCH, task.data.network_outputs)
        return
    assert batch.targets.dtype == torch.int64
    assert batch.inputs.dtype == (torch.int64 if task.text else torch.float32)
    assert batch.targets.shape == ((BATCH, *shape) if task.text else (BATCH,))
    assert batch.targets.min() >= 0
    assert batch.targets.max() < task.num_classes


def test_images_and_columns_are_normalised(task):
    if task.text:
        return
    batch = next(task.batches("outer_valid", batch_size=500))
    few = 0.15 if len(batch.targets) < 100 else 0.0  # a split of a small table differs from what it was scaled by
    assert batch.inputs.mean().abs() < 0.15 + few
    assert abs(batch.inputs.std() - 1) < 0.15 + few


def test_a_new_network_knows_nothing_and_learns_in_every_parameter(task):
    torch.manual_seed(0)
    model = task.make_model()
    loss = task.loss(model, next(task.batches("train", batch_size=16)))
    assert loss.shape == ()
    assert 0.3 * math.log(task.num_classes) < loss.item() < 2.5 * math.log(task.num_classes)
    loss.backward()
    # A convolution right before batch norm has no gradient for two examples alike; all others must.
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []


def test_making_the_network_follows_the_global_generator_and_streams_leave_it_alone(task):
    def first_weights():
        return next(task.make_model().parameters()).detach().clone()

    torch.manual_seed(3)
    one = first_weights()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    next(task.batches("train", batch_size=BATCH, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first_weights(), one)


def test_a_stream_continues_bit_for_bit(task, tmp_path):
    stream = task.batches("train", batch_size=BATCH, seed=1)
    for _ in range(3):
        next(stream)
    torch.save(stream.state_dict(), tmp_path / "stream.pt")
    expected = [next(stream) for _ in range(3)]
    resumed = task.batches("train", batch_size=BATCH, seed=99)
    resumed.load_state_dict(torch.load(tmp_path / "stream.pt", weights_only=True))
    for batch in expected:
        again = next(resumed)
        assert torch.equal(again.inputs, batch.inputs)
        assert torch.equal(again.targets, batch.targets)


def test_evaluating_gives_finite_numbers_and_leaves_model_and_generator_as_they_were(task):
    torch.manual_seed(0)
    model = task.make_model()
    for module in list(model.modules())[::2]:  # an odd pattern of train and eval
        module.training = False
    flags = [module.training for module in model.modules()]
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    scores = task.evaluate(model, "outer_valid", batch_size=4, max_batches=2)
    assert set(scores) == {"loss", task.metric}
    assert all(math.isfinite(score) for score in scores.values())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_the_settings_make_a_torch_optimizer(task):
    optimizers = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizers[task.optimizer](parameters, lr=task.learning_rate, **task.optimizer_options)
    assert task.total_steps >= 1
    assert task.clip_norm is None or task.clip_norm > 0
    assert task.notes


def test_the_number_of_steps_of_an_epoch_is_when_the_stream_begins_anew(task, load):
    small = load(task.name, train_size=min(700, task.splits["train"]))
    stream = small.batches("train")
    for _ in range(small.steps_per_epoch()):
        next(stream)
        assert stream.epoch == 0
    next(stream)
    assert stream.epoch == 1
