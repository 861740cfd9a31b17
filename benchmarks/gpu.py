"""Job 1 on a GPU: the matrix-product rate, and ResNet9's samples a second at width 64, batch 128, 32 x 32, in several ways.

`python benchmarks/gpu.py OUT` prints a table and writes OUT/gpu.json, with the device and every figure. On a CPU, or with
NCUTILS_TOY=1, it runs at toy size and says nothing about speed: that is how it is tested.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.multiprocessing
import torch.nn.functional as F
from common import TOY
from torch.utils.flop_counter import FlopCounterMode

from ncutils import data
from ncutils.machine import device_name, pick_device
from ncutils.runs import Run
from ncutils.step import Step, epoch, make_model, run_optimizer

DEVICE = pick_device()
SMALL = TOY or DEVICE.type == "cpu"
WIDTH, BATCH, STEPS, REPEATS = (2, 8, 5, 2) if SMALL else (64, 128, 200, 3)
SIDE_BY_SIDE = (2,) if SMALL else (2, 4)


def wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(call) -> float:
    """Median over repeats, after one to warm up."""
    call()
    found = []
    for _ in range(REPEATS):
        wait()
        start = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]


def product_rate(dtype) -> float:
    """Operations a second of the best of a few matrix products of random numbers."""

    def rate(n):
        a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
        return 20 * n**3 / seconds(lambda: [torch.mm(a, b) for _ in range(10)])

    return max(map(rate, (64,) if SMALL else (4096, 8192)))


def setting(precision="bf16", channels_last=True):
    """Network, optimizer and images of FashionMNIST's shape, as uint8 on the device."""
    run = Run(net="released", width=WIDTH, lr=0.01, coupled_wd=5e-4, batch_size=BATCH, precision=precision)
    pixels = torch.randint(0, 256, (STEPS * BATCH, 1, 32, 32), dtype=torch.uint8, device=DEVICE)
    labels = torch.arange(STEPS * BATCH, device=DEVICE) % 10
    images = data.Pixels(
        pixels.contiguous(memory_format=torch.channels_last), *torch.tensor([72.0, 90.0], device=DEVICE)
    )
    dataset = data.Dataset(images, labels, images, labels, 10)
    model = make_model(run, dataset, DEVICE)
    if not channels_last:
        model = model.to(memory_format=torch.contiguous_format)
        images.pixels = pixels.contiguous()
    return run, dataset, model, run_optimizer(model, run)


def one_epoch(precision="bf16", channels_last=True, graphed=False, compiled=False):
    """A call that trains on all images once."""
    run, dataset, model, optimizer = setting(precision, channels_last)
    step, order = Step(model, optimizer, run), torch.Generator().manual_seed(0)
    step.graphed = graphed and step.graphed
    if not compiled:
        step.run = run.model_copy(update={"width": 8})  # of which a Step compiles nothing
    images, labels = dataset.train_images, dataset.train_labels
    return lambda: epoch(step, images, labels, order)


def neighbour(barrier, queue):
    """One of several processes on the GPU, which takes turns among them: its seconds an epoch while all of them train."""
    train = one_epoch(graphed=True, compiled=True)
    train()
    barrier.wait()
    queue.put(seconds(train))


def side_by_side(n) -> float:
    """Seconds in which n processes together have trained n epochs."""
    context = torch.multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(n), context.Queue()
    processes = [context.Process(target=neighbour, args=(barrier, queue)) for _ in range(n)]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return max(found) / n


def ways():
    """(name, seconds an epoch, precision)."""
    yield "eager, NCHW, float32", seconds(one_epoch("float32", channels_last=False)), "float32"
    yield "eager, channels last, float32", seconds(one_epoch("float32")), "float32"
    yield "eager, channels last, bf16", seconds(one_epoch()), "bf16"
    yield "CUDA graph, float32", seconds(one_epoch("float32", graphed=True)), "float32"
    yield "CUDA graph, bf16", seconds(one_epoch(graphed=True)), "bf16"
    yield "compiled, CUDA graph, bf16", seconds(one_epoch(compiled=True, graphed=True)), "bf16"
    for n in SIDE_BY_SIDE:
        yield f"{n} processes, compiled, CUDA graph, bf16", side_by_side(n), "bf16"


def main(out: Path) -> None:
    torch.backends.cudnn.benchmark = True  # as training.train has it on a GPU
    _, dataset, model, _ = setting("float32")
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(model(dataset.train_images[:BATCH]), dataset.train_labels[:BATCH]).backward()
    a_sample = counted.get_total_flops() / BATCH
    rates = {"bf16": product_rate(torch.bfloat16), "float32": product_rate(torch.float32)}
    kept = {"device": device_name(DEVICE), "toy": SMALL, "torch": torch.__version__, "tflops": {}, "ways": []}
    print(f"{kept['device']}, torch {torch.__version__}" + (" -- TOY SIZE" if SMALL else ""))
    for precision, rate in rates.items():
        kept["tflops"][precision] = rate / 1e12
        print(f"matrix products, {precision}: {rate / 1e12:.4g} TFLOP/s")
    print(f"ResNet9 width {WIDTH}, batch {BATCH}, 32 x 32: {a_sample / 1e9:.3g} GFLOP a sample")
    out.mkdir(parents=True, exist_ok=True)
    for name, taken, precision in ways():
        speed = STEPS * BATCH / taken
        line = {"way": name, "samples_s": speed, "share": a_sample * speed / rates[precision]}
        line["epochs_200_s"] = 200 * 60_000 / speed
        kept["ways"].append(line)
        print(f"{name:40} {speed:12,.0f} samples/s  {line['share']:6.1%} of the rate  {line['epochs_200_s']:8.0f} s for 200 epochs", flush=True)  # fmt: skip
        (out / "gpu.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
