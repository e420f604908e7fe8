"""Lightning: learn a schedule on validation batches while a module trains, then use it in another run.

    pip install "metastep[lightning,data]"
    python examples/lightning_digits.py [FOLDER]

The first run writes FOLDER/schedule.safetensors, the second trains a wider network with it.
"""

import logging
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import metastep as ms
from metastep.integrations.lightning import LearnedLRCallback, MetaLearnerCallback


class Digits(pl.LightningDataModule):
    """scikit-learn's digits: 1500 to train on, 200 to learn the schedule from."""

    def setup(self, stage: str) -> None:
        """Read the images."""
        data = load_digits()
        self.images, self.labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return DataLoader(TensorDataset(self.images[:1500], self.labels[:1500]), batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(TensorDataset(self.images[1500:1700], self.labels[1500:1700]), batch_size=100)


class Perceptron(pl.LightningModule):
    """An ordinary module; it knows nothing of schedules."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer alone, without a scheduler."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """As ever."""
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """As ever."""
        self.log("valid_loss", self.loss(batch))


def main(folder: str = "lightning_digits") -> dict[str, float]:
    """Learn, carry over; return the validation losses."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    pl.seed_everything(0, verbose=False)
    schedule = ms.MLRSNet()
    callbacks = {
        "learning": MetaLearnerCallback(schedule, Perceptron.loss, every=5, meta_lr=0.01, num_classes=10),
        "using": LearnedLRCallback(schedule, num_classes=10),
    }
    found = {}
    for (name, callback), hidden in zip(callbacks.items(), (32, 128), strict=True):
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="auto",
            devices=1,
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            callbacks=[callback, LearningRateMonitor("step"), ModelCheckpoint(Path(folder) / name / "checkpoints")],
            logger=CSVLogger(folder, name=name),
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Perceptron(hidden), Digits())
        found[name] = float(trainer.callback_metrics["valid_loss"])
        sys.stdout.write(
            f"{name:8s}  {callback.lr.steps} steps, validation loss {found[name]:.3f}, last rate "
            f"{callback.lr.get_last_lr()[0]:.3f}; every step's rate: {trainer.logger.log_dir}/metrics.csv\n"
        )
    ms.save_schedule(schedule, Path(folder) / "schedule.safetensors")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
