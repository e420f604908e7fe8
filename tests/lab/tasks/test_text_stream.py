"""The stream of contiguous chunks, and the hidden state carried along it."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from metastep.lab.tasks import LabelNoise, load_task
from metastep.lab.tasks.networks.sequence import LSTMLanguageModel
from metastep.lab.tasks.task import Task
from metastep.lab.tasks.text import TextData

CPU = torch.device("cpu")
VOCABULARY = 7


def text_data(*, length=50, chunk=4, recurrent=True):
    tokens = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(0))
    splits = {"train": tokens, "inner_valid": tokens.flip(0), "outer_valid": tokens, "test": tokens[:0]}
    return TextData(num_classes=VOCABULARY, notes="made up", tokens_by_split=splits, chunk=chunk, recurrent=recurrent)


@pytest.fixture
def task():
    return Task(
        name="made/up",
        kind="language",
        summary="",
        network=lambda size: LSTMLanguageModel(size, width=6, layers=2, dropout=0.0),
        read=lambda request: text_data(),
        batch_size=3,
        eval_batch_size=3,
        total_steps=10,
        optimizer="sgd",
        optimizer_options={},
        learning_rate=1.0,
        inner_valid=50,
        outer_valid=50,
        data=text_data(),
    )


@pytest.fixture
def model(task):
    torch.manual_seed(0)
    return task.make_model().double()


def stretches(task, split="train"):
    """(3, 16): the 50 tokens cut into three stretches, two tokens left over."""
    return task.data.tokens_by_split[split][:48].view(3, 16)


def test_chunks_are_contiguous_and_targets_are_one_token_further(task):
    stream = task.batches("train")
    chunks = [next(stream) for _ in range(task.steps_per_epoch())]
    assert [chunk.inputs.shape[1] for chunk in chunks] == [4, 4, 4, 3]
    assert torch.equal(torch.cat([chunk.inputs for chunk in chunks], 1), stretches(task)[:, :-1])
    assert torch.equal(torch.cat([chunk.targets for chunk in chunks], 1), stretches(task)[:, 1:])
    assert stream.epoch == 0
    assert torch.equal(next(stream).inputs, chunks[0].inputs)
    assert stream.epoch == 1


def test_the_carried_state_makes_chunks_equal_to_the_text_in_one_piece(task, model):
    stream = task.batches("train")
    total = 0.0
    for _ in range(task.steps_per_epoch()):
        batch = next(stream)
        total += task.loss(model, batch).item() * batch.targets.numel()
    text = stretches(task)
    logits, _ = model(text[:, :-1], None)
    whole = cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="sum")
    assert total == pytest.approx(whole.item(), rel=1e-12)
    scores = task.evaluate(model, "train")
    assert scores["loss"] == pytest.approx(whole.item() / 45, rel=1e-12)
    assert scores["perplexity"] == pytest.approx((whole / 45).exp().item(), rel=1e-12)


def test_asking_twice_for_a_loss_starts_twice_from_the_same_state(task, model):
    stream = task.batches("train")
    task.loss(model, next(stream))
    batch = next(stream)
    assert batch.carry.entering is not None
    assert torch.equal(task.loss(model, batch), task.loss(model, batch))


def test_the_next_batch_enters_with_the_state_last_left_and_without_a_graph(task, model):
    stream = task.batches("train")
    batch = next(stream)
    assert batch.carry.entering is None
    task.loss(model, batch)
    entering = next(stream).carry.entering
    _, left = model(batch.inputs, None)
    for part, expected in zip(entering, left, strict=True):
        assert torch.equal(part, expected)
        assert not part.requires_grad


def test_the_state_is_forgotten_where_the_text_begins_anew(task, model):
    stream = task.batches("train")
    losses = [task.loss(model, next(stream)).item() for _ in range(2 * task.steps_per_epoch())]
    assert losses[:4] == losses[4:]


def test_two_streams_carry_their_own_states(task, model):
    alone = task.batches("train")
    expected = [task.loss(model, next(alone)).item() for _ in range(3)]
    train, valid = task.batches("train"), task.batches("inner_valid")
    for loss in expected:
        assert task.loss(model, next(train)).item() == loss
        task.loss(model, next(valid))


def test_the_carried_state_is_resumed_bit_for_bit(task, model, tmp_path):
    stream = task.batches("train")
    for _ in range(2):
        task.loss(model, next(stream))
    torch.save(stream.state_dict(), tmp_path / "stream.pt")
    expected = [task.loss(model, next(stream)).item() for _ in range(6)]
    resumed = task.batches("train")
    resumed.load_state_dict(torch.load(tmp_path / "stream.pt", weights_only=True))
    assert [task.loss(model, next(resumed)).item() for _ in range(6)] == expected


def test_a_network_without_memory_gets_no_carry():
    batch = next(
        text_data(recurrent=False).stream("train", batch_size=3, seed=0, device=CPU, augment=False, shuffle=True)
    )
    assert batch.carry is None


def test_a_text_too_short_for_the_batch_is_refused(task):
    with pytest.raises(ValueError, match=r"^batch_size must be <= 25 for the 50 tokens of train, got 26"):
        task.batches("train", batch_size=26)


def test_the_state_of_another_stream_is_refused(task):
    state = task.batches("train").state_dict()
    with pytest.raises(ValueError, match=r"^state must come from a stream with batch_size 5, got 3"):
        task.batches("train", batch_size=5).load_state_dict(state)


def test_label_noise_is_refused_for_text():
    with pytest.raises(ValueError, match=r"^label_noise must be None for ptb/lstm2, got LabelNoise"):
        load_task("ptb/lstm2", label_noise=LabelNoise("flip", 0.1))
