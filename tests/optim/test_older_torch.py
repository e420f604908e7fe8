"""Checkpoints that an older torch wrote are taken over, too."""

import pytest
import torch

import metastep as ms


@pytest.mark.parametrize(
    ("base", "ours"), [(torch.optim.Adam, ms.HyperAdam), (torch.optim.AdamW, ms.HyperAdamW)], ids=["Adam", "AdamW"]
)
def test_a_checkpoint_of_torch_2_6_is_taken_over(base: type, ours: type) -> None:
    """It lacks decoupled_weight_decay, which the groups of a newer torch's Adam have."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    theirs = base([weight], lr=0.1, weight_decay=0.1)
    weight.grad = torch.tensor([1.0, -1.0], dtype=torch.float64)
    theirs.step()
    saved = theirs.state_dict()
    for group in saved["param_groups"]:
        group.pop("decoupled_weight_decay", None)
    same = torch.nn.Parameter(weight.detach().clone())
    frozen = ours([same], lr=0.1, weight_decay=0.1, hyper_lr=0)
    expected = frozen.param_groups[0]["decoupled_weight_decay"]
    frozen.load_state_dict(saved)
    assert frozen.param_groups[0]["decoupled_weight_decay"] is expected
    same.grad = weight.grad.clone()
    theirs.step()
    frozen.step()
    assert torch.equal(same, weight)
