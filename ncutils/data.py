"""Data sets as tensors on the device.

`load("digits")` needs nothing: 1,797 real 8 x 8 digits ship with scikit-learn. MNIST, FashionMNIST and CIFAR10 are
read from, or downloaded to, the folder that NCUTILS_DATA names (default: data/ in the project). Any other name is a
folder there with train/<class>/ and test/<class>/ images (val/<class>/ where test/ is missing or holds no class): of one size, or of any
where an image_size is given; then they are cropped to squares and stay on disk, read while training by worker processes
(`Streamed`), as ImageNet needs.
"digits3" is the digits 0, 1 and 2, whose class means lie in a plane; "separable" is synthetic; "unconstrained" has labels
alone, for the unconstrained feature model.

Choices the paper leaves open: images are standardised by the mean and standard deviation of each channel of the
training images in use, of up to 1,000 of those that stay on disk (`scale="published"`: by `PUBLISHED`, as the authors'
released code does); 28 x 28 images are zero-padded to 32 x 32 (`fit="resize"`: resized, as there); nothing is augmented
(`CropFlip` does it, where a Run asks for it).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ncutils import machine
from ncutils.files import chosen_folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
SHARED = Path("/dev/shm")  # where processes that read images leave them


@dataclass(frozen=True)
class Split:
    """Labels [N] and how to get the images of some of them: indices [n] -> array [n, C, H, W]; their files, if any."""

    labels: np.ndarray
    images: Callable[[np.ndarray], np.ndarray]
    paths: list[Path] = field(default_factory=list)


class Streamed(torch.utils.data.Dataset):
    """Images that stay on disk: item i is the i-th file, cropped to a square [3, size, size], uint8."""

    mean: float | torch.Tensor = 0.0
    std: float | torch.Tensor = 1.0
    device = torch.device("cpu")

    def __init__(self, paths: list[Path], size: int):
        self.paths, self.size = paths, size
        self.shape = (len(paths), 3, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import ImageOps

        image = ImageOps.fit(_open(self.paths[index]), (self.size, self.size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def standardise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, size, size] -> float32 on the device."""
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        return (images - self.mean) / self.std


class Pixels:
    """uint8 images [N, C, H, W] on a GPU, standardised as they are taken: a quarter of the memory and of its traffic."""

    def __init__(self, pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor):
        self.pixels, self.mean, self.std = pixels, mean, std
        self.shape = pixels.shape

    def __getitem__(self, indices) -> torch.Tensor:
        return (self.pixels[indices].float() - self.mean) / self.std


@dataclass(frozen=True)
class Dataset:
    """Standardised float32 images [N, C, H, W], channels last in memory, or Pixels or Streamed, and int64 labels [N];
    `black` [C] is what a black pixel's channels become."""

    train_images: torch.Tensor | Pixels | Streamed
    train_labels: torch.Tensor
    test_images: torch.Tensor | Pixels | Streamed
    test_labels: torch.Tensor
    n_classes: int
    black: torch.Tensor = field(default_factory=lambda: torch.zeros(1))


class CropFlip:
    """Augments a batch of standardised images [n, C, H, W]: each is cropped at random to its own size from itself in a margin of
    4 black pixels, then mirrored left to right with probability 1/2, as the authors' released code augments CIFAR10.

    All draws come from `generator`, on the CPU; the work is done where the images are, for the whole batch at once.
    `black` [C] is what a black pixel's channels become when standardised.
    """

    MARGIN = 4

    def __init__(self, black: torch.Tensor, generator: torch.Generator):
        self.black, self.generator = black, generator

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The augmented images, in memory of their own."""
        places = 2 * self.MARGIN + 1
        drawn = torch.randint(2 * places**2, (len(images),), generator=self.generator)
        drawn = drawn.to(images.device, non_blocking=True)  # or a GPU's queue would run empty
        return crop_flip(images, self.black, drawn // 2 // places, drawn // 2 % places, drawn % 2 == 1)


def crop_flip(images, black, top, left, mirrored) -> torch.Tensor:
    """Images [n, C, H, W] cropped from themselves in a margin of `black` [C], `top` and `left` [n] pixels from its corner, then
    `mirrored` [n] or not; channels last in memory."""
    n, channels, height, width = images.shape
    margin, device = CropFlip.MARGIN, images.device
    high, wide = height + 2 * margin, width + 2 * margin
    framed = black.to(device).expand(n, high, wide, channels).contiguous()
    framed[:, margin:-margin, margin:-margin] = images.permute(0, 2, 3, 1)
    rows = top[:, None] + torch.arange(height, device=device)
    columns = left[:, None] + torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=device)[:, None, None]
    pixels = ((image * high + rows[:, :, None]) * wide + columns[:, None]).flatten()
    return framed.flatten(0, 2)[pixels].view(n, height, width, channels).permute(0, 3, 1, 2)


def batches(
    images: torch.Tensor | Pixels | Streamed, indices: Iterable[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The images of each set of indices, standardised, on the device; Streamed ones are read ahead by worker processes."""
    if not isinstance(images, Streamed):
        yield from (images[i] for i in indices)
        return
    loader = torch.utils.data.DataLoader(
        images,
        batch_sampler=[i.tolist() for i in indices],
        num_workers=min(8, machine.usable_cores()),
        # named, since a sweep's worker process has a default of its own that cannot start readers; macOS has fork, too, but its
        # system libraries may crash after it
        multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
        pin_memory=images.device.type == "cuda",
        generator=torch.Generator(),  # nothing is drawn but the workers' seeds: not from torch's own
    )
    read = _told_in_one_sentence(loader)
    yield from map(images.standardise, read)


def _told_in_one_sentence(loader) -> Iterator[torch.Tensor]:
    """The loader's batches; what its worker processes raise has a traceback in the message."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None
    except RuntimeError as error:  # a worker's, or about one that was killed
        guard = free = ""
        if sys.platform != "linux":
            guard = " or for want of `if __name__ == '__main__':` around a script's calls,"
        if SHARED.is_dir():
            free = f", of which /dev/shm has {shutil.disk_usage(SHARED).free / 1e6:.0f} MB free"
        raise ChildProcessError(
            f"a process that reads images failed, perhaps{guard} for want of shared memory{free} (docker run --shm-size sets a "
            f"container's) or of memory: {str(error).strip().splitlines()[-1]}"
        ) from None


def data_folder() -> Path:
    """Where data sets are: NCUTILS_DATA, or data/ in the project."""
    # absolute, or another current folder's data would be taken for it
    return chosen_folder("NCUTILS_DATA", "data").absolute()


def load(
    name: str,
    n_train: int | None = None,
    n_test: int | None = None,
    device: str = "cpu",
    image_size: int | None = None,
    fit: str = "pad",
    scale: str = "measured",
) -> Dataset:
    """The named data set, or class-balanced subsets of it: the first n_train and n_test images, class by class.

    With `image_size`, folders are Streamed, and the images of other data sets brought to that size (bilinear). `fit`, "pad" or
    "resize", is what brings a source's 28 x 28 images to 32 x 32; `scale` is "measured" or "published".
    Raises ValueError for an unknown name or fit, too large an n_train or n_test, or a scale that is not published,
    FileNotFoundError where files are missing.
    """
    if fit not in ("pad", "resize"):
        raise ValueError(f"fit = {fit!r} is not allowed: use 'pad' or 'resize'")
    if scale != "measured" and not (scale == "published" and name in PUBLISHED):
        known = ", ".join(PUBLISHED)
        raise ValueError(f"scale = {scale!r} is not allowed: use 'measured', or 'published' for {known}")
    source, _ = SOURCES.get(name, (None, None))
    return _load(data_folder(), source, name, n_train, n_test, device, image_size, fit, scale)


@functools.lru_cache(maxsize=2)
def _load(
    folder: Path, source, name: str, n_train, n_test, device: str, image_size, fit: str, scale: str
) -> Dataset:
    """`folder` is there to tell apart data sets of one name in the folders that NCUTILS_DATA named one after another,
    `source` those that a notebook defined one after another."""
    both = splits(name, fit)
    n_classes = int(both[0].labels.max()) + 1
    chosen = [_chosen(both[0], "n_train", n_train, name), _chosen(both[1], "n_test", n_test, name)]
    y, y_test = (torch.from_numpy(split.labels[i]).to(device, torch.int64) for split, i in zip(both, chosen))
    of_all = PUBLISHED[name] if scale == "published" else ()
    published = [255 * torch.tensor(v)[:, None, None] for v in of_all]
    if image_size is not None and name not in SOURCES:
        x, x_test = (Streamed([of.paths[i] for i in part], image_size) for of, part in zip(both, chosen))
        sample = balanced_order(y.cpu().numpy())[:1000]
        moments = published or _moments(torch.stack([x[i] for i in sample]).double())
        for part in (x, x_test):
            part.device = torch.device(device)
            part.mean, part.std = (value.to(device) for value in moments)
        return Dataset(x, y, x_test, y_test, n_classes, _black(x.mean, x.std))
    x, x_test = (torch.from_numpy(np.ascontiguousarray(split.images(i))) for split, i in zip(both, chosen))
    if x.shape[2:] != x_test.shape[2:]:
        (h, w), (high, wide) = x.shape[2:], x_test.shape[2:]
        raise ValueError(
            f"dataset: the test images of {name} have {wide} x {high} pixels, its training images {w} x {h}; "
            "all images must have one size, or image_size must be set"
        )
    mean, std = published or _moments(x.float())

    def on_device(images):
        if images.dtype == torch.uint8 and image_size is None and torch.device(device).type == "cuda":
            parts = images.to(device, memory_format=torch.channels_last), mean.to(device), std.to(device)
            return Pixels(*parts)
        images = images.float()
        if image_size is not None:
            images = torch.nn.functional.interpolate(images, (image_size, image_size), mode="bilinear")
        return ((images - mean) / std).to(device, memory_format=torch.channels_last)

    return Dataset(on_device(x), y, on_device(x_test), y_test, n_classes, _black(mean, std).to(device))


def splits(name: str, fit: str = "pad") -> tuple[Split, Split]:
    """Training and test split of the named data set, downloaded if need be, images not yet read; `fit` as in `load`."""
    if name in SOURCES:
        train, test = SOURCES[name][0]()
        return _fitted(train, fit), _fitted(test, fit)
    folder = data_folder() / name
    train, test = folder / "train", folder / "test"
    val = folder / "val"
    if val.is_dir() and not (test.is_dir() and _classes(test)):  # or without labels, as ImageNet's
        test = val
    if not train.is_dir() or not test.is_dir():
        raise ValueError(
            f"dataset = {name!r} is not known: use one of {', '.join(SOURCES)}, "
            f"or a folder under {data_folder()} with train/<class>/ and test/<class>/ (or val/<class>/) images"
        )
    if odd := sorted({c.name for c in _classes(train)} ^ {c.name for c in _classes(test)}):
        raise ValueError(
            f"dataset: {folder} has the class {odd[0]!r} in one of train/ and {test.name}/ alone"
        )
    return _folder(train), _folder(test)


def _classes(folder: Path) -> list[Path]:
    """Its class folders in alphabetical order, without hidden ones (.ipynb_checkpoints)."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def training_shape(name: str) -> tuple[int, ...]:
    """[N, C, H, W] of the named data set's training images; a folder's images are taken to be of the first one's size."""
    source, known = SOURCES.get(name, (None, None))
    return known or _shape_of(data_folder(), source, name)


@functools.lru_cache(maxsize=8)
def _shape_of(folder: Path, source, name: str) -> tuple[int, ...]:
    train, _ = splits(name)
    return len(train.labels), *train.images(np.arange(1)).shape[1:]


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """Indices that take one sample of each class in turn, each class in its own order: prefixes are balanced."""
    rank = np.empty(len(labels), dtype=np.int64)
    for k in np.unique(labels):
        members = labels == k
        rank[members] = np.arange(members.sum())
    return np.lexsort((labels, rank))


def _chosen(split: Split, parameter: str, n: int | None, name: str) -> np.ndarray:
    total = len(split.labels)
    if n is not None and not 0 < n <= total:
        allowed = f"1 to {total} or none" if total else "none"
        raise ValueError(f"{parameter} = {n} is not allowed: {name} has {total} such images, use {allowed}")
    if n is not None and parameter == "n_train" and n < (classes := int(split.labels.max()) + 1):
        raise ValueError(
            f"n_train = {n} is not allowed: {name} has {classes} classes, and each needs an image"
        )
    return np.arange(total) if n is None else balanced_order(split.labels)[:n]


def _black(mean, std):
    """Black after standardisation [C]; of a channel without variation the only value that it has."""
    return torch.where(std > 1e-12, -mean / std, 0).flatten()


def _moments(pixels):
    """Mean and standard deviation of each channel of images [N, C, H, W]: [C, 1, 1]."""
    mean, std = (f((0, 2, 3)).float()[:, None, None] for f in (pixels.mean, pixels.std))
    return [mean, std.clamp_min(1e-12)]


def _digits(n_classes: int = 10) -> tuple[Split, Split]:
    """scikit-learn's digits 0 to n_classes - 1, split 1,437 : 360 within each class (430 : 107 of three classes)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(n_class=n_classes, return_X_y=True)
    images = images.reshape(-1, 1, 8, 8)
    n_test = 360 * len(labels) // 1797
    train, test = train_test_split(np.arange(len(labels)), test_size=n_test, stratify=labels, random_state=0)
    return Split(labels[train], images[train].__getitem__), Split(labels[test], images[test].__getitem__)


def _separable() -> tuple[Split, Split]:
    """Ten classes in R^64, shown as 8 x 8 images: orthonormal means, noise inside a ball of radius 0.6.

    Every point is nearest to its own mean (half the distance of two means is 0.71), so the classes are linearly
    separable whatever is drawn.
    """
    rng = np.random.default_rng(0)
    means = np.linalg.qr(rng.normal(size=(64, 64)))[0][:10]

    def draw(n):
        labels = np.arange(n) % 10
        noise = rng.normal(size=(n, 64))
        noise *= 0.6 * rng.random((n, 1)) / np.linalg.norm(noise, axis=1, keepdims=True)
        images = (means[labels] + noise).reshape(n, 1, 8, 8)
        return Split(labels, images.__getitem__)

    return draw(2000), draw(500)


def _unconstrained() -> tuple[Split, Split]:
    """10,000 samples of ten classes without anything to see, and no test set: for the unconstrained feature model."""

    def draw(n):
        return Split(np.arange(n) % 10, lambda indices: np.zeros((len(indices), 1, 1, 1)))

    return draw(10_000), draw(0)


def _alone(root: Path, name: str):
    """Of several processes that lack a data set one downloads it, and the others wait; none can where the folder is only read."""
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / f".{name}.lock") if os.access(root, os.W_OK) else contextlib.nullcontext()


def _torchvision(name: str) -> tuple[Split, Split]:
    from torchvision import datasets  # takes a second to import: only for those who need it

    root = data_folder()

    def split(train):
        try:
            # the download's own bars and messages would stay in an executed notebook
            with (
                open(os.devnull, "w", encoding="utf-8") as null,
                contextlib.redirect_stdout(null),
                contextlib.redirect_stderr(null),
                _alone(root, name),
            ):
                files = getattr(datasets, name)(root=root, train=train, download=True)
            if len(files.data) != len(files.targets):
                raise ValueError(f"{len(files.data)} images, {len(files.targets)} labels")
        except Exception as error:  # half a download can be wrong in any way
            raise FileNotFoundError(
                f"dataset = {name!r} is not in {root}, or not whole, and could not be downloaded ({' '.join(str(error).split())}); "
                "set NCUTILS_DATA to the folder that holds it, or remove what is left of it and connect to the network once"
            ) from None
        images = np.asarray(files.data)  # MNIST's [N, 28, 28], CIFAR10's [N, 32, 32, 3]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        return Split(np.asarray(files.targets), images.__getitem__)

    return split(True), split(False)


def _fitted(split: Split, fit: str) -> Split:
    """28 x 28 images as 32 x 32: in a margin of zeros, or resized (torchvision's, on 8 bits); others as they are."""

    def images(indices):
        found = split.images(indices)
        if found.shape[2:] != (28, 28):
            return found
        if fit == "pad":
            return np.pad(found, ((0, 0), (0, 0), (2, 2), (2, 2)))
        from PIL import Image
        from torchvision.transforms import Resize

        resize = Resize(32)  # of each as an image: of a whole tensor it rounds in another way
        return np.stack([np.asarray(resize(Image.fromarray(image))) for image in found[:, 0]])[:, None]

    return Split(split.labels, images)


def _folder(folder: Path) -> Split:
    """Images in one folder a class, RGB; classes in alphabetical order. Hidden files (macOS's ._cat.jpg) are passed over, all
    else that is no image with a warning."""
    classes, files, others = _classes(folder), [], []
    for c in classes:
        seen = [f for f in sorted(c.iterdir()) if not f.name.startswith(".")]
        files.append([f for f in seen if f.suffix.lower() in IMAGE_SUFFIXES and not f.is_dir()])
        others += sorted({*seen} - {*files[-1]})
        if not files[-1]:
            raise ValueError(f"dataset: {c} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    if others:
        warnings.warn(
            f"dataset: {folder} holds {len(others)} files or folders that are left out, {others[0]} the first: "
            f"images lie in their class's folder and end in {', '.join(IMAGE_SUFFIXES)}",
            stacklevel=2,
        )
    if len(classes) < 2:
        raise ValueError(f"dataset: {folder} holds {len(classes)} class folder(s); at least 2 are needed")
    paths = [f for found in files for f in found]
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in files])

    def images(indices):
        pixels = [np.asarray(_open(paths[index])) for index in indices]
        height, width, _ = pixels[0].shape
        for index, (h, w, _) in zip(indices, (image.shape for image in pixels)):
            if (h, w) != (height, width):
                raise ValueError(
                    f"dataset: {paths[index]} has {w} x {h} pixels, others have {width} x {height}; "
                    "all images must have one size, or image_size must be set"
                )
        return np.stack(pixels).transpose(0, 3, 1, 2)

    return Split(labels, images, paths)


def _open(path: Path):
    """An image file as RGB of 8 bits; transparency is dropped, as torchvision's ImageFolder does.

    Pillow would clip 16 bits of grey to 8, and numbers without a known range: the former are scaled, the latter refused, as are
    TIFF's signed numbers and its 12 bits, which Pillow takes for unsigned ones and for 16.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})  # of TIFF
            bits, formats = (np.atleast_1d(tags.get(tag, usual)) for tag, usual in ((258, 8), (339, 1)))
            if image.mode not in ("I", "F") and (12 in bits or 2 in formats):
                raise ValueError("its pixels are signed or have 12 bits; save it with 8 or 16 bits, unsigned")
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
                grey = np.asarray(image).astype(np.float64) / 257  # 65,535 becomes 255
                if tags.get(262) == 0:  # white is 0, which Pillow heeds for 8 bits alone
                    grey = 255 - grey
                image = Image.fromarray(grey.round().astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(
                    f"pixels of mode {image.mode!r} have no known range; save it with 8 or 16 bits"
                )
            if image.mode == "P":  # whose transparency Pillow warns of on the way to RGB
                image = image.convert("RGBA")
            return image.convert("RGB")
    except Exception as error:  # a damaged image can be wrong in any way
        raise ValueError(f"dataset: {path} is not a readable image ({error})") from None


# a function that gives both splits; [N, C, H, W] of the training images as `load` gives them: known without a download, or None
SOURCES: dict[str, tuple[Callable, tuple[int, ...] | None]] = {
    "digits": (_digits, (1437, 1, 8, 8)),
    "MNIST": (functools.partial(_torchvision, "MNIST"), (60_000, 1, 32, 32)),
    "FashionMNIST": (functools.partial(_torchvision, "FashionMNIST"), (60_000, 1, 32, 32)),
    "CIFAR10": (functools.partial(_torchvision, "CIFAR10"), (50_000, 3, 32, 32)),
    "digits3": (functools.partial(_digits, 3), (430, 1, 8, 8)),
    "separable": (_separable, (2000, 1, 8, 8)),
    "unconstrained": (_unconstrained, (10_000, 1, 1, 1)),
}
OWN_SOURCES = dict(SOURCES)  # those above; a notebook may add others
NO_IMAGES = ("separable", "unconstrained")  # points and labels, only shaped like images

# mean and standard deviation of each channel, of pixels from 0 to 1, as the authors' released code has them
PUBLISHED = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
PUBLISHED["cifar10-jpeg"] = PUBLISHED["CIFAR10"]  # a copy of it as class folders of JPEG images
