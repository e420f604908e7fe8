"""What the calibrated schedule adds to a step, beside torch's cosine and a torch optimizer that does without.

    python benchmarks/calibrated_step.py [--device cuda] [--rounds 20] [--json results/calibrated-step.json]

*hook* is `observe` of a loss that is a number and the hook that sets the rate, without the optimizer's own step, over
`torch.optim.lr_scheduler.CosineAnnealingLR.step`. *step* is the whole step of torch's fused optimizer with the schedule
over the one without. *memory* is what is kept, beside nothing. One thread; the cases take turns.
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import metastep as ms
from measuring import interleaved, write_record
from metastep.lab.tasks.networks.resnet import resnet

STEPS = 10**7
KINDS: dict[str, Any] = {"adamw": (AdamW, {}), "sgd": (SGD, {"momentum": 0.9})}


def parameters(what: str, device: str) -> list[torch.nn.Parameter]:
    """The tensors of a case, with gradients."""
    if what == "one tensor":
        found = [torch.nn.Parameter(torch.randn(100, 100, device=device))]
    else:
        network = resnet(10, widths=(64, 128, 256, 512), blocks=2, projection=True)
        wide = 5.5 if what.endswith("x 30") else 1
        shapes = [p.shape for p in network.parameters()]
        found = [
            torch.nn.Parameter(torch.randn([*(round(n * wide) for n in s[:2]), *s[2:]], device=device) / 50)
            for s in shapes
        ]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter) / 100
    return found


def optimizer(kind: str, members: list[torch.nn.Parameter]) -> Optimizer:
    make, options = KINDS[kind]
    made: Optimizer = make(members, lr=1e-4, fused=True, **options)
    return made


def measure(kind: str, what: str, device: str, rounds: int) -> dict[str, Any]:
    members = parameters(what, device)
    plain, ours, cosine = (optimizer(kind, members) for _ in range(3))
    scheduler = CosineAnnealingLR(cosine, STEPS)
    lr = ms.LearnedLR(ours, "calibrated", total_steps=STEPS)
    (hook,) = ours._optimizer_step_pre_hooks.values()
    lr.observe(2.0)
    ours.step()
    plain.step()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def observed() -> None:
        lr.observe(2.0)
        hook(ours, (ours,), {})

    def whole() -> None:
        lr.observe(2.0)
        ours.step()

    cosine.step()
    small = interleaved({"cosine": scheduler.step, "hook": observed}, rounds=rounds, calls=200, wait=wait)
    result: dict[str, Any] = {
        "optimizer": kind,
        "tensors": len(members),
        "numbers": sum(p.numel() for p in members),
        "cosine_us": small["cosine"]["median"] * 1e6,
        "hook_us": small["hook"]["median"] * 1e6,
        "hook_over_cosine": small["hook"]["median"] / small["cosine"]["median"],
        "state_bytes": len(pickle.dumps(lr.state_dict())),
    }
    if not what.endswith("x 30"):
        steps = interleaved({"plain": plain.step, "ours": whole}, rounds=rounds, calls=5, wait=wait)
        result["step_ms"] = steps["plain"]["min"] * 1e3
        result["step_ratio"] = steps["ours"]["min"] / steps["plain"]["min"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for kind in KINDS:
        for what in ("one tensor", "resnet-18", "resnet-18 x 30"):
            found = {"case": what, **measure(kind, what, arguments.device, arguments.rounds)}
            results.append(found)
            step = f"  step {found['step_ms']:.2f} ms x {found['step_ratio']:.3f}" if "step_ms" in found else ""
            print(
                f"{kind:6s} {what:16s} {found['numbers'] / 1e6:8.2f} M  cosine {found['cosine_us']:5.1f} us  "
                f"hook {found['hook_us']:6.1f} us = {found['hook_over_cosine']:5.1f} x{step}  "
                f"state {found['state_bytes']} bytes",
                flush=True,
            )
    write_record(arguments.json, arguments.device, results)


if __name__ == "__main__":
    main()
