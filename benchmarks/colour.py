"""SimCLR's colours on a CPU: ours for a batch beside torchvision's image by image, and beside reading and cropping.

    UNMASK_DATA_DIR=folder uv run python benchmarks/colour.py [--rounds 7] [--out benchmarks/results/colour.json]

Jitter (0.8, 0.8, 0.8, 0.2) at 0.8, grey 0.2, blur 0.5 with sigma 0.1 to 2, on 64 crops as bytes of the photographs in
UNMASK_DATA_DIR/imagenet-samples. torchvision's are the transforms v2 ColorJitter, RandomGrayscale and GaussianBlur of the
same 13 taps, on tensors of bytes. One thread, seconds of the processor, the same setting of the memory allocator, in turns;
medians over the rounds. Every round draws anew; each contestant draws for itself.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.transforms import v2

from unmask.data.augment import View, sample_seeds
from unmask.data.decode import Preprocess
from unmask.data.loader import Key, Renderer
from unmask.data.sources import open_source
from unmask.training import engine

COUNT = 64


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) / COUNT


def measure(size: int, rounds: int) -> dict[str, float]:
    """Microseconds an image of each contestant at so many pixels a side, and torchvision's over ours."""
    source = open_source(Path(os.environ["UNMASK_DATA_DIR"]) / "imagenet-samples")
    plain = View((size, size), (0.08, 1.0))
    view = replace(plain, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5)
    theirs = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
        ]
    )
    found: dict[str, list[float]] = {"read_and_crop": [], "ours": [], "torchvision": []}
    for number in range(rounds + 1):  # the first is to warm up
        key = Key(number, (np.arange(COUNT) + number * COUNT) % len(source))
        reader = Renderer(source, Preprocess(3, (0.5,) * 3, (0.25,) * 3), (plain,), 0, True, True, 0)
        found["read_and_crop"].append(seconds(lambda reader=reader, key=key: reader[key]))
        images = reader[key][0][0].contiguous()
        seeds = sample_seeds(0, number, torch.arange(COUNT))
        ours = seconds(lambda images=images, seeds=seeds: view.colour(images, view.draw_colour(seeds)))
        found["ours"].append(ours)
        found["torchvision"].append(seconds(lambda images=images: [theirs(image) for image in images]))
    ratios = [b / a for a, b in zip(found["ours"][1:], found["torchvision"][1:], strict=True)]
    times = {name: round(1e6 * statistics.median(values[1:]), 1) for name, values in found.items()}
    return {**times, "ratio": round(statistics.median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine.keep_memory()
    results = {}
    for size in (32, 64, 96, 224):
        results[size] = measure(size, arguments.rounds)
        print(f"{size:4d} px, microseconds an image: {results[size]}", flush=True)
    if arguments.out:
        machine = {"processor": platform.processor() or platform.machine(), "threads": 1}
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        arguments.out.write_text(json.dumps({**machine, **versions, "sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
