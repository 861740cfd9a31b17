"""A step of the unconstrained feature model (d = 512, K = 10, N = 10,000) against the memory traffic it cannot avoid.

Any step reads and writes H and its optimizer state once (Adam: two moments, SGD: one), 20 MB each and far more than a
cache holds. The floor is the time of exactly that: each of these arrays scaled in place. What else a step moves is H
twice more (logits, gradient of W) and the gradient of H (written, read by the optimizer).
"""

import torch
from common import machine, paired

from ncutils import data, training
from ncutils.training import Run, make_model

STEPS, PAIRS, ARRAYS = 20, 7, {"Adam": 3, "AdamW": 3, "SGDW": 2}


def step(run, dataset):
    model = make_model(run, dataset, torch.device("cpu"))
    optimizer = training.run_optimizer(model, run)

    def steps():
        for _ in range(STEPS):
            training._epoch(model, optimizer, dataset.train_images, dataset.train_labels, run, None)

    return steps


def floor(arrays):
    def steps():
        for _ in range(STEPS):
            for array in arrays:
                array.mul_(1.0001)

    return steps


if __name__ == "__main__":
    dataset = data.load("unconstrained")
    print(f"unconstrained feature model, d = 512, K = 10, N = 10,000 ({machine()}; median of {PAIRS} pairs)")
    training.keep_freed_memory(True)  # as training.train has it
    for name, count in ARRAYS.items():
        run = Run.named(name, 5e-4, lr=0.1, arch="ufm", width=64, dataset="unconstrained", batch_size=10_000)
        arrays = [torch.ones(10_000, 512) for _ in range(count)]
        least, ours, ratio = paired(floor(arrays), step(run, dataset), PAIRS)
        print(
            f"  {name}: step {1e3 * ours / STEPS:.1f} ms, floor {1e3 * least / STEPS:.1f} ms: {ratio:.2f} times the floor"
        )
