"""Transformers: a small GPT-2, whose Trainer takes the learning rate of each step from that step's own loss.

    pip install "metastep[transformers]"
    python examples/transformers_gpt2.py [FOLDER [SCHEDULE.safetensors]]

Nothing is downloaded. It reads Shakespeare if it is there, otherwise this file. Without a schedule file the schedule is
untrained: it shows how things are connected, not how well they do.
"""

import os
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import metastep as ms
from metastep.integrations import AsScheduler
from metastep.integrations.transformers import LearnedLRTrainer

LENGTH, ROWS = 32, 320


def passages() -> list[dict[str, torch.Tensor]]:
    """Rows of LENGTH bytes."""
    data = Path(os.environ.get("METASTEP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    file = data / "text" / "tinyshakespeare.txt"
    text = (file if file.is_file() else Path(__file__)).read_bytes() * ROWS
    rows = torch.tensor(list(text[: ROWS * LENGTH])).view(ROWS, LENGTH).clamp(max=127)
    return [{"input_ids": row, "labels": row} for row in rows]


def main(folder: str = "transformers_gpt2", path: str | None = None) -> list[dict[str, float]]:
    """Train; return the Trainer's log."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 128, "n_positions": LENGTH}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = ms.MLRSNet() if path is None else ms.load_schedule(path)
    lr = ms.LearnedLR(optimizer, schedule, num_classes=128, warmup_steps=5)
    trainer = LearnedLRTrainer(
        model=model,
        args=TrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            max_grad_norm=1.0,
            logging_steps=5,
            save_steps=20,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=passages(),
        optimizers=(optimizer, AsScheduler(lr)),
    )
    trainer.train()  # trainer.train(resume_from_checkpoint=True) resumes bit for bit
    return [entry for entry in trainer.state.log_history if "learning_rate" in entry]


if __name__ == "__main__":
    main(*sys.argv[1:])
