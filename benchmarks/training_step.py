"""Samples a second of ResNet9 training at width 64, batch 128, 32 x 32 RGB, against the plain loop.

Plain: a DataLoader over uint8 images with the usual transform, NCHW, float32, and the network in its usual order (ReLU before
pooling). Both train with SGD. Ours is `training._epoch` as a run of that width uses it, in float32 and with bf16 convolutions.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, paired
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ncutils import data, training
from ncutils.training import Run, make_model

BATCH, STEPS, PAIRS = 128, 2, 5


class Images(Dataset):
    """As torchvision's data sets hold theirs: uint8 [H, W, C], transformed one by one."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def plain(images, labels, run, dataset):
    loader = DataLoader(Images(images, labels), BATCH, shuffle=True)
    torch.manual_seed(0)
    model = make_model(run, dataset, torch.device("cpu")).to(memory_format=torch.contiguous_format)
    for block in model.modules():
        if isinstance(block, torch.nn.Sequential) and isinstance(block[-2], torch.nn.MaxPool2d):
            block[-2], block[-1] = block[-1], block[-2]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4)

    def epoch():
        training.keep_freed_memory(False)
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return epoch


def ours(run, dataset):
    model = make_model(run, dataset, torch.device("cpu"))
    optimizer = training.run_optimizer(model, run)
    order = torch.Generator().manual_seed(0)

    def epoch():
        training.keep_freed_memory(True)
        training._epoch(model, optimizer, dataset.train_images, dataset.train_labels, run, order)

    return epoch


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    n = STEPS * BATCH
    images, labels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)
    x = ((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25).contiguous(
        memory_format=torch.channels_last
    )
    y = torch.from_numpy(labels)
    dataset = data.Dataset(x, y, x, y, 10)
    print(f"training, ResNet9 width 64, batch {BATCH}, 32 x 32 x 3 ({machine()}; median of {PAIRS} pairs)")
    for precision in ("float32", "bf16"):
        run = Run(width=64, lr=0.01, coupled_wd=5e-4, precision=precision)
        mine, theirs, ratio = paired(ours(run, dataset), plain(images, labels, run, dataset), PAIRS)
        print(f"  {precision}: plain loop {n / theirs:.0f} samples/s, here {n / mine:.0f}: {ratio:.2f} times as many")
