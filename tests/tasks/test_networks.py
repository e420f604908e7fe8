import pytest
import torch

from metastep.tasks.networks.convnet import convnet
from metastep.tasks.networks.lenet import lenet5
from metastep.tasks.networks.lstm import LSTMLanguageModel
from metastep.tasks.networks.mlp import mlp
from metastep.tasks.networks.resnet import resnet
from metastep.tasks.networks.transformer import TransformerLanguageModel
from metastep.tasks.networks.wide_resnet import wide_resnet
from metastep.tasks.table import RECIPES

V, W = 10_000, 512
LSTM_LAYER = 4 * W * 2 * W + 2 * 4 * W

# Numbers of parameters as published, or counted by hand.
PUBLISHED = {
    "digits/mlp": (10, (64 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 10),
    "digits/convnet": (10, 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + (32 + 1) * 10),
    "mnist/lenet5": (10, 61_706),
    "cifar10/resnet8": (10, 75_290),
    "cifar10/resnet18": (10, 11_173_962),
    "cifar100/wrn-28-10": (100, 36_536_884),
    "ptb/lstm2": (V, V * W + V + 2 * LSTM_LAYER),
    "ptb/lstm3": (V, V * W + V + 3 * LSTM_LAYER),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_as_many_parameters_as_published(name):
    classes, expected = PUBLISHED[name]
    with torch.device("meta"):
        model = RECIPES[name].network(classes)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: mlp(10, inputs=64, hidden=(64, 64)), (1, 8, 8)),
        (lambda: convnet(10, channels=1, widths=(16, 32)), (1, 8, 8)),
        (lambda: lenet5(10), (1, 28, 28)),
        (lambda: resnet(10, widths=(16, 32, 64), blocks=1, projection=False), (3, 32, 32)),
        (lambda: resnet(10, widths=(64, 128, 256, 512), blocks=2, projection=True), (3, 32, 32)),
        (lambda: wide_resnet(10, depth=28, width=10), (3, 32, 32)),
    ],
)
def test_networks_for_images_give_a_number_per_class(make, shape):
    with torch.device("meta"):
        assert make()(torch.zeros(2, *shape)).shape == (2, 10)


def test_a_small_wide_resnet_runs_and_its_depth_is_checked():
    torch.manual_seed(0)
    assert wide_resnet(10, depth=10, width=1)(torch.randn(2, 3, 32, 32)).isfinite().all()
    with pytest.raises(ValueError, match=r"^depth must be 6 n \+ 4 with n >= 1, got 27"):
        wide_resnet(10, depth=27, width=10)


def test_the_shortcut_without_parameters_keeps_every_second_pixel_and_adds_zeros():
    block = resnet(10, widths=(2, 4), blocks=1, projection=False)[4]
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    out = block.shortcut(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 2:], torch.zeros(1, 2, 2, 2))


def test_the_recurrent_model_ties_its_output_to_its_embedding():
    model = LSTMLanguageModel(11, width=6, layers=2, dropout=0.5)
    assert model.output.weight is model.embedding.weight
    logits, state = model(torch.zeros(3, 5, dtype=torch.int64))
    assert logits.shape == (3, 5, 11)
    assert [part.shape for part in state] == [(2, 3, 6)] * 2


def test_the_transformer_does_not_look_ahead():
    torch.manual_seed(0)
    model = TransformerLanguageModel(11, width=8, layers=2, heads=2, context=6)
    tokens = torch.randint(11, (2, 6))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    one, other = model(tokens), model(changed)
    assert one.shape == (2, 6, 11)
    torch.testing.assert_close(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])
