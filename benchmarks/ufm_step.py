"""A step of the unconstrained feature model (d = 512, K = 10, N = 10,000) against the memory traffic it cannot avoid.

Any step reads and writes H and its optimizer state once (Adam: two moments, SGD: one), 20 MB each and far more than a
cache holds. The floor is the time of exactly that: each of these arrays scaled in place. What else a step moves is H
twice more (logits, gradient of W) and the gradient of H (written, read by the optimizer). Beside the floor stands the
time of a step's three matrix products alone, in the same run: with K = 10 they take longer than the traffic, so that no
sequence of library calls can come near the floor.
"""

import torch
from common import TOY, main, paired, profile, row

from ncutils import data, machine
from ncutils.runs import Run
from ncutils.step import Step, epoch, make_model, run_optimizer

STEPS = 2 if TOY else 20
ARRAYS = {"Adam": 3, "AdamW": 3, "SGDW": 2}


def step(run, dataset):
    model = make_model(run, dataset, torch.device("cpu"))
    take = Step(model, run_optimizer(model, run), run)

    def steps():
        for _ in range(STEPS):
            epoch(take, dataset.train_images, dataset.train_labels, None)

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


def rows():
    dataset = data.load("unconstrained")
    machine.keep_freed_memory(True)  # as training.train has both
    torch.set_flush_denormal(True)
    multiply = products()
    for name, count in ARRAYS.items():
        run = Run.named(name, 5e-4, lr=0.1, arch="ufm", width=64, dataset="unconstrained", batch_size=10_000)
        arrays = [torch.ones(10_000, 512) for _ in range(count)]
        mine = step(run, dataset)
        least, ours, ratio = paired(floor(arrays), mine)
        _, _, share = paired(floor(arrays), multiply)
        why = f"{profile(mine)}; the step's three matrix products alone take {share:.1f} times the floor"
        yield row(f"feature model, {name}: step over the floor", ratio, 2.5, at_most=True, unit=" x", why=why,
                  against="its arrays read and written once", usual=least / STEPS, ours=ours / STEPS)  # fmt: skip


if __name__ == "__main__":
    main(rows)
