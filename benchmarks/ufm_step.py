"""A step of the unconstrained feature model (d = 512, K = 10, N = 10,000) against the memory traffic it cannot avoid.

Any step reads and writes H and its optimizer state once (Adam: two moments, SGD: one), 20 MB each and far more than a
cache holds. The floor is the time of exactly that: each of these arrays scaled in place. What else a step moves is H
twice more (logits, gradient of W) and the gradient of H (written, read by the optimizer). Beside the floor stands the
time of a step's three matrix products alone, in the same run: with K = 10 they take longer than the traffic, so that no
sequence of library calls can come near the floor.
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


def products(n=10_000, p=512, k=10):
    """Logits H W^T, the gradient of H and that of W, without allocation."""
    h, w, g = torch.randn(n, p), torch.randn(k, p), torch.randn(n, k)
    logits, dh, dw = torch.empty(n, k), torch.empty(n, p), torch.empty(k, p)

    def steps():
        for _ in range(STEPS):
            torch.mm(h, w.T, out=logits)
            torch.mm(g, w, out=dh)
            torch.mm(g.T, h, out=dw)

    return steps


if __name__ == "__main__":
    dataset = data.load("unconstrained")
    print(f"unconstrained feature model, d = 512, K = 10, N = 10,000 ({machine()}; median of {PAIRS} pairs)")
    training.keep_freed_memory(True)  # as training.train has it
    least, multiply, _ = paired(floor([torch.ones(10_000, 512)]), products(), PAIRS)
    print(
        f"  one array read and written {1e3 * least / STEPS:.1f} ms, the products alone {1e3 * multiply / STEPS:.1f} ms"
    )
    for name, count in ARRAYS.items():
        run = Run.named(name, 5e-4, lr=0.1, arch="ufm", width=64, dataset="unconstrained", batch_size=10_000)
        arrays = [torch.ones(10_000, 512) for _ in range(count)]
        least, ours, ratio = paired(floor(arrays), step(run, dataset), PAIRS)
        print(
            f"  {name}: step {1e3 * ours / STEPS:.1f} ms, floor {1e3 * least / STEPS:.1f} ms: {ratio:.2f} times the floor"
        )
