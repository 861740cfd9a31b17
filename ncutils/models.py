"""Networks: `features(images) -> [N, p]`, then one linear `classifier` [K, p].

`width` scales every layer; width 64 is the paper's, with p = 8 width = 512. Initialisation is PyTorch's default
(which gives NC0 = sqrt(K/3) at the start, the paper's 1.77 to 1.83 for K = 10). Convolutions carry no bias, which the
BatchNorm after each would remove; those of the authors' released code (`net="released"`) do, and so draw other weights from the
same seed: with theirs, the paper's own. Their ViT has an initialisation and dropout of its own. Where a ReLU and a max-pooling
meet, the pooling comes first: they commute, and the ReLU then has a quarter of the work.

A network is made from `width`, the training images' shape [N, C, H, W] and K.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn


class Classifier(nn.Module):
    """A backbone `features` [N, C, H, W] -> [N, p] and the last layer, whose geometry the metrics measure."""

    def __init__(self, features: nn.Module, p: int, n_classes: int):
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(p, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class GlobalMaxPool(nn.Module):
    """The largest value of each channel, [N, C, H, W] -> [N, C]."""

    def forward(self, x):
        return x.amax(dim=(2, 3))


def conv_block(c_in: int, c_out: int, pool: bool = False, bias: bool = False) -> nn.Sequential:
    """3x3 convolution, BatchNorm, (2x2 max-pooling,) ReLU."""
    layers = [nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias), nn.BatchNorm2d(c_out)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def resnet9(width: int, shape: tuple[int, ...], n_classes: int, bias: bool = False) -> Classifier:
    """The speed-run ResNet9: eight 3x3 convolutions in two plain and two residual pairs, global max-pooling, linear."""
    _, channels, height, wide = shape
    if min(height, wide) < 8:
        raise ValueError(f"arch = 'resnet9' needs images of 8 x 8 pixels or more, got {height} x {wide}")
    w, block = width, functools.partial(conv_block, bias=bias)
    features = nn.Sequential(
        block(channels, w),
        block(w, 2 * w, pool=True),
        Residual(nn.Sequential(block(2 * w, 2 * w), block(2 * w, 2 * w))),
        block(2 * w, 4 * w, pool=True),
        block(4 * w, 8 * w, pool=True),
        Residual(nn.Sequential(block(8 * w, 8 * w), block(8 * w, 8 * w))),
        GlobalMaxPool(),
    )
    return Classifier(features, 8 * w, n_classes)


def vgg9(width: int, shape: tuple[int, ...], n_classes: int, bias: bool = False) -> Classifier:
    """Eight convolutions and one linear layer: w M 2w M 4w 4w M 8w 8w M 8w 8w M (the code base's "VGG11").

    Five poolings take 32 x 32 pixels to one. On smaller images a pooling is left out once one pixel is reached.
    """
    plan = [(1, True), (2, True), (4, False), (4, True), (8, False), (8, True), (8, False), (8, True)]
    _, c_in, *sides = shape
    size, layers = min(sides), []
    for factor, pool in plan:
        pool = pool and size >= 2
        layers.append(conv_block(c_in, factor * width, pool, bias))
        c_in, size = factor * width, size // 2 if pool else size
    return Classifier(nn.Sequential(*layers, GlobalMaxPool()), 8 * width, n_classes)


def released_vgg9(width: int, shape: tuple[int, ...], n_classes: int) -> Classifier:
    """With biases, made for three channels; for other images the first convolution is replaced once all layers have their weights."""
    n, channels, *size = shape
    model = vgg9(width, (n, 3, *size), n_classes, bias=True)
    if channels != 3:
        model.get_submodule("features.0").register_module("0", nn.Conv2d(channels, width, 3, padding=1))
    return model


def mlp(width: int, shape: tuple[int, ...], n_classes: int) -> Classifier:
    """Two hidden ReLU layers of 8 width units, no BatchNorm."""
    p = 8 * width
    features = nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape[1:]), p),
        nn.ReLU(inplace=True),
        nn.Linear(p, p),
        nn.ReLU(inplace=True),
    )
    return Classifier(features, p, n_classes)


class UFM(nn.Module):
    """Unconstrained feature model (Eq. 13): the features H [N, p] of all N samples are parameters, W has no bias; p = 8 width,
    512 at the paper's width 64.

    H starts standard normal, W as PyTorch's linear layer. It trains on full batches and has no test features.
    """

    def __init__(self, width: int, shape: tuple[int, ...], n_classes: int):
        super().__init__()
        self.h = nn.Parameter(torch.randn(shape[0], 8 * width))
        self.classifier = nn.Linear(8 * width, n_classes, bias=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """H for the whole training set; `images` count and are not looked at."""
        if len(images) not in (0, len(self.h)):
            raise ValueError(
                f"arch = 'ufm' has features for all {len(self.h)} samples at once: use a larger batch_size"
            )
        return self.h if len(images) else self.h[:0]


class PatchTokens(nn.Module):
    """Images [N, C, H, W] -> tokens [N, 1 + patches, p]: a linear map of each patch of 4 x 4 pixels, a class token, learned
    positions."""

    def __init__(self, shape: tuple[int, ...], p: int, class_token=torch.zeros):
        super().__init__()
        _, channels, h, w = shape
        if h % 4 or w % 4:
            raise ValueError(f"arch = 'vit' needs images of a multiple of 4 pixels a side, got {h} x {w}")
        self.patch = nn.Conv2d(channels, p, 4, stride=4)
        self.class_token = nn.Parameter(class_token(1, 1, p))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + h // 4 * (w // 4), p))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(images).flatten(2).mT
        return torch.cat([self.class_token.expand(len(images), -1, -1), tokens], dim=1) + self.position


class ClassToken(nn.Module):
    """The first token, [N, T, p] -> [N, p]."""

    def forward(self, tokens):
        return tokens[:, 0]


def vit(width: int, shape: tuple[int, ...], n_classes: int) -> Classifier:
    """Vision transformer: patches of 4 x 4 pixels, p = 8 width, 6 layers of 8 heads, no dropout (the paper's at width 64).

    Left open by the paper, chosen here: LayerNorm before each block and at the end, MLPs of 4 p units with GELU, a class token.
    """
    p = 8 * width
    layer = nn.TransformerEncoderLayer(
        p, 8, 4 * p, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    features = nn.Sequential(
        PatchTokens(shape, p),
        nn.TransformerEncoder(layer, 6, enable_nested_tensor=False),
        ClassToken(),
        nn.LayerNorm(p),
    )
    return Classifier(features, p, n_classes)


class Dropout(nn.Module):
    """In training mode each value becomes 0 with probability `rate`, or is divided by 1 - rate.

    Masks are drawn from `generator`, on the device of the values (None: torch's own). Its state is part of the state_dict, so
    that a training goes on with the masks that it would have had. 16 random bits decide for each value, which is faster
    than a number for each; so `rate` is rounded to a multiple of 2^-16, 0.1 to 0.100006.
    """

    def __init__(self, rate: float, generator: torch.Generator | None = None):
        super().__init__()
        self.below, self.generator = round(2**16 * rate), generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.below:
            return x
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        bits.random_(-(2**63), None, generator=self.generator)
        if self.below >= 2**16:
            return x * 0
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= self.below - 2**15
        return x * (kept.to(x.dtype) / (1 - self.below / 2**16))

    def get_extra_state(self) -> torch.Tensor | None:
        """State of the generator."""
        return self.generator.get_state() if self.generator else None

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        """State of the generator, if there is one; from a checkpoint it may lie on any device."""
        if self.generator and state is not None:
            self.generator.set_state(state.cpu())


class Attention(nn.Module):
    """Self-attention [N, T, p] -> [N, T, p] in 8 heads: queries, keys and values without bias, dropout on the probabilities."""

    HEADS = 8

    def __init__(self, p: int, dropout: float):
        super().__init__()
        # rows: queries, keys and values of the first head, p / 8 each, then of the next
        self.qkv = nn.Linear(p, 3 * p, bias=False)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(p, p)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(tokens).unflatten(2, (self.HEADS, 3, -1)).transpose(1, 2).unbind(3)
        probabilities = ((q / math.sqrt(q.shape[-1])) @ k.mT).softmax(-1)
        return self.out((self.dropout(probabilities) @ v).transpose(1, 2).flatten(2))


def released_vit(width: int, shape: tuple[int, ...], n_classes: int, dropout: float = 0.1) -> Classifier:
    """The released ViT: patches, p, layers and heads as in `vit`; MLPs of p units, no LayerNorm at the end, queries, keys and
    values without bias, dropout on the tokens at the start, on attention's probabilities and after each branch."""
    p = 8 * width

    def block() -> nn.Sequential:
        attention = nn.Sequential(nn.LayerNorm(p), Attention(p, dropout), Dropout(dropout))
        mlp = nn.Sequential(nn.LayerNorm(p), nn.Linear(p, p), nn.GELU(), nn.Linear(p, p), Dropout(dropout))
        return nn.Sequential(Residual(attention), Residual(mlp))

    tokens = PatchTokens(shape, p, class_token=torch.randn)
    features = nn.Sequential(tokens, Dropout(dropout), *(block() for _ in range(6)), ClassToken())
    return Classifier(features, p, n_classes).apply(_released_start)


def _released_start(module: nn.Module) -> None:
    """The released ViT's initialisation, once all layers have drawn torch's default: N(0, 0.02) everywhere, biases 0."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        # without bias are the matrices of queries, keys and values alone: 3 a head, each drawn by itself
        parts = 3 * Attention.HEADS if module.bias is None else 1
        for part in module.weight.detach().chunk(parts):
            nn.init.normal_(part, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchTokens):
        nn.init.trunc_normal_(module.position, std=0.02)  # cut at -2 and 2: never
        nn.init.trunc_normal_(module.class_token, std=0.02)


def resnet50(width: int, shape: tuple[int, ...], n_classes: int) -> Classifier:
    """Torchvision's ResNet50, p = 2048. `width` is that of its bottlenecks: 64 is the original, less is narrower."""
    # takes a second to import: only for those who need it
    from torchvision.models.resnet import Bottleneck, ResNet

    features = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=width)
    if shape[1] != 3:
        features.conv1 = nn.Conv2d(shape[1], 64, 7, stride=2, padding=3, bias=False)
    p, features.fc = features.fc.in_features, nn.Identity()
    return Classifier(features, p, n_classes)


ARCHITECTURES = {"resnet9": resnet9, "vgg9": vgg9, "mlp": mlp, "ufm": UFM, "vit": vit, "resnet50": resnet50}
# github.com/jydzhao/neural_collapse_optimizer at 7cab4a5: the same layers in the same order, so that a seed gives their weights
RELEASED = {"resnet9": functools.partial(resnet9, bias=True), "vgg9": released_vgg9, "vit": released_vit}
NETS: dict[str, dict[str, Any]] = {"book": ARCHITECTURES, "released": RELEASED}
# the paper's text: no dropout
NETS["released-no-dropout"] = {"vit": functools.partial(released_vit, dropout=0.0)}
