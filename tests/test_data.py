import os
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ncutils import data, step

ROOT = Path(__file__).resolve().parents[1]


def test_digits_are_whole_balanced_and_standardised():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape == (360, 1, 8, 8)
    assert digits.n_classes == 10 and set(digits.train_labels.tolist()) == set(range(10))
    assert digits.train_images.mean().abs() < 1e-5 and abs(digits.train_images.std() - 1) < 1e-4
    train, test = data.splits("digits")
    both = np.concatenate([train.images(np.arange(1437)), test.images(np.arange(360))]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    assert sorted(map(tuple, both)) == sorted(map(tuple, load_digits().data))  # each image once, none in both


def test_three_digits_are_the_first_three_classes():
    three, ten = data.load("digits3"), data.load("digits")
    assert three.n_classes == 3 and len(three.train_labels) == data.training_shape("digits3")[0] == 430
    assert three.train_images.shape[1:] == ten.train_images.shape[1:]
    assert torch.bincount(three.train_labels).tolist() == [142, 146, 142]


@pytest.mark.parametrize("name", ["digits", "digits3", "separable", "unconstrained"])
def test_shapes_known_beforehand_are_those_of_the_images(name):
    assert (
        data._shape_of(data.data_folder(), None, name)
        == data.SOURCES[name][1]
        == tuple(data.load(name).train_images.shape)
    )


def test_separable_is_linearly_separable():
    s = data.load("separable")
    x, y = s.train_images.flatten(1).double(), s.train_labels
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    assert (torch.cdist(x, means).argmin(1) == y).all()  # nearest-mean classification is linear
    assert torch.equal(data.load("separable").train_images, s.train_images)


def test_balanced_subsets_are_nested():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    order = data.balanced_order(labels)
    assert sorted(order) == list(range(500))
    for n in (7, 70, 140):
        assert (np.bincount(labels[order[:n]]) == n // 7).all()
    assert set(data.balanced_order(labels)[:35]) <= set(order[:70])


FIRST_DOWNLOAD = """
import time
import numpy as np
from torchvision import datasets
from ncutils import data

class Slow:  # as torchvision's, it takes a file that is there for a whole one
    def __init__(self, root, train, download):
        file = root / "images"
        if not file.exists():
            (root / "downloads").open("a").write("one ")
            for _ in range(10):
                file.open("a").write("part ")
                time.sleep(0.1)
        assert len(file.read_text("utf-8").split()) == 10, "not whole"
        self.data, self.targets = np.zeros((10, 28, 28), np.uint8), np.arange(10)

datasets.MNIST = Slow
data.splits("MNIST")
"""


def test_of_two_first_downloads_one_waits_for_the_other(tmp_path):
    environment = os.environ | {"NCUTILS_DATA": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FIRST_DOWNLOAD]
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(*process.communicate()[1:], process.returncode) for process in both] == [("", 0)] * 2
    assert (tmp_path / "data/downloads").read_text("utf-8") == "one "


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_idx_files_are_read_as_they_are(real_data, name):
    dataset = data.load(name, n_train=1000, n_test=500)
    assert dataset.train_images.shape == (1000, 1, 32, 32) and dataset.n_classes == 10
    assert torch.bincount(dataset.train_labels).tolist() == [100] * 10
    assert data._shape_of(data.data_folder(), None, name) == data.SOURCES[name][1] == (60_000, 1, 32, 32)
    assert len(data.splits(name)[1].labels) == 10_000
    # the first image of the file, read by hand: 16 bytes of header, then 28 x 28 pixels
    raw = next((Path(real_data) / name / "raw").glob("train-images-idx3-ubyte"))
    pixels = np.frombuffer(raw.read_bytes()[16 : 16 + 784], dtype=np.uint8).reshape(28, 28)
    first = data.splits(name)[0].images(np.array([0]))[0, 0]
    assert (first[2:30, 2:30] == pixels).all() and first[:2].sum() == first[:, 30:].sum() == 0


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_the_released_codes_images(real_data, name):
    """Each image through torchvision's own transforms, one by one, as a loader would take it."""
    from torchvision import datasets
    from torchvision.transforms import Compose, Normalize, Resize, ToTensor

    numbers = {"MNIST": (0.1307, 0.3081), "FashionMNIST": (0.2860, 0.3530)}[name]
    transform = Compose([Resize(32), ToTensor(), Normalize(*((number,) for number in numbers))])
    theirs = getattr(datasets, name)(real_data, train=True, transform=transform)
    dataset = data.load(name, n_train=50, n_test=20, fit="resize", scale="published")
    indices = data.balanced_order(data.splits(name)[0].labels)[:50]
    torch.testing.assert_close(
        dataset.train_images, torch.stack([theirs[i][0] for i in indices]), rtol=0, atol=1e-6
    )
    padded = data.load(name, n_train=50, n_test=20)
    assert torch.equal(padded.train_labels, dataset.train_labels)
    assert padded.train_images.mean().abs() < 1e-6 and not torch.equal(
        padded.train_images, dataset.train_images
    )


def test_fit_leaves_images_of_other_sizes_alone():
    assert torch.equal(data.load("digits", fit="resize").train_images, data.load("digits").train_images)


def test_cifar10_copy_is_a_folder_of_class_folders(real_data, tmp_path, monkeypatch):
    archive = Path(real_data) / "cifar10-jpeg.zip"
    if not archive.exists():
        pytest.skip(f"needs {archive.name} under NCUTILS_DATA")
    with zipfile.ZipFile(archive) as z:
        members = [m for m in z.namelist() if m.endswith(("0000.jpg", "0001.jpg"))]
        z.extractall(tmp_path / "cifar10-jpeg", members)
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    cifar = data.load("cifar10-jpeg")
    assert cifar.train_images.shape[1:] == (3, 32, 32) and cifar.n_classes == 10
    assert cifar.train_images.is_contiguous(memory_format=torch.channels_last)


def make_folder(root, sizes=((8, 8),), classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for c in classes:
            (root / split / c).mkdir(parents=True)
            for i in range(4):
                size = sizes[i % len(sizes)]
                Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(
                    root / split / c / f"{i}.png"
                )


def test_folder(tmp_path, monkeypatch):
    make_folder(tmp_path / "pets")
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    pets = data.load("pets", n_train=4)
    assert pets.train_images.shape == (4, 3, 8, 8) and pets.train_labels.tolist() == [0, 1, 0, 1]
    assert len(pets.test_labels) == 8


def test_a_streamed_folder_gives_what_one_in_memory_gives(tmp_path, monkeypatch):
    make_folder(tmp_path / "pets")
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    whole, streamed = data.load("pets", n_train=6), data.load("pets", n_train=6, image_size=8)
    assert streamed.train_images.shape == whole.train_images.shape and len(streamed.train_images) == 6
    assert torch.equal(streamed.train_labels, whole.train_labels) and streamed.n_classes == 2
    indices = [torch.tensor([5, 0]), torch.tensor([3])]
    for name in ("train_images", "test_images"):
        for i, batch in zip(indices, data.batches(getattr(streamed, name), indices)):
            torch.testing.assert_close(batch, getattr(whole, name)[i], rtol=1e-5, atol=1e-5)


def test_streamed_images_of_any_size_become_squares(tmp_path, monkeypatch):
    make_folder(tmp_path / "mixed", sizes=((8, 20), (30, 9)))
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    images = data.load("mixed", image_size=16).train_images
    (batch,) = data.batches(images, [torch.arange(8)])
    assert batch.shape == (8, 3, 16, 16) and abs(float(batch.mean())) < 1e-5
    (tmp_path / "mixed/test/cat/2.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="^dataset: .*2.png is not a readable image") as error:
        list(data.batches(data.load("mixed", image_size=12).test_images, [torch.arange(8)]))
    assert "\n" not in str(error.value)
    assert data.load("digits", n_train=20, image_size=32).train_images.shape == (20, 1, 32, 32)


def test_bad_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    make_folder(tmp_path / "mixed", sizes=((8, 8), (9, 8)))
    with pytest.raises(
        ValueError, match="1.png has 8 x 9 pixels, others have 8 x 8; all images must have one size"
    ):
        data.load("mixed")
    make_folder(tmp_path / "corrupt")
    (tmp_path / "corrupt/train/cat/2.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="2.png is not a readable image"):
        data.load("corrupt")
    make_folder(tmp_path / "empty")
    for split in ("train", "test"):
        (tmp_path / "empty" / split / "bird").mkdir()
    with pytest.raises(ValueError, match="bird holds no image"):
        data.load("empty")
    make_folder(tmp_path / "single", classes=("cat",))
    with pytest.raises(ValueError, match="at least 2 are needed"):
        data.load("single")
    with pytest.raises(
        ValueError, match="dataset = 'mnist' is not known: use one of digits, .*MNIST, FashionMNIST"
    ):
        data.load("mnist")


def test_missing_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    with pytest.raises(
        FileNotFoundError, match="dataset = 'FashionMNIST' is not in .* could not be downloaded"
    ) as error:
        data.load("FashionMNIST")
    assert "NCUTILS_DATA" in str(error.value) and "\n" not in str(error.value)


def test_pixels_are_standardised_as_they_are_taken():
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8).to(memory_format=torch.channels_last)
    mean, std = pixels.float().mean((0, 2, 3), keepdim=True), pixels.float().std((0, 2, 3), keepdim=True)
    whole, taken = (pixels.float() - mean) / std, data.Pixels(pixels, mean, std)
    indices = torch.tensor([3, 1, 19])
    assert torch.equal(next(data.batches(taken, [indices])), whole[indices]) and taken.shape == whole.shape
    assert taken[indices].is_contiguous(memory_format=torch.channels_last)
    images = (taken, whole)
    by_size = [next(step.batches(x, torch.arange(20), 32, None))[0] for x in images]
    assert torch.equal(*by_size)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_augmented_as_torchvision_augments_an_image(channels, monkeypatch):
    """Each 8-bit image through torchvision's own transforms, which are told what was drawn."""
    from torchvision import transforms

    pixels = torch.randint(0, 256, (60, channels, 32, 32), dtype=torch.uint8)
    mean, std = torch.rand(channels) / 2 + 0.2, torch.rand(channels) / 4 + 0.2
    parts = 255 * mean[None, :, None, None], 255 * std[None, :, None, None]
    top, left = torch.randint(0, 9, (2, 60))
    mirrored = torch.arange(60) % 2 == 0
    got = data.crop_flip(data.Pixels(pixels, *parts)[:], -mean / std, top, left, mirrored)
    assert got.is_contiguous(memory_format=torch.channels_last)
    for i in range(60):
        place = int(top[i]), int(left[i]), 32, 32
        monkeypatch.setattr(transforms.RandomCrop, "get_params", lambda *_, place=place: place)
        transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(float(mirrored[i])),
                transforms.ToTensor(),
                transforms.Normalize(mean.tolist(), std.tolist()),
            ]
        )
        image = pixels[i].permute(1, 2, 0).numpy()
        expected = transform(Image.fromarray(image[:, :, 0] if channels == 1 else image))
        torch.testing.assert_close(got[i], expected, rtol=1e-5, atol=1e-5)


def test_all_crops_and_flips_are_equally_likely():
    """9 x 9 places, mirrored or not: recognised by their pixels, counted, chi-squared."""
    image = 1.0 + torch.arange(64.0).view(1, 1, 8, 8)
    framed = torch.nn.functional.pad(image, (4, 4, 4, 4))
    known = {}
    for top in range(9):
        for left in range(9):
            crop = framed[0, 0, top : top + 8, left : left + 8]
            for seen in (crop, crop.fliplr()):
                known[seen.numpy().tobytes()] = len(known)
    assert len(known) == 162
    augment = data.CropFlip(torch.zeros(1), torch.Generator().manual_seed(0))
    seen = augment(image.expand(162 * 100, 1, 8, 8))
    counts = np.bincount([known[crop[0].numpy().tobytes()] for crop in seen.contiguous()], minlength=162)
    assert ((counts - 100) ** 2 / 100).sum() < 161 + 4 * np.sqrt(2 * 161)


def test_augmentation_draws_from_its_generator_alone():
    images, draws = torch.randn(50, 1, 8, 8), [torch.Generator().manual_seed(3) for _ in range(2)]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = (data.CropFlip(torch.zeros(1), generator)(images) for generator in draws)
    assert torch.equal(torch.rand(3), expected) and torch.equal(first, second)
    assert not torch.equal(data.CropFlip(torch.zeros(1), draws[0])(images), first)


@pytest.mark.parametrize("image_size", [None, 8])
def test_the_margin_is_as_black_as_a_black_image(image_size, tmp_path, monkeypatch):
    make_folder(tmp_path / "pets")
    Image.new("RGB", (8, 8)).save(tmp_path / "pets/train/cat/0.png")
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    pets = data.load("pets", image_size=image_size)
    (images,) = data.batches(pets.train_images, [torch.arange(8)])
    assert torch.equal(images[0], pets.black[:, None, None].expand(3, 8, 8)) and (pets.black < 0).all()
    corner = torch.zeros(8, dtype=int)
    cropped = data.crop_flip(images, pets.black, corner, corner, corner == 0)
    assert torch.equal(cropped[0], images[0]) and torch.equal(
        cropped[:, :, 4:, :4], images[:, :, :4, :4].flip(3)
    )
    assert (cropped[:, :, :4] == pets.black[:, None, None]).all()


def test_black_on_the_published_scale(real_data):
    fashion = data.load("FashionMNIST", n_train=20, n_test=10, scale="published")
    assert float(fashion.black) == pytest.approx(-0.2860 / 0.3530)
    assert float(fashion.train_images.min()) == float(fashion.black)  # its own margin


# ---- folders as they come

MODES = {  # Pillow's modes by file type, and the 8 bits that each pixel of a ramp must become
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"],
    "jpg": ["L", "RGB", "CMYK"],
    "pgm": ["L", "I;16"],
    "bmp": ["1", "L", "P", "RGB"],
    "webp": ["RGB", "RGBA"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_mode_of_images_is_converted_or_refused_by_name(kind, mode, tmp_path):
    """A grey ramp in every mode and depth that Pillow writes: no value is clipped, and none is guessed."""
    ramp = np.linspace(0, 255, 16).round().astype(np.uint8).repeat(16).reshape(16, 16)
    grey = Image.fromarray(ramp)
    if mode.startswith("I;16"):
        # by its definition, 65,535 is white; 16 bits that no 8 bits name are rounded
        sixteen = (ramp.astype(np.int64) * 257 + 100).clip(max=65_535)
        image = Image.fromarray(sixteen.astype(">u2" if mode == "I;16B" else "<u2"))
        assert image.mode == mode
    elif mode in ("I", "F"):
        image = Image.fromarray(ramp.astype({"I": np.int32, "F": np.float32}[mode]) * 1000)
    elif mode == "LAB":
        image = Image.merge("LAB", [grey, *(Image.new("L", (16, 16), 128) for _ in "ab")])
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("YCbCr", "CMYK") else grey.convert(mode)
    path = tmp_path / f"ramp.{kind}"
    image.save(path, **{"quality": 100} if kind == "jpg" else {"lossless": True} if kind == "webp" else {})
    if mode in ("I", "F"):
        with pytest.raises(
            ValueError, match=f"ramp.{kind} is not a readable image .*mode '{mode}' have no known range"
        ):
            data._open(path)
        return
    opened = data._open(path)
    found = np.asarray(opened).astype(int)
    assert opened.mode == "RGB" and found.shape == (16, 16, 3)
    if mode == "1":
        assert set(np.unique(found)) == {0, 255}
    elif mode == "LAB":
        lightness = np.asarray(opened.convert("L"))[::, 0]
        assert (np.diff(lightness.astype(int)) >= 0).all() and lightness[0] == 0 and lightness[-1] >= 254
    else:
        assert np.abs(found - ramp[:, :, None]).max() <= {"jpg": 2, "YCbCr": 2}.get(
            mode, 2 if kind == "jpg" else 0
        )


def tiff(path, pixels: bytes, side: int, bits: int, white_is_zero=False, signed=False):
    """A grey TIFF, tag by tag: Pillow writes none of these kinds."""
    tags = {256: side, 257: side, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8 + 2 + 12 * 10 + 4}
    tags |= {277: 1, 278: side, 279: len(pixels), 339: 1 + signed}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels)


def test_tiffs_that_pillow_takes_for_others_are_read_rightly_or_refused(tmp_path):
    ramp = np.linspace(0, 65_535, 256).astype("<u2").reshape(16, 16)
    expected = (ramp / 257).round()[:, :, None]
    tiff(tmp_path / "black.tiff", ramp.tobytes(), 16, 16)
    tiff(tmp_path / "white.tiff", (65_535 - ramp).tobytes(), 16, 16, white_is_zero=True)
    for name in ("black", "white"):
        assert np.abs(np.asarray(data._open(tmp_path / f"{name}.tiff")) - expected).max() <= 1, name
    tiff(tmp_path / "signed.tiff", bytes(256), 16, 8, signed=True)
    tiff(tmp_path / "signed16.tiff", bytes(512), 16, 16, signed=True)
    tiff(tmp_path / "twelve.tiff", bytes(384), 16, 12)
    for name in ("signed", "signed16", "twelve"):
        with pytest.raises(
            ValueError, match=f"{name}.tiff is not a readable image .*; save it with 8 or 16 bits"
        ):
            data._open(tmp_path / f"{name}.tiff")


def test_transparency_is_dropped_as_torchvisions_folders_drop_it(tmp_path):
    from torchvision.datasets.folder import pil_loader

    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (np.asarray(data._open(tmp_path / "a.png")) == pixels[:, :, :3]).all()
    assert (np.asarray(pil_loader(str(tmp_path / "a.png"))) == pixels[:, :, :3]).all()


def test_sixteen_bit_pgm_as_written_by_hand(tmp_path):
    """Pillow opens it in another mode than PNG's."""
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + (257 * 77).to_bytes(2, "big") + b"\xff\xff")
    assert np.asarray(data._open(tmp_path / "a.pgm"))[0, :, 0].tolist() == [77, 255]


def test_val_stands_for_a_missing_test_and_hidden_files_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    make_folder(tmp_path / "pets")
    expected = data.load("pets")
    (tmp_path / "pets/test").rename(tmp_path / "pets/val")
    (tmp_path / "pets/train/cat/._1.png").write_bytes(b"macOS leaves these")
    (tmp_path / "pets/train/.ipynb_checkpoints").mkdir()
    (tmp_path / "pets/val/.DS_Store").write_bytes(b"")
    data._load.cache_clear()
    found = data.load("pets")
    assert torch.equal(found.train_images, expected.train_images)
    assert torch.equal(found.test_images, expected.test_images) and found.n_classes == expected.n_classes
    shutil.copytree(tmp_path / "pets/val", tmp_path / "pets/test")  # where it is there, that is used
    (tmp_path / "pets/val/cat").rename(tmp_path / "pets/val/cow")
    data._load.cache_clear()
    assert len(data.load("pets").test_labels) == len(expected.test_labels)


def test_val_stands_for_a_test_folder_without_labels(tmp_path, monkeypatch):
    """As ImageNet's."""
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    make_folder(tmp_path / "pets")
    expected = data.load("pets")
    (tmp_path / "pets/test").rename(tmp_path / "pets/val")
    (tmp_path / "pets/test").mkdir()
    shutil.copy(next((tmp_path / "pets/val/cat").iterdir()), tmp_path / "pets/test/1.png")
    data._load.cache_clear()
    found = data.load("pets")
    assert torch.equal(found.test_images, expected.test_images)
    assert torch.equal(found.test_labels, expected.test_labels)


@pytest.mark.parametrize("other", ["9.gif", "more/1.png", "9.png/1.png"])
def test_what_is_left_out_of_a_class_folder_is_told(other, tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    make_folder(tmp_path / "pets")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = data.load("pets")
    cat = tmp_path / "pets/train/cat"
    (cat / other).parent.mkdir(exist_ok=True)
    (cat / other).write_bytes(b"")
    data._load.cache_clear()
    with pytest.warns(
        UserWarning,
        match=f"^dataset: .*train holds 1 files or folders that are left out, {cat / other.split('/')[0]} ",
    ):
        found = data.load("pets")
    assert torch.equal(found.train_images, expected.train_images)


def test_an_image_with_a_palette_and_transparency_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = data._open(tmp_path / "a.png")
    assert np.asarray(found).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize(("platform", "how"), [("linux", "fork"), ("darwin", "spawn")])
def test_readers_of_images_fork_on_linux_alone(platform, how, tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    make_folder(tmp_path / "pets")
    pets = data.load("pets", image_size=8)
    expected = next(data.batches(pets.train_images, [torch.arange(2)]))
    loader, asked = torch.utils.data.DataLoader, []
    monkeypatch.setattr(
        torch.utils.data,
        "DataLoader",
        lambda *a, **k: asked.append(k["multiprocessing_context"]) or loader(*a, **k),
    )
    with monkeypatch.context() as other:
        other.setattr(data.sys, "platform", platform)
        (found,) = data.batches(pets.train_images, [torch.arange(2)])
    assert asked == [how] and torch.equal(found, expected)


def test_streamed_images_have_the_published_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    make_folder(tmp_path / "small")
    monkeypatch.setitem(data.PUBLISHED, "small", ((0.5, 0.25, 0.1), (0.2, 0.1, 0.4)))
    loaded = data.load("small", image_size=8, scale="published")
    assert loaded.black == pytest.approx(torch.tensor([-2.5, -2.5, -0.25]))
    pixels = loaded.train_images[0][None].float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in data.PUBLISHED["small"])
    torch.testing.assert_close(
        loaded.train_images.standardise(loaded.train_images[0][None]), (pixels - mean) / std
    )


@pytest.mark.counts("bad inputs refused")
def test_a_scale_that_is_not_known_is_refused():
    for name, scale in (("digits", "published"), ("MNIST", "whitened")):
        with pytest.raises(
            ValueError, match=f"scale = '{scale}' is not allowed: use 'measured', or 'published' for"
        ):
            data.load(name, scale=scale)


def test_a_channel_without_variation_has_a_margin_like_its_images(tmp_path, monkeypatch):
    """Its standard deviation is 0: black is not thirteen orders of magnitude away."""
    for split, each in (("train", 2), ("test", 1)):
        for name in ("a", "b"):
            folder = tmp_path / "red" / split / name
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                pixels[:, :, 1:] = 77
                Image.fromarray(pixels).save(folder / f"{i}.png")
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    for image_size in (None, 8):
        red, *others = data.load("red", image_size=image_size).black.tolist()
        assert red < -1 and others == [0, 0]


@pytest.mark.parametrize("fit", ["stretch", "padd"])
def test_a_fit_that_is_not_known_is_refused(fit):
    with pytest.raises(ValueError, match=f"fit = '{fit}' is not allowed: use 'pad' or 'resize'"):
        data.load("digits", fit=fit)


@pytest.mark.counts("bad inputs refused")
def test_test_images_of_another_size_are_refused(tmp_path, monkeypatch):
    make_folder(tmp_path / "pets")
    for path in (tmp_path / "pets/test").rglob("*.png"):
        Image.open(path).resize((12, 10)).save(path)
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    with pytest.raises(
        ValueError, match="^dataset: the test images of pets have 12 x 10 pixels, its training images 8 x 8"
    ):
        data.load("pets")
    assert data.load("pets", image_size=8).test_images.shape == (8, 3, 8, 8)


def test_a_data_set_that_a_notebook_defines_anew_is_the_new_one(monkeypatch):
    for classes in (3, 5):
        monkeypatch.setitem(data.SOURCES, "mine", (lambda n=classes: data._digits(n), None))
        assert data.load("mine").n_classes == classes
        assert data.training_shape("mine")[0] == len(data.load("mine").train_labels)


@pytest.mark.counts("bad inputs refused")
def test_a_data_set_without_test_images_says_so():
    with pytest.raises(
        ValueError, match="^n_test = 5 is not allowed: unconstrained has 0 such images, use none$"
    ):
        data.load("unconstrained", n_test=5)
