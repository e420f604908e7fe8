"""Film reviews: their splits, vocabulary and label noise, from small files written here and from the real ones."""

import pytest
import torch

from metastep.lab.tasks import LabelNoise, MissingData, load_task
from metastep.lab.tasks.datasets.sentences import read_sentences
from metastep.lab.tasks.networks.sequence import LSTMClassifier, TextCNN, TransformerClassifier
from metastep.lab.tasks.splits import DataOptions


@pytest.fixture
def reviews(tmp_path):
    """20 sentences a class, in windows-1252; byte 0x85 is an ellipsis there and no line end."""
    (tmp_path / "mr").mkdir()
    for kind, word in (("neg", "dull"), ("pos", "fine")):
        lines = [f"{word} film number {i} \x85 caf\xe9" for i in range(20)]
        (tmp_path / "mr" / f"rt-polarity.{kind}").write_bytes("\n".join([*lines, ""]).encode("latin-1"))
    return tmp_path


def test_sentences_are_split_evenly_and_once_and_for_all(reviews):
    task = load_task("mr/textcnn", data_dir=reviews, inner_valid=8, outer_valid=8)
    assert task.splits == {"train": 20, "inner_valid": 8, "outer_valid": 8, "test": 4}
    for split in task.data.splits_by_name.values():
        assert torch.bincount(split.targets).tolist() == [len(split.targets) // 2] * 2
    again = load_task("mr/lstm", data_dir=reviews, inner_valid=8, outer_valid=0)
    assert torch.equal(*(t.data.splits_by_name["inner_valid"].targets for t in (task, again)))


def test_the_vocabulary_is_that_of_the_training_split(reviews):
    options = DataOptions(inner_valid=8, outer_valid=8, data_dir=reviews)
    data = read_sentences(options, words=7, length=5)
    train = data.splits_by_name["train"]
    # <fill> 0, <unk> 1, then the five most frequent: an ellipsis, "caf\xe9", "film", "number", and "dull" or "fine".
    assert train.inputs.shape == (20, 5)
    assert train.inputs.max() == 6
    assert (train.inputs[:, 3] == 1).float().mean() > 0.7  # a number that occurs once or twice
    longer = read_sentences(options, words=100, length=9).splits_by_name["train"].inputs
    assert (longer[:, 6:] == 0).all()
    assert (longer[:, :6] > 0).all()


@pytest.mark.parametrize("name", ["mr/textcnn", "mr/lstm", "mr/transformer"])
def test_label_noise_works_on_text(reviews, name):
    sizes = {"data_dir": reviews, "inner_valid": 4, "outer_valid": 4}
    clean, noisy = load_task(name, **sizes), load_task(name, label_noise=LabelNoise("flip", 1.0), **sizes)
    for split in clean.splits:
        one, other = (task.data.splits_by_name[split].targets for task in (clean, noisy))
        assert torch.equal(other, 1 - one if split == "train" else one)


def test_absent_reviews_say_where_to_get_them(tmp_path):
    with pytest.raises(
        MissingData, match=r"rt-polarity\.neg and rt-polarity\.pos.* rt-polaritydata\.tar\.gz of https://.*ACL 2005"
    ):
        load_task("mr/lstm", data_dir=tmp_path)


def test_the_real_sentences_are_all_there(load):
    task = load("mr/textcnn")
    assert task.splits == {"train": 7596, "inner_valid": 1000, "outer_valid": 1000, "test": 1066}
    assert task.num_classes == 2
    assert task.data.splits_by_name["train"].inputs.max() == 9999


@pytest.mark.parametrize(
    "network",
    [
        lambda: LSTMClassifier(2, vocabulary=20, width=8),
        lambda: TransformerClassifier(2, vocabulary=20, width=8, layers=2, heads=2, length=9),
    ],
)
def test_what_fills_up_a_sentence_changes_nothing(network):
    torch.manual_seed(0)
    model = network().double().eval()
    words = torch.tensor([[3, 4, 5, 0, 0, 0]])
    torch.testing.assert_close(model(words), model(words[:, :3]))


def test_a_text_cnn_reads_the_largest_answer_of_each_filter():
    torch.manual_seed(0)
    model = TextCNN(2, vocabulary=20, width=4, maps=3, windows=(2,)).eval()
    words = torch.tensor([[1, 2, 3, 4]])
    vectors = model.embedding(words)[0]
    filters = model.filters[0]
    answers = torch.stack([(filters.weight * vectors[i : i + 2].T).sum((1, 2)) + filters.bias for i in range(3)])
    torch.testing.assert_close(model(words)[0], model.head(answers.relu().amax(0)))
