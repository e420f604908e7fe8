import pytest
import torch

from metastep.lab.tasks.networks.feedforward import convnet, lenet5, mlp
from metastep.lab.tasks.networks.mobile import mobilenet_v2, shufflenet_v2
from metastep.lab.tasks.networks.nasnet import NASNetA
from metastep.lab.tasks.networks.resnet import bottleneck_resnet, resnet, wide_resnet
from metastep.lab.tasks.networks.sequence import LSTMLanguageModel, TransformerLanguageModel, VisionTransformer
from metastep.lab.tasks.table import RECIPES

V, W = 10_000, 512
LSTM_LAYER = 4 * W * 2 * W + 2 * 4 * W

# Numbers of parameters as published, or counted by hand.
PUBLISHED = {
    "digits/mlp": (10, (64 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 10),
    "digits/convnet": (10, 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + (32 + 1) * 10),
    "mnist/lenet5": (10, 61_706),
    "cifar10/resnet8": (10, 75_290),
    "cifar10/resnet18": (10, 11_173_962),
    "cifar10/resnet34": (10, 21_282_122),
    "mnist/autoencoder": (784, 2_837_314),
    "imagenet/resnet50": (1000, 25_557_032),
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


# Networks whose published sizes are not those in the table.
ALSO_PUBLISHED = {
    "ShuffleNetV2 1x": (lambda: shufflenet_v2(1000, small_images=False), 2_278_604),
    "MobileNetV2": (lambda: mobilenet_v2(1000, small_images=False), 3_504_872),
    "ViT-B/16": (
        lambda: VisionTransformer(1000, channels=3, size=224, patch=16, width=768, layers=12, heads=12),
        86_567_656,
    ),
}


@pytest.mark.parametrize("name", ALSO_PUBLISHED)
def test_the_same_networks_at_their_published_size_have_as_many_parameters_as_published(name):
    make, expected = ALSO_PUBLISHED[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == expected


def test_nasnet_a_with_6_cells_at_768_has_the_published_3_3_million_parameters():
    with torch.device("meta"):
        model = NASNetA(10, cells=6, filters=32)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 3.3
    assert model.head[-1].in_features == 768


@pytest.mark.parametrize("small", [True, False])
def test_networks_for_small_images_differ_in_strides_alone(small):
    for make in (mobilenet_v2, shufflenet_v2):
        with torch.device("meta"):
            model = make(10, small_images=small)
            side = 32 if small else 224
            before_pooling = model[: [type(m) for m in model].index(torch.nn.AdaptiveAvgPool2d)]
            assert before_pooling(torch.zeros(2, 3, side, side)).shape[2:] == ((4, 4) if small else (7, 7))


def test_a_vision_transformer_refuses_patches_that_do_not_tile():
    with pytest.raises(ValueError, match=r"^patch must divide the size 8 of the images, got 3\.$"):
        VisionTransformer(10, channels=1, size=8, patch=3, width=8, layers=1, heads=1)


def test_a_shuffle_block_passes_half_of_its_channels_by_and_interleaves_them():
    block = shufflenet_v2(10, small_images=True)[4]  # the second of the first stage
    x = torch.randn(2, 116, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block.eval()(x)[:, ::2], x[:, :58])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: mlp(10, inputs=64, hidden=(64, 64)), (1, 8, 8)),
        (lambda: convnet(10, channels=1, widths=(16, 32)), (1, 8, 8)),
        (lambda: lenet5(10), (1, 28, 28)),
        (lambda: resnet(10, widths=(16, 32, 64), blocks=1, projection=False), (3, 32, 32)),
        (lambda: resnet(10, widths=(64, 128, 256, 512), blocks=2, projection=True), (3, 32, 32)),
        (lambda: wide_resnet(10, depth=28, width=10), (3, 32, 32)),
        (lambda: resnet(10, widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3), projection=True, channels=1), (1, 28, 28)),
        (lambda: lenet5(10, channels=3, size=32), (3, 32, 32)),
        (lambda: mobilenet_v2(10, small_images=True), (3, 32, 32)),
        (lambda: shufflenet_v2(10, small_images=True), (3, 32, 32)),
        (lambda: NASNetA(10, cells=2, filters=32), (3, 32, 32)),
        (lambda: bottleneck_resnet(10), (3, 224, 224)),
        (lambda: VisionTransformer(10, channels=1, size=8, patch=2, width=32, layers=2, heads=4), (1, 8, 8)),
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
