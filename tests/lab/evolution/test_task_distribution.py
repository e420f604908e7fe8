"""The data on which schedules are trained."""

import pytest
import torch

from metastep.lab.evolution.task_distribution import MADE, load_examples


@pytest.mark.parametrize("name", [*MADE, "table:diabetes", "images:digits"])
def test_data_are_the_same_for_the_same_seed_and_say_what_they_are(name: str) -> None:
    data, again = load_examples(name, 5), load_examples(name, 5)
    assert all(map(torch.equal, data.train, again.train))
    inputs = data.train[0]
    if data.kind == "tokens":
        assert 0 <= int(inputs.min()) <= int(inputs.max()) < data.outputs
    elif data.kind == "classes":
        assert int(data.train[1].max()) < data.outputs
    else:
        assert data.train[1].shape == (len(inputs), data.outputs)
        assert abs(float(data.train[1].mean())) < 0.2
    with pytest.raises(ValueError, match=r"name must be table:NAME.* got 'mnist'"):
        load_examples("mnist", 0)
