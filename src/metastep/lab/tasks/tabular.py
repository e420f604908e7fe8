"""Tables of numbers that come with scikit-learn: diabetes (regression), breast cancer and wine (classes)."""

from typing import Literal

import torch
from torch import Tensor

from metastep.lab.tasks.examples import ExampleData, Examples
from metastep.lab.tasks.kinds import CLASSES_OF_STANDARDISED_TARGETS
from metastep.lab.tasks.request import Request
from metastep.lab.tasks.sources import optional_module
from metastep.lab.tasks.splits import SPLITS, balanced_order, split_order

Table = Literal["diabetes", "breast_cancer", "wine"]
_TEST_SHARE = 0.25


def read_table(request: Request, *, table: Table) -> ExampleData:
    """Read and split a table; features, and the numbers to predict, are standardised by the training split.

    Args:
        request: Sizes of the splits, and the label noise.
        table: Which.
    """
    columns, answers = getattr(optional_module("sklearn.datasets"), f"load_{table}")(return_X_y=True)
    inputs = torch.from_numpy(columns).float()
    classes = None if table == "diabetes" else torch.from_numpy(answers).long()
    # Of one class for the split's purposes, so that the order is merely random: held-out classes that are evened out
    # would leave the small training split uneven.
    order = balanced_order(torch.zeros(len(inputs), dtype=torch.int64))
    rows = split_order(order, request, test=round(_TEST_SHARE * len(order)))
    inputs = _standardised(inputs, rows["train"])
    numbers = torch.from_numpy(answers).float()[:, None]
    targets = _standardised(numbers, rows["train"]) if classes is None else classes
    splits = {name: Examples(inputs[rows[name]], targets[rows[name]]) for name in SPLITS}
    count = CLASSES_OF_STANDARDISED_TARGETS if classes is None else int(classes.max()) + 1
    if classes is not None and request.label_noise is not None:
        clean = splits["train"]
        splits["train"] = Examples(clean.inputs, request.label_noise.apply(clean.targets, count))
    return ExampleData(
        splits_by_name=splits,
        num_classes=count,
        outputs=1 if classes is None else None,
        notes=f"scikit-learn's bundled {table.replace('_', ' ')} table, {len(order)} rows of {inputs.shape[1]} numbers",
    )


def _standardised(columns: Tensor, rows: Tensor) -> Tensor:
    """Shift and scale each column so that over `rows` its mean is 0 and its mean square 1."""
    part = columns[rows]
    return (columns - part.mean(0)) / part.std(0, correction=0).clamp_min(1e-6)
