"""What every task of the table must do."""

import math

import cv2
import numpy as np
import pytest
import torch

from metastep.lab.tasks import describe_tasks, task_names

BATCH = 2
#: Names that stored runs know; a task may join the table, none may leave it.
STORED = [
    "digits/mlp",
    "digits/convnet",
    "digits/mlp-noisy",
    "digits/resnet",
    "digits/vit",
    "digits/autoencoder",
    "diabetes/mlp",
    "breast-cancer/linear",
    "wine/mlp",
    "mnist/mlp",
    "mnist/lenet5",
    "mnist/resnet18",
    "mnist/resnet34",
    "mnist/autoencoder",
    "cifar10/convnet",
    "cifar10/mlp",
    "cifar10/lenet5",
    "cifar10/resnet8",
    "cifar10/resnet18",
    "cifar10/resnet34",
    "cifar10/shufflenetv2",
    "cifar10/mobilenetv2",
    "cifar10/nasnet",
    "cifar100/wrn-28-10",
    "svhn/mlp",
    "svhn/lenet5",
    "svhn/resnet18",
    "svhn/resnet34",
    "tinyimagenet/resnet18",
    "imagenet/resnet50",
    "ptb/lstm2",
    "ptb/lstm3",
    "ptb/lstm-small",
    "shakespeare/lstm",
    "shakespeare/transformer",
    "shakespeare/transformer-large",
    "shakespeare/lstm-small",
    "shakespeare/transformer-small",
    "shakespeare/embedding",
    "mr/textcnn",
    "mr/lstm",
    "mr/transformer",
    "friedman/mlp",
    "spirals/mlp",
    "clusters/mlp",
    "clusters/mlp-deep",
    "breast-cancer/mlp",
    "iris/mlp",
    "digits/denoising",
    "digits/lower-half",
    "mnist/cnn",
    "cifar10/cnn",
    "cifar10/vit",
    "ptb/lstm-medium",
    "ptb/transformer-small",
    "fine-tune/digits-resnet",
    "fine-tune/cifar10-convnet",
    "fine-tune/shakespeare-transformer",
    "fine-tune/shakespeare-lora",
    "own-images/convnet",
    "own-images/resnet8",
    "own-images/resnet18",
    "own-text/lstm",
    "own-text/transformer",
]
#: The same data and kind of network are in another task: once is enough.
LIKE_ANOTHER = {"mnist/resnet34", "cifar10/resnet34", "ptb/lstm3", "own-images/resnet8"}


@pytest.fixture(scope="session")
def own_data(tmp_path_factory):
    """What a user might have: images in folders, and a text file."""
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(40):
            image = random.integers(256, size=(12, 12, 3), dtype=np.uint8)
            (folder / "images" / name / f"{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 500, "utf-8")
    return {"own-images": folder / "images", "own-text": folder / "text.txt"}


@pytest.fixture
def load_own(load, own_data):
    """`load`, which finds the user's data for the tasks on them."""
    return lambda name, **options: load(name, data_dir=own_data.get(name.partition("/")[0]), **options)


@pytest.fixture(params=[name for name in task_names() if name not in LIKE_ANOTHER])
def task(request, load_own):
    return load_own(request.param)


def test_the_table_holds_the_tasks_of_stored_runs_and_a_line_about_each():
    assert set(STORED) <= set(task_names())
    assert list(describe_tasks()) == task_names()
    assert all(describe_tasks().values())


def test_batches_have_the_shapes_and_types_that_the_network_takes(task):
    batch = next(task.batches("train", batch_size=BATCH))
    assert len(batch.inputs) == len(batch.targets) == BATCH
    model = task.make_model()
    outputs = model(batch.inputs)
    outputs = outputs[0] if batch.carry is not None else outputs
    if task.metric == "r2":
        assert batch.targets.dtype == batch.inputs.dtype == torch.float32
        assert batch.targets.shape == outputs.shape == (BATCH, task.data.network_outputs)
        return
    assert batch.targets.dtype == torch.int64
    assert batch.inputs.dtype == (torch.float32 if batch.inputs.is_floating_point() else torch.int64)
    assert outputs.shape == (*batch.targets.shape, task.num_classes)
    assert batch.targets.shape == (batch.inputs.shape if task.text else (BATCH,))
    assert batch.targets.min() >= 0
    assert batch.targets.max() < task.num_classes


def test_images_and_columns_are_normalised(task):
    batch = next(task.batches("outer_valid", batch_size=500))
    if not batch.inputs.is_floating_point():
        return
    few = 0.15 if len(batch.targets) < 100 else 0.0  # a split of a small table differs from what it was scaled by
    assert batch.inputs.mean().abs() < 0.15 + few
    assert abs(batch.inputs.std() - 1) < 0.15 + few


def test_a_new_network_knows_little_and_learns_in_every_parameter(task):
    torch.manual_seed(0)
    model = task.make_model()
    loss = task.loss(model, next(task.batches("train", batch_size=16)))
    assert loss.shape == ()
    assert 0.3 * math.log(task.num_classes) < loss.item() < 2.5 * math.log(task.num_classes)
    loss.backward()
    # A convolution right before batch norm has no gradient for two examples alike; all others must, if not frozen.
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
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


def test_the_number_of_steps_of_an_epoch_is_when_the_stream_begins_anew(task, load_own):
    small = load_own(task.name, train_size=min(700, task.splits["train"]))
    stream = small.batches("train")
    for _ in range(small.steps_per_epoch()):
        next(stream)
        assert stream.epoch == 0
    next(stream)
    assert stream.epoch == 1
