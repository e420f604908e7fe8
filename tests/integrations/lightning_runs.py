"""A Lightning module and datamodule of digits, and how they are fitted in the tests."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from tests.integrations.digits import digits, network, note_rates
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

#: Lightning's advice, which the tests do not follow.
ADVICE = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*training_step. returned .None.:UserWarning"),
]

sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Digits(pl.LightningModule):
    """A perceptron; notes its losses, and the rates of its optimizer."""

    def __init__(self, make=sgd):
        super().__init__()
        self.net, self.make = network(), make
        self.losses, self.used = [], []

    def configure_optimizers(self):
        self.optimizer = self.make(self.parameters())
        self.used = note_rates(self.optimizer)
        return self.optimizer

    def loss(self, batch):
        return cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        self.log("valid", self.loss(batch))


class Data(pl.LightningDataModule):
    def __init__(self, batch_size=32):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(TensorDataset(*digits(192)), batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*digits(96, start=192)), batch_size=32)


def fit(module, *callbacks, folder, data=None, ckpt_path=None, **options):
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, data or Data(), ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class Manual(Digits):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5)
        optimizer.step()
