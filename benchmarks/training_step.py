"""ResNet9 training at width 64, batch 128, images of FashionMNIST's shape padded to 32 x 32.

An epoch with one evaluation of all metrics, against the plain loop: a DataLoader over uint8 images with torchvision's transforms, NCHW,
float32, the network in its usual order (ReLU before pooling), then three passes over the training set for the metrics and
one over the test set. And a step alone: against the bare forward and backward of its convolutions, each timed by itself,
and against the machine's best matrix product.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import TOY, main, median_seconds, paired, profile, row
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from ncutils import data, machine
from ncutils.runs import Run
from ncutils.step import Step, epoch, make_model, measure, run_optimizer

WIDTH, BATCH, STEPS = (4, 16, 2) if TOY else (64, 128, 6)
N, K = STEPS * BATCH, 10
CPU = torch.device("cpu")


class Images(Dataset):
    """As torchvision's data sets hold theirs: uint8, transformed one by one."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        steps = [
            transforms.ToPILImage(),
            transforms.Pad(2),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.25),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def plain(images, labels, run, dataset):
    """An epoch, then the metrics."""
    shuffled = DataLoader(Images(images, labels), BATCH, shuffle=True)
    in_order = DataLoader(Images(images, labels), BATCH)
    test = DataLoader(Images(images[: N // 6], labels[: N // 6]), BATCH)
    torch.manual_seed(0)
    model = make_model(run, dataset, CPU).to(memory_format=torch.contiguous_format)
    for block in model.modules():
        if isinstance(block, torch.nn.Sequential) and isinstance(block[-2], torch.nn.MaxPool2d):
            block[-2], block[-1] = block[-1], block[-2]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4)
    p = model.classifier.in_features

    @torch.no_grad()
    def evaluate():
        model.eval()
        means, counts, loss = torch.zeros(K, p), torch.zeros(K), 0.0
        for x, y in in_order:
            h = model.features(x)
            loss += F.cross_entropy(model.classifier(h), y, reduction="sum").item()
            for k in range(K):
                means[k] += h[y == k].sum(0)
                counts[k] += (y == k).sum()
        means /= counts[:, None]
        within = torch.zeros(p, p)
        for x, y in in_order:
            d = model.features(x) - means[y]
            within += d.T @ d
        agree = 0
        for x, _ in in_order:
            h = model.features(x)
            agree += (model.classifier(h).argmax(1) == torch.cdist(h, means).argmin(1)).sum().item()
        m = means - means.mean(0)
        torch.trace(within / N @ torch.linalg.pinv(m.T @ m / K, hermitian=True)).item()
        return sum((model(x).argmax(1) == y).sum().item() for x, y in test)

    def whole_epoch():
        machine.keep_freed_memory(False)
        model.train()
        for x, y in shuffled:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        evaluate()

    return whole_epoch


def here(run, dataset):
    model = make_model(run, dataset, CPU)
    step, order = Step(model, run_optimizer(model, run), run), torch.Generator().manual_seed(0)

    def steps():
        machine.keep_freed_memory(True)
        epoch(step, dataset.train_images, dataset.train_labels, order)

    def whole_epoch():
        steps()
        measure(model, dataset, run)

    return model, steps, whole_epoch


def bare_convolutions(model, images, dtype):
    """Forward and backward of each convolution by itself, on random inputs of the shapes that it meets."""
    shapes, calls = [], []
    hooks = [
        m.register_forward_hook(lambda m, x, _: shapes.append((m, x[0].shape)))
        for m in model.modules()
        if isinstance(m, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model.features(images)
    for hook in hooks:
        hook.remove()
    for first, (m, shape) in zip([True] + [False] * len(shapes), shapes):
        x = torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_(not first)
        w = m.weight.detach().to(dtype, memory_format=torch.channels_last).requires_grad_()
        calls.append((x, w, torch.randn_like(F.conv2d(x, w, padding=1).detach())))

    def steps():
        machine.keep_freed_memory(True)
        for x, w, g in STEPS * calls:
            F.conv2d(x, w, padding=1).backward(g)
            x.grad = w.grad = None

    def whole_epoch():
        """All steps, then the one pass over training and test images that measuring takes."""
        steps()
        with torch.no_grad():
            for x, w, _ in (STEPS + STEPS // 6) * calls:
                F.conv2d(x, w, padding=1)

    return steps, whole_epoch


def best_rate(dtype) -> float:
    """Operations a second of the best of a few matrix products."""

    def rate(n):
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        torch.mm(a, b)
        return 2 * n**3 / median_seconds(lambda: torch.mm(a, b))

    return max(map(rate, (64,) if TOY else (1024, 2048, 4096)))


def of_precision(precision, dtype, goal, images, labels, dataset):
    run = Run(width=WIDTH, lr=0.01, coupled_wd=5e-4, precision=precision)
    x, y = dataset.train_images[:BATCH], dataset.train_labels[:BATCH]
    model, steps, whole_epoch = here(run, dataset)
    name = f"ResNet9 width {WIDTH}, {precision}"
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(model(x), y).backward()
    least = counted.get_total_flops() / best_rate(dtype)
    mine, theirs, ratio = paired(whole_epoch, plain(images, labels, run, dataset))
    of_steps, of_epoch = bare_convolutions(model, x, dtype)
    of_epoch()
    bound = theirs / median_seconds(of_epoch)
    yield row(f"{name}: epoch of {N} images and all metrics", ratio, goal, unit=" x",
              against="plain loop, three evaluation passes", usual=theirs, ours=mine,
              why=f"its convolutions by themselves, without anything between them, would give {bound:.2f} x")  # fmt: skip
    mine, theirs, ratio = paired(steps, of_steps)
    yield row(f"{name}: step", 100 * ratio, 50, unit=" %", against="its convolutions by themselves",
              usual=theirs / STEPS, ours=mine / STEPS, why=profile(steps))  # fmt: skip
    yield row(f"{name}: step", 100 * least / mine * STEPS, unit=" %", against="best matrix-product rate", usual=least,
              ours=mine / STEPS)  # fmt: skip


def rows():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (N, 28, 28), dtype=np.uint8), np.arange(N) % K
    x = torch.from_numpy(np.pad(images[:, None], ((0, 0), (0, 0), (2, 2), (2, 2)))).float()
    x = ((x / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)
    dataset = data.Dataset(x, y, x[: N // 6], y[: N // 6], K)
    for precision, dtype, goal in (("float32", torch.float32, 2), ("bf16", torch.bfloat16, 4)):
        yield from of_precision(precision, dtype, goal, images, labels, dataset)


if __name__ == "__main__":
    main(rows)
