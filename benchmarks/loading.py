"""Images a second of our loader beside MAE's own pipeline, in turns.

    UNMASK_DATA_DIR=folder uv run python benchmarks/loading.py [--rounds 5] [--workers 2] [--out benchmarks/results/loading.json]

MAE's pipeline is that of facebookresearch/mae, main_pretrain.py: Pillow opens the file, then torchvision's
RandomResizedCrop(224, scale=(0.2, 1), bicubic), RandomHorizontalFlip, ToTensor, Normalize, in a DataLoader. Ours draws the
same crops and flips at the same size, from the original files, from a store of JPEG and from a store of raw pixels (short
side 256). What it hands over is measured twice: normalised in float32 on the CPU by the one process that trains, as MAE's
are by its workers; and as bytes, which is all that the CPU does where a GPU normalises. Both have the same number of
workers and the same setting of the memory allocator; ours keeps no image from one epoch to the next.

The sets are made from the photographs in UNMASK_DATA_DIR/imagenet-samples: of 0.2 megapixels (JPEG at quality 95, which
gives about the 108 kB that a file of ImageNet has), and enlarged to 12 megapixels, with and without the noise of a sensor.
In each round every contestant runs for some seconds; ratios are taken round by round, and their median is quoted. The
files are in the page cache. With --workers 0 all is done in one thread, and seconds are those of the processor, which other
programs on the machine disturb least.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from unmask.data import loader
from unmask.data.augment import View
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.packed import Layout, pack
from unmask.data.sources import open_source
from unmask.training import engine
from unmask.verbs.load import IMAGENET

READY = 4
"""Batches that each worker prepares ahead, in all contestants."""


def make_files(photographs: list[Path], folder: Path, pixels: float, noise: float, count: int) -> None:
    """`count` JPEG files of about so many pixels; photographs are repeated by links."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        target = folder / f"{i:05d}.jpg"
        if i >= len(photographs):
            target.symlink_to(folder / f"{i % len(photographs):05d}.jpg")
            continue
        image = Image.open(photographs[i]).convert("RGB")
        scale = (pixels / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        if noise:
            noisy = np.asarray(image) + rng.normal(0, noise, (image.height, image.width, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(target, quality=95)


class Files(Dataset):
    """As torchvision's ImageFolder reads them."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.iterdir())
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET.mean, IMAGENET.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        with self.paths[i].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


def theirs(seed: int, folder: Path, batch_size: int, workers: int) -> Iterator[Tensor]:
    torch.manual_seed(seed)
    files = Files(folder)
    order = RandomSampler(files, replacement=True, num_samples=10**9)
    yield from DataLoader(
        files,
        batch_size,
        sampler=order,
        num_workers=workers,
        drop_last=True,
        prefetch_factor=READY if workers else None,
    )


class Bytes(Preprocess):
    """Leaves batches as the workers hand them over."""

    def normalise(self, batch: Tensor) -> Tensor:
        return batch


def ours(seed: int, source: Path, batch_size: int, workers: int, as_bytes: bool = False) -> Iterator[Tensor]:
    preprocess = Bytes(3, IMAGENET.mean, IMAGENET.std) if as_bytes else IMAGENET
    view = View((224, 224))
    for batch in Loader(open_source(source), preprocess, (view,), batch_size, seed=seed, workers=workers)():
        yield batch.views[0]


def turn(batches: Iterator[Tensor], settings: argparse.Namespace, sums: list[Tensor]) -> float:
    """Images a second. The first batches, which bring the workers into step, do not count."""
    clock = time.perf_counter if settings.workers else time.process_time
    for _ in range((READY + 1) * settings.workers + 1):
        next(batches)
    images, began = 0, clock()
    while clock() - began < settings.seconds:
        images += len(next(batches))
    rate = images / (clock() - began)
    for _ in range(4):
        batch = IMAGENET.normalise(batch) if (batch := next(batches)).dtype == torch.uint8 else batch
        sums.append(torch.stack([batch.mean((0, 2, 3)), batch.square().mean((0, 2, 3))]).double())
    return rate


def compare(contestants: dict[str, Callable[[int], Iterator[Tensor]]], settings: argparse.Namespace) -> dict:
    rates: dict[str, list[float]] = {who: [] for who in contestants}
    sums: dict[str, list[Tensor]] = {who: [] for who in contestants}
    for seed in range(settings.rounds):
        for who, start in contestants.items():
            batches = start(seed)
            rates[who].append(turn(batches, settings, sums[who]))
            batches.close()  # type: ignore[attr-defined]  # its workers end, so that they take nothing from the next turn
    result = {}
    for who in contestants:
        mean, square = torch.stack(sums[who]).mean(0)
        ratio = statistics.median(a / b for a, b in zip(rates[who], rates["MAE"], strict=True))
        result[who] = {
            "images_per_second": round(statistics.median(rates[who]), 1),
            "ratio": round(ratio, 2),
            "mean": [round(x, 3) for x in mean.tolist()],
            "std": [round(x, 3) for x in (square - mean**2).sqrt().tolist()],
        }
        print(f"  {who:18} {result[who]['images_per_second']:9,.1f} images/s  x {ratio:5.2f}", end="")
        print(f"   mean {result[who]['mean']}  std {result[who]['std']}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant in a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000, help="in the set of 0.2 megapixels")
    parser.add_argument("--machine", default=platform.platform(), help="what the results say it was")
    parser.add_argument("--out", type=Path, help="results of other numbers of workers that are in it stay")
    settings = parser.parse_args()
    photographs = sorted(Path(os.environ["UNMASK_DATA_DIR"], "imagenet-samples").glob("*.JPEG"))
    torch.set_num_threads(1)  # the workers have the cores
    engine.keep_memory()
    loader.KEPT = 0
    results = {
        "machine": settings.machine,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": PIL.__version__,
        "simplejpeg": simplejpeg.__version__,
    }
    folder = Path(tempfile.mkdtemp(prefix="loading-"))
    try:
        for name, chosen, pixels, noise, count, batch_size in (
            ("0.2 megapixels", photographs, 0.2e6, 0.0, settings.images, 64),
            ("12 megapixels", photographs[:24], 12e6, 0.0, 48, 4),
            ("12 megapixels and noise", photographs[:24], 12e6, 3.0, 48, 4),
        ):
            files = folder / name
            make_files(chosen, files, pixels, noise, count)
            size = statistics.mean(path.stat().st_size for path in files.iterdir())
            print(f"{name}, {count:,} files of {size / 1e3:,.0f} kB, {settings.workers} workers", flush=True)
            arguments = {"batch_size": batch_size, "workers": settings.workers}
            sources = {"files": files}
            for form in ("jpeg", "raw") if pixels < 1e6 else ():
                store = folder / form
                began = time.perf_counter()
                pack(open_source(files), store, Layout(256, form), command="", workers=settings.workers)
                print(f"  packed as {form} at {count / (time.perf_counter() - began):,.0f} images/s")
                sources[f"packed {form}"] = store
            contestants = {"MAE": partial(theirs, folder=files, **arguments)}
            contestants |= {who: partial(ours, source=source, **arguments) for who, source in sources.items()}
            contestants |= {
                f"{who}, bytes": partial(ours, source=source, as_bytes=True, **arguments)
                for who, source in sources.items()
            }
            results[name] = {"kilobytes": round(size / 1e3), **compare(contestants, settings)}
    finally:
        shutil.rmtree(folder)
    if settings.out:
        known = json.loads(settings.out.read_text()) if settings.out.is_file() else {}
        settings.out.write_text(json.dumps(known | {f"{settings.workers} workers": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
