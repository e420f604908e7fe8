"""Tasks on the data that come with scikit-learn: always there, and a step takes milliseconds."""

from functools import partial

from metastep.lab.tasks.digits import load_digits, load_digits_to_reconstruct
from metastep.lab.tasks.networks.autoencoder import autoencoder
from metastep.lab.tasks.networks.convnet import convnet
from metastep.lab.tasks.networks.mlp import mlp
from metastep.lab.tasks.networks.resnet import resnet
from metastep.lab.tasks.networks.vit import VisionTransformer
from metastep.lab.tasks.noise import LabelNoise
from metastep.lab.tasks.tabular import read_table
from metastep.lab.tasks.task import Recipe

_SGD = {"momentum": 0.9, "weight_decay": 5e-4}

BUNDLED = (
    Recipe(
        name="digits/mlp",
        summary="perceptron with two hidden layers of 64 on scikit-learn's digits",
        network=partial(mlp, inputs=64, hidden=(64, 64)),
        read=load_digits,
        batch_size=32,
        total_steps=800,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=200,
        outer_valid=200,
        learning_rate=0.05,
    ),
    Recipe(
        name="digits/convnet",
        summary="small convolutional network with batch norm on scikit-learn's digits",
        network=partial(convnet, channels=1, widths=(16, 32)),
        read=load_digits,
        batch_size=32,
        total_steps=800,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=200,
        outer_valid=200,
        learning_rate=0.1,
    ),
    Recipe(
        name="digits/mlp-noisy",
        summary="the perceptron with 40 % of the training labels drawn at random",
        network=partial(mlp, inputs=64, hidden=(64, 64)),
        read=load_digits,
        batch_size=32,
        total_steps=200,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=200,
        outer_valid=200,
        learning_rate=0.05,
        label_noise=LabelNoise("uniform", 0.4),
    ),
    Recipe(
        name="digits/resnet",
        summary="ResNet of 8, 16, 32 channels, one block each, on scikit-learn's digits",
        network=partial(resnet, widths=(8, 16, 32), blocks=1, projection=False, channels=1),
        read=load_digits,
        batch_size=32,
        total_steps=200,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=200,
        outer_valid=200,
        learning_rate=0.05,
    ),
    Recipe(
        name="digits/vit",
        summary="vision transformer, 2 blocks of width 32 on patches of 2 x 2, on scikit-learn's digits",
        network=partial(VisionTransformer, channels=1, size=8, patch=2, width=32, layers=2, heads=4),
        read=load_digits,
        batch_size=32,
        total_steps=200,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.05},
        inner_valid=200,
        outer_valid=200,
        learning_rate=5e-3,
    ),
    Recipe(
        name="digits/autoencoder",
        summary="autoencoder 64-32-8-32-64 of scikit-learn's digits",
        network=partial(autoencoder, hidden=(32,), code=8),
        read=load_digits_to_reconstruct,
        batch_size=32,
        total_steps=200,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.0},
        inner_valid=200,
        outer_valid=200,
        learning_rate=0.01,
        kind="reconstruction",
    ),
    Recipe(
        name="diabetes/mlp",
        summary="regression: perceptron with a hidden layer of 32 on scikit-learn's diabetes",
        network=partial(mlp, inputs=10, hidden=(32,)),
        read=partial(read_table, table="diabetes"),
        kind="regression",
        batch_size=16,
        total_steps=200,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=60,
        outer_valid=60,
        learning_rate=0.01,
    ),
    Recipe(
        name="breast-cancer/linear",
        summary="logistic regression on scikit-learn's breast cancer",
        network=partial(mlp, inputs=30, hidden=()),
        read=partial(read_table, table="breast_cancer"),
        batch_size=16,
        total_steps=200,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=80,
        outer_valid=80,
        learning_rate=0.05,
    ),
    Recipe(
        name="wine/mlp",
        summary="perceptron with a hidden layer of 16 on scikit-learn's wine",
        network=partial(mlp, inputs=13, hidden=(16,)),
        read=partial(read_table, table="wine"),
        batch_size=16,
        total_steps=200,
        optimizer="sgd",
        optimizer_options=_SGD,
        inner_valid=30,
        outer_valid=30,
        learning_rate=0.1,
    ),
)
