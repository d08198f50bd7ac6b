"""Training with DINO from end to end, images read from disk, beside the same built of lightly's parts, in turns.

    UNMASK_DATA_DIR=… uv run --with lightly-train python benchmarks/dino_step.py [--encoder vit-tiny/16] [--rounds 3]

224 px, two large crops and eight small ones, photographs of full size (imagenet-samples), decoded, cropped and coloured in
workers, on as many threads as there are cores for both. Four contestants: ours with the 65,536 outputs of ImageNet, ours
with the outputs chosen for so many images; lightly's with 65,536: its DINOTransform in torch's DataLoader, timm's ViT
with resampled positions, its DINOProjectionHead, DINOLoss, update_momentum and AdamW, as in its example of DINO, but with
bf16 autocast as ours; and, where it is installed, lightly-train as its users run it, in a process of its own for each turn,
with the outputs (1,024) and the precision that it chooses. In each round every contestant makes some steps, beginning with
one that is not counted; ratios are taken round by round, and their median is quoted. Loaders stop between turns.
"""

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm
import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms import DINOTransform
from torch.utils.data import DataLoader

from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.sources import open_source
from unmask.methods.dino import DINO, Settings
from unmask.training import engine
from unmask.training.engine import Clock
from unmask.training.optim import Recipe, optimisers_for, schedule
from unmask.verbs.load import IMAGENET


class Ours:
    def __init__(self, folder: Path, settings: argparse.Namespace, out_dim: int | None):
        source = open_source(str(folder))
        own, _ = DINO.suit(Settings(out_dim=out_dim), len(source), settings.batch_size, (224, 224), 1)
        self.dino = DINO(models.build(settings.encoder, drop_path=0.1, **DINO.ENCODER), own).train()
        preprocess = Preprocess(3, IMAGENET.mean, IMAGENET.std)
        views = self.dino.views
        self.loader = Loader(source, preprocess, views, settings.batch_size, workers=settings.workers)
        self.recipe = Recipe(10**6, 5e-4, steps_per_epoch=1000, weight_decay_end=0.4, betas=(0.9, 0.999))
        self.optimisers = optimisers_for(self.dino, self.recipe)

    def batches(self):
        return self.loader(0)

    def step(self, batch) -> None:
        clock = Clock(2000, self.recipe.steps, 2.0)
        schedule(self.optimisers, self.recipe, clock.step)
        with engine.autocast(torch.device("cpu"), self.recipe_precision):
            values = self.dino(batch, clock)
        values["loss"].backward()
        self.dino.after_backward(clock)
        for optimiser in self.optimisers:
            optimiser.step()
        self.dino.after_step(clock)
        self.dino.zero_grad(set_to_none=True)

    recipe_precision, _ = engine.choose_precision("auto", torch.device("cpu"))


class Lightly:
    def __init__(self, folder: Path, settings: argparse.Namespace):
        name = settings.encoder.replace("-", "_").replace("/", "_patch") + "_224"
        self.student = timm.create_model(name, num_classes=0, dynamic_img_size=True, drop_path_rate=0.1)
        self.head, self.teacher_head = (DINOProjectionHead(self.student.num_features) for _ in range(2))
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        self.teacher.load_state_dict(self.student.state_dict())
        self.loss = DINOLoss(65536)
        learning = [*self.student.parameters(), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW([p for p in learning if p.requires_grad], lr=5e-4, weight_decay=0.04)
        for module in (self.teacher, self.teacher_head):
            module.requires_grad_(False)
        dataset = LightlyDataset(str(folder), transform=DINOTransform(n_local_views=8))
        self.loader = DataLoader(
            dataset, settings.batch_size, shuffle=True, drop_last=True, num_workers=settings.workers
        )

    def batches(self):
        while True:
            yield from self.loader

    def step(self, batch) -> None:
        views, _, _ = batch
        update_momentum(self.student, self.teacher, m=0.9995)
        update_momentum(self.head, self.teacher_head, m=0.9995)
        with engine.autocast(torch.device("cpu"), Ours.recipe_precision):
            with torch.no_grad():
                targets = [self.teacher_head(self.teacher(view)) for view in views[:2]]
            outputs = [self.head(self.student(view)) for view in views]
        loss = self.loss([x.float() for x in targets], [x.float() for x in outputs], epoch=40)
        loss.backward()
        self.head.cancel_last_layer_gradients(current_epoch=2)
        self.optimiser.step()
        self.optimiser.zero_grad()


def lightly_train(folder: Path, settings: argparse.Namespace) -> float:
    """Images a second of lightly-train's whole training, from the first step's start to the last one's."""
    import lightly_train
    from lightly_train._methods.dino.dino import DINO as Theirs

    starts, plain = [], Theirs.training_step_impl

    def timed(*args, **kwargs):
        starts.append(time.perf_counter())
        return plain(*args, **kwargs)

    Theirs.training_step_impl = timed
    model = "timm/" + settings.encoder.replace("-", "_").replace("/", "_patch") + "_224"
    with tempfile.TemporaryDirectory() as out:
        lightly_train.pretrain(
            out=out,
            overwrite=True,
            data=str(folder),
            model=model,
            method="dino",
            batch_size=settings.batch_size,
            num_workers=settings.workers,
            optim="adamw",
            accelerator="cpu",
            epochs=1000,
            trainer_args={"max_steps": settings.steps + 2},
        )
    return settings.steps * settings.batch_size / (starts[-1] - starts[1])


def turn(contestant, folder: Path, settings: argparse.Namespace) -> float:
    """Images a second, reading among it."""
    if contestant is lightly_train:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            return alone.submit(lightly_train, folder, settings).result()
    stream = contestant.batches()
    contestant.step(next(stream))
    began = time.perf_counter()
    for batch in itertools.islice(stream, settings.steps):
        contestant.step(batch)
    rate = settings.steps * settings.batch_size / (time.perf_counter() - began)
    stream.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vit-tiny/16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps a turn")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    folder = Path(os.environ["UNMASK_DATA_DIR"]) / "imagenet-samples"
    engine.keep_memory()
    torch.manual_seed(0)
    contestants = {
        "unmask, 65,536 outputs": Ours(folder, settings, 65536),
        "unmask": Ours(folder, settings, None),
        "lightly": Lightly(folder, settings),
    }
    if importlib.util.find_spec("lightly_train"):
        contestants["lightly-train"] = lightly_train
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(settings.rounds):
        for name, contestant in contestants.items():
            rates[name].append(turn(contestant, folder, settings))
    results = {name: {"images_per_second": statistics.median(values)} for name, values in rates.items()}
    for name, values in rates.items():
        for peer in sorted(set(rates) & {"lightly", "lightly-train"}):
            ratios = [a / b for a, b in zip(values, rates[peer], strict=True)]
            results[name][f"over_{peer}"] = statistics.median(ratios)
        print(f"{name}: {', '.join(f'{k} {v:.2f}' for k, v in results[name].items())}")
    if settings.out:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
