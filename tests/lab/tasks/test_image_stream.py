"""The stream of batches over labelled images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metastep.lab.tasks import load_task
from metastep.lab.tasks.images import ImageData, ImageSplit, ImageStore

N = 23


@pytest.fixture(scope="module")
def data():
    """23 small images, all different, with augmentation."""
    generator = torch.Generator().manual_seed(0)
    store = ImageStore(torch.randint(256, (N, 6, 5, 2), generator=generator, dtype=torch.uint8), torch.arange(N) % 3)
    split = ImageSplit(store, torch.arange(N), store.labels)
    return ImageData(
        splits_by_name={"train": split, "outer_valid": split},
        num_classes=3,
        notes="made up",
        mean=(100.0, 120.0),
        std=(50.0, 60.0),
        padding=2,
    )


def stream_of(data, *, seed=0, batch_size=5, augment=True, shuffle=True, split="train"):
    device = torch.device("cpu")
    return data.stream(split, batch_size=batch_size, seed=seed, device=device, augment=augment, shuffle=shuffle)


@settings(max_examples=30, deadline=None)
@given(done=st.integers(0, 12), more=st.integers(1, 12), seed=st.integers(0, 2**32), augment=st.booleans())
def test_a_stream_continues_bit_for_bit_from_anywhere(data, done, more, seed, augment):
    stream = stream_of(data, seed=seed, augment=augment)
    for _ in range(done):
        next(stream)
    state = stream.state_dict()
    expected = [next(stream) for _ in range(more)]
    resumed = stream_of(data, seed=seed + 1, augment=augment)
    next(resumed)
    resumed.load_state_dict(state)
    for batch in expected:
        again = next(resumed)
        assert torch.equal(again.inputs, batch.inputs)
        assert torch.equal(again.targets, batch.targets)
    assert resumed.epoch == stream.epoch


def test_a_saved_state_does_not_move_with_the_stream(data):
    stream = stream_of(data)
    next(stream)
    state = stream.state_dict()
    expected = next(stream)
    for _ in range(10):
        next(stream)
    stream.load_state_dict(state)
    assert torch.equal(next(stream).inputs, expected.inputs)


def test_an_epoch_gives_every_image_once_and_the_rest_as_a_smaller_batch(data):
    stream = stream_of(data, augment=False)
    epochs = [[next(stream) for _ in range(5)] for _ in range(2)]
    for batches in epochs:
        assert [len(batch.targets) for batch in batches] == [5, 5, 5, 5, 3]
        seen = torch.cat([batch.inputs for batch in batches]).flatten(1)
        assert len(seen.unique(dim=0)) == N
    assert not torch.equal(epochs[0][0].inputs, epochs[1][0].inputs)
    assert data.steps_per_epoch("train", 5) == 5


def test_pixels_are_normalised_with_the_mean_and_deviation_of_their_channel(data):
    batch = next(stream_of(data, batch_size=N, augment=False, shuffle=False))
    pixels = data.splits_by_name["train"].store.images.permute(0, 3, 1, 2).double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(2, 1, 1) for v in (data.mean, data.std))
    torch.testing.assert_close(batch.inputs.double(), (pixels - mean) / std, rtol=1e-6, atol=1e-6)


def test_augmented_images_are_shifted_and_mirrored_copies_with_black_edges(data):
    batch = next(stream_of(data, batch_size=N, shuffle=False))
    pixels = data.splits_by_name["train"].store.images.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(2, 1, 1) for v in (data.mean, data.std))
    seen = (batch.inputs * std + mean).round().to(torch.uint8)
    padded = torch.nn.functional.pad(pixels, (2,) * 4)
    moves = set()
    for i in range(N):
        windows = {(dy, dx): padded[i, :, dy : dy + 6, dx : dx + 5] for dy in range(5) for dx in range(5)}
        found = [(*at, "as is") for at, window in windows.items() if torch.equal(seen[i], window)]
        found += [(*at, "mirrored") for at, window in windows.items() if torch.equal(seen[i], window.flip(-1))]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > N / 2


def test_another_seed_gives_another_order_and_the_same_seed_the_same(data):
    one, same, other = (next(stream_of(data, seed=seed, augment=False)) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_only_train_and_inner_valid_are_augmented_unless_asked(load):
    task = load("cifar10/resnet8")
    for split, augmented in (("train", True), ("inner_valid", True), ("outer_valid", False), ("test", False)):
        by_default = next(task.batches(split, batch_size=8, seed=3)).inputs
        asked = next(task.batches(split, batch_size=8, seed=3, augment=augmented)).inputs
        assert torch.equal(by_default, asked)
        assert not torch.equal(asked, next(task.batches(split, batch_size=8, seed=3, augment=not augmented)).inputs)


def test_augmentation_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"^augment must be None or False for digits/mlp, got True"):
        load_task("digits/mlp").batches("train", augment=True)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 6), ("split", "outer_valid"), ("augment", False)])
def test_the_state_of_another_stream_is_refused(data, name, value):
    state = stream_of(data).state_dict()
    with pytest.raises(ValueError, match=f"^state must come from a stream with {name}"):
        stream_of(data, **{name: value}).load_state_dict(state)


def test_a_state_of_another_kind_is_refused(data):
    with pytest.raises(ValueError, match=r"^state must hold 'split', got \['tokens'\]"):
        stream_of(data).load_state_dict({"tokens": 3})


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4),
            torch.zeros(2).long(),
            r"^images must be .* uint8, got \(2, 1, 4, 4\) torch.float32",
        ),
        (
            torch.zeros(2, 4, 4).byte(),
            torch.zeros(2).long(),
            r"^images must be .* uint8, got \(2, 4, 4\)",
        ),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3).long(), "^labels must be one per image, got 3 for 2"),
    ],
)
def test_a_store_of_other_things_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageStore(images, labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_an_accelerator_are_those_on_the_cpu(data):
    here, there = (
        data.stream("train", batch_size=5, seed=4, device=torch.device(d), augment=True, shuffle=True)
        for d in ("cpu", "cuda")
    )
    for _ in range(7):
        one, other = next(here), next(there)
        assert other.inputs.is_cuda
        torch.testing.assert_close(other.inputs.cpu(), one.inputs, rtol=1e-6, atol=1e-6)
        assert torch.equal(other.targets.cpu(), one.targets)
