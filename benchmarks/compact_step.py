"""Training CCT-2/3x2 on CIFAR-10 from labels, reading included, beside vit-pytorch's CCT in the loop of SHI-Labs' example.

    UNMASK_DATA_DIR=… uv run python benchmarks/compact_step.py [--encoder 2/3x2] [--rounds 5]

The same recipe for all: AutoAugment's policy for CIFAR-10, a shift by up to 4 pixels, flips, batches of 128, label smoothing,
AdamW, drop path and attention dropout 0.1. Contestants: ours as `unmask finetune` trains (bf16 where the processor has it);
ours in float32; and the peer: vit-pytorch's CCT of the same shape (with its learnable positions and sequence pooling, and
torchvision's transforms on PIL images that lie in memory as torchvision's CIFAR10 has them, in a DataLoader) in float32 as
published, and with bf16 autocast put around it. The peer is given as many workers as serve it best of 1, 2 and 4 (its default),
found out before. As all images of the peer lie in memory, ours have been read once before. In each round every contestant makes
some steps; ratios are taken round by round, and their median is quoted.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from vit_pytorch.cct import CCT

from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.sources import open_source
from unmask.evaluate.finetune import RECIPES, Supervised
from unmask.models.classifier import Classifier
from unmask.models.compact import SIZES
from unmask.training import engine
from unmask.training.engine import Clock
from unmask.training.optim import Recipe, optimisers_for, schedule

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CPU = torch.device("cpu")


class Ours:
    def __init__(self, source, encoder: str, precision: str):
        plain = {"augment": "auto", "crop_scale": None, "shift": 4, "mixup": 0.0, "cutmix": 0.0}
        built = models.build(f"cct-{encoder}", image_size=(32, 32), drop_path=0.1)
        classifier = Classifier(built, source.classes, built.width)
        self.task = Supervised(classifier, replace(RECIPES["compact"].settings, **plain), torch.ones(10)).train()
        targets = torch.from_numpy(source.targets())
        self.loader = Loader(source, Preprocess(3, MEAN, STD), self.task.views, 128, targets=targets)
        self.recipe, self.precision = Recipe(10**6, 5e-4, weight_decay=0.03), precision
        self.optimisers = optimisers_for(self.task, self.recipe)
        self.stream = self.loader()  # which keeps what it has read
        for _ in range(self.loader.steps_per_epoch + 1):
            next(self.stream)

    def batches(self):
        return (batch for batch in self.stream)  # may be closed: the stream itself goes on

    def step(self, batch) -> None:
        schedule(self.optimisers, self.recipe, 1000)
        with engine.autocast(CPU, self.precision):
            values = self.task(batch, Clock(1000, self.recipe.steps, 0.0))
        values["loss"].backward()
        for optimiser in self.optimisers:
            optimiser.step()
        self.task.zero_grad(set_to_none=True)


class Images(Dataset):
    """As torchvision's CIFAR10: an array in memory, an image of it made PIL's and transformed at a time."""

    def __init__(self, source):
        self.pixels = np.stack([np.asarray(Image.open(io.BytesIO(source.stored(i)))) for i in range(len(source))])
        self.targets = source.targets().tolist()
        policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)
        crops = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([policy, *crops, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.pixels[i])), self.targets[i]


class Theirs:
    def __init__(self, images: Images, encoder: str, precision: str, workers: int):
        depth, kernel, convolutions = int(encoder[0]), int(encoder[2]), int(encoder[4])
        width, heads, mlp_ratio = SIZES[depth]
        self.model = CCT(
            img_size=32,
            embedding_dim=width,
            n_conv_layers=convolutions,
            kernel_size=kernel,
            stride=max(1, kernel // 2 - 1),
            padding=max(1, kernel // 2),
            num_layers=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            num_classes=10,
            positional_embedding="learnable",
            dropout_rate=0.0,
            attention_dropout=0.1,
            stochastic_depth_rate=0.1,
        ).train()
        self.loader = DataLoader(images, 128, shuffle=True, num_workers=workers, drop_last=True)
        self.criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=5e-4, weight_decay=0.03)
        self.precision = precision

    def batches(self):
        while True:
            yield from self.loader

    def step(self, batch) -> None:
        images, targets = batch
        with engine.autocast(CPU, self.precision):
            loss = self.criterion(self.model(images), targets)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def turn(contestant: Ours | Theirs, steps: int) -> float:
    """Images a second, reading among it."""
    with contextlib.closing(contestant.batches()) as stream:
        for batch in itertools.islice(stream, 2):
            contestant.step(batch)
        began = time.perf_counter()
        for batch in itertools.islice(stream, steps):
            contestant.step(batch)
        return steps * 128 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="2/3x2", help="depth/KERNELxCONVOLUTIONS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="steps a turn")
    parser.add_argument("--images", type=int, default=10_000, help="of CIFAR-10's")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    source = open_source(str(Path(os.environ["UNMASK_DATA_DIR"]) / "cifar10" / "train.parquet"))
    source = source.subset(np.random.default_rng(0).permutation(len(source))[: settings.images])
    engine.keep_memory()
    torch.manual_seed(0)
    fast, _ = engine.choose_precision("auto", CPU)
    images, found = Images(source), {}
    for workers in (1, 2, 4):
        found[workers] = turn(Theirs(images, settings.encoder, "float32", workers), settings.steps)
        print(f"the peer with {workers} workers: {found[workers]:.0f} images/s")
    workers = max(found, key=lambda count: found[count])
    contestants = {
        "unmask": Ours(source, settings.encoder, fast),
        "unmask, float32": Ours(source, settings.encoder, "float32"),
    }
    peers = {"peer": "float32", f"peer, {fast}": fast}
    contestants |= {name: Theirs(images, settings.encoder, precision, workers) for name, precision in peers.items()}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(settings.rounds):
        for name, contestant in contestants.items():
            rates[name].append(turn(contestant, settings.steps))
    results: dict[str, dict[str, float]] = {"peer's workers": {str(k): v for k, v in found.items()}}
    for name, values in rates.items():
        results[name] = {"images_per_second": statistics.median(values)}
        for peer in peers:
            ratios = [a / b for a, b in zip(values, rates[peer], strict=True)]
            results[name][f"over_{peer}"] = statistics.median(ratios)
        print(f"{name}: {', '.join(f'{k} {v:.2f}' for k, v in results[name].items())}")
    if settings.out:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
