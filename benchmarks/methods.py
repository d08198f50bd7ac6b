"""Every method on CIFAR-10 for the same time on the same machine, and lightly's SimCLR, DINO and MAE, in one table.

    UNMASK_DATA_DIR=… uv run --with lightly --with transformers python benchmarks/methods.py --out runs/methods [--seconds 480]

First, on a machine with nothing else to do, each contestant trains a few steps, and is given as many steps as fit into
--seconds at the rate of these (`rates`); then each is trained for so many (`train`), which other work may slow down without
changing anything; then all are compared (`compare`): frozen features, k-NN and linear probe on --labels training images and
the whole test set. `--phases` names those to do, `--only` the contestants.

One encoder, precision and augmentation for all of ours: what `unmask pretrain METHOD` takes by itself on these images,
the encoder aside. BEiT and the MAE of tokens share their time with the tokenizer: half for it, half for them. DINO is
there twice more, broken on purpose, for the sake of the verdict. lightly's are what its documentation builds: its
transforms for 32 pixels in torchvision, workers (one a core), timm's ViT of the same size in float32, its heads and
losses; optimiser, batch, rate and its schedule are those that ours has for the method, because its examples are for
other encoders.

On a GPU: --epochs 200, with --encoder vit-tiny/4 and then resnet18 (without those that hide patches: --only moco …), and
--collection tiny-imagenet-100 with vit-small/8 and resnet50 (without lightly's, which are for 32 pixels).
"""

import argparse
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models.modules import DINOProjectionHead, SimCLRProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms import DINOTransform, SimCLRTransform
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import unmask
from in_memory import MEAN, STD, Bytes
from in_memory import Lightly as LightlyMAE
from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.sources import open_source
from unmask.data.survey import survey
from unmask.methods import METHODS
from unmask.models import dvae, interop
from unmask.models.dvae import Tokenizer
from unmask.training import engine
from unmask.training.optim import Recipe, optimisers_for, schedule
from unmask.verbs.choices import choose, parse_size
from unmask.verbs.compare import Compare, compare

OURS = ("mae", "moco", "moco-v2", "moco-v3", "simclr", "simclr-v2", "byol", "dino", "dvae", "beit", "mae-tokens")
TOKENS = ("beit", "mae-tokens")
"""Those that need the tokenizer."""

BROKEN = {
    "dino-uncentred": {"centring": False},
    "dino-unsharpened": {"teacher_temperature": 0.1, "teacher_temperature_start": 0.1},
}
"""DINO broken on purpose, for a third of the time: what does the verdict say?"""

WARM, SECONDS = 4, 12.0
"""Steps that are not counted when rates are measured, and the time for which those are that count."""


def asked(name: str, settings: argparse.Namespace, tokens: Path) -> tuple[str, dict[str, Any]]:
    """The method, and the options of `unmask pretrain`."""
    options: dict[str, Any] = {"encoder": settings.encoder, **BROKEN.get(name, {})}
    if name == "dvae":
        options["encoder"] = f"dvae-tiny/{settings.encoder.rpartition('/')[2]}"
    if name in TOKENS:
        options["tokens"] = str(tokens)
    if name == "mae-tokens":
        options["target"] = "tokens"
    return "dino" if name in BROKEN else name.removesuffix("-tokens"), options


def ours(name: str, out: Path, settings: argparse.Namespace, steps: int) -> None:
    method, options = asked(name, settings, out.parent / "dvae")
    unmask.pretrain(method, data=collection(settings)[0], out=out, steps=steps, **options)


class Enough(Exception):
    """Of steps."""


def chosen(name: str, settings: argparse.Namespace, steps: int) -> dict[str, Any]:
    """The recipe that `unmask pretrain` chooses for one of ours."""
    method, options = asked(name, settings, Path())
    surveyed = survey(open_source(collection(settings)[0]), sample=2000)
    given = {"encoder": options["encoder"], "steps": steps}
    found = choose(surveyed, given, engine.choose_device("auto").type, METHODS[method].PAPERS)
    return {name: choice.value for name, choice in found.items()}


def rate_of_ours(name: str, settings: argparse.Namespace) -> float:
    """Images a second: steps as `unmask pretrain` makes them, reading among it."""
    method, options = asked(name, settings, Path())
    kind, source, device = METHODS[method], open_source(collection(settings)[0]), engine.choose_device("auto")
    encoder, value = options.pop("encoder"), chosen(name, settings, 1000)
    size, batch_size = parse_size(value["image_size"]), value["batch_size"]
    own = kind.suit(kind.Settings(**options), len(source), batch_size, size, 1000)[0]
    tokens = {}
    if name in TOKENS:
        coder = models.build(f"dvae-tiny/{encoder.rpartition('/')[2]}", image_size=size)
        tokens["tokenizer"] = Tokenizer(coder, MEAN, STD, (dvae.MEAN,) * 3, (dvae.STD,) * 3)
    trained = kind(
        models.build(encoder, image_size=size, drop_path=value["drop_path"], **kind.built_with(own)), own, **tokens
    )
    loader = Loader(source, Preprocess(3, MEAN, STD), trained.views, batch_size, device=device, hold=value["hold"])
    starts: list[float] = []

    def batches(first: int) -> Iterator[Any]:
        for batch in loader(0):
            if device.type == "cuda":
                torch.cuda.synchronize()
            starts.append(time.perf_counter())
            if len(starts) > 2 * WARM and starts[-1] - starts[WARM] > SECONDS:
                raise Enough
            yield batch

    recipe = Recipe(10**6, 1e-6, steps_per_epoch=loader.steps_per_epoch, optimiser=value["optimiser"])
    with contextlib.suppress(Enough):
        engine.fit(trained, batches, recipe, device=device, precision=engine.choose_precision("auto", device)[0])
    return batch_size * (len(starts) - 1 - WARM) / (starts[-1] - starts[WARM])


class LightlySimCLR(nn.Module):
    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0, normalize={"mean": MEAN, "std": STD})

    def __init__(self, patch: int):
        super().__init__()
        self.backbone = vit(patch)
        self.head, self.criterion = SimCLRProjectionHead(192, 2048, 128), NTXentLoss()

    def forward(self, views: list[Tensor], progress: float) -> Tensor:
        return self.criterion(*(self.head(self.backbone(view)) for view in views))

    def after_step(self) -> None: ...


class LightlyDINO(nn.Module):
    transform = DINOTransform(
        global_crop_size=32,
        local_crop_size=16,
        n_local_views=8,
        gaussian_blur=(0.0, 0.0, 0.0),
        normalize={"mean": MEAN, "std": STD},
    )

    def __init__(self, patch: int):
        super().__init__()
        self.backbone, self.teacher = vit(patch), vit(patch)
        self.head, self.teacher_head = (DINOProjectionHead(192, output_dim=2048) for _ in range(2))
        self.teacher.load_state_dict(self.backbone.state_dict())
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher.requires_grad_(False), self.teacher_head.requires_grad_(False)
        self.criterion = DINOLoss(2048)

    def forward(self, views: list[Tensor], progress: float) -> Tensor:
        momentum = 1 - (1 - 0.996) * 0.5 * (1 + math.cos(math.pi * progress))
        update_momentum(self.backbone, self.teacher, m=momentum)
        update_momentum(self.head, self.teacher_head, m=momentum)
        with torch.no_grad():
            targets = [self.teacher_head(self.teacher(view)) for view in views[:2]]
        return self.criterion(targets, [self.head(self.backbone(view)) for view in views], epoch=40)

    def after_step(self) -> None:
        self.head.cancel_last_layer_gradients(current_epoch=2)


class LightlyPlainMAE(LightlyMAE):
    transform = None  # what in_memory.py crops with

    def forward(self, views: Tensor, progress: float) -> Tensor:
        return super().forward(views)

    def after_step(self) -> None: ...


THEIRS = {"lightly-simclr": LightlySimCLR, "lightly-dino": LightlyDINO, "lightly-mae": LightlyPlainMAE}


def vit(patch: int) -> VisionTransformer:
    return VisionTransformer(
        img_size=32, patch_size=patch, embed_dim=192, depth=12, num_heads=3, num_classes=0, dynamic_img_size=True
    )


class Views(Bytes):
    """Images in memory through one of lightly's transforms."""

    def __init__(self, source: Any, transform: Any):
        super().__init__(source)
        self.views = transform

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i) if self.views is None else self.views(Image.fromarray(self.images[i]))


def theirs(name: str, out: Path | None, settings: argparse.Namespace, steps: int) -> float:
    """Train one of lightly's with the recipe of ours, and write an encoder as our runs have them; or, without `out`, only
    measure its images a second."""
    torch.manual_seed(0)
    patch, kind = int(settings.encoder.rpartition("/")[2]), METHODS[name.removeprefix("lightly-")]
    recipe = chosen(name.removeprefix("lightly-"), settings, steps)
    method = THEIRS[name](patch).train()
    images = Views(open_source(collection(settings)[0]), method.transform)
    workers, batch_size = os.cpu_count() or 1, recipe["batch_size"]
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    decay, end = recipe["weight_decay"], recipe["weight_decay_end"]
    warmup, betas = recipe["warmup_steps"], kind.PAPERS["vit"].betas
    plan = Recipe(steps, recipe["lr"], warmup=warmup, weight_decay=decay, weight_decay_end=end, betas=betas)
    optimisers, starts = optimisers_for(method, plan), [time.perf_counter()]
    for step, views in enumerate(forever(loader, steps)):
        schedule(optimisers, plan, step)
        loss = method(views, step / steps)
        loss.backward()
        method.after_step()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        starts.append(time.perf_counter())
        if out is None and len(starts) > 2 * WARM and starts[-1] - starts[WARM] > SECONDS:
            break
        if out is not None and step % max(1, steps // 10) == 0:
            print(f"{name}: step {step}/{steps}  loss {loss.item():.4f}", flush=True)
    if out is not None:
        inner = method.backbone.vit if name == "lightly-mae" else method.backbone
        state = interop.from_timm({key: value.detach().clone() for key, value in inner.state_dict().items()})
        known = models.build(settings.encoder, image_size=(32, 32), pool=kind.ENCODER["pool"])
        known.load_state_dict(state)
        out.mkdir(parents=True, exist_ok=True)
        interop.save(
            known, out / "encoder", {"name": settings.encoder, "preprocess": Preprocess(3, MEAN, STD).to_dict()}
        )
    return batch_size * (len(starts) - 1 - WARM) / (starts[-1] - starts[WARM])


def forever(loader: DataLoader, steps: int) -> Iterator[Any]:
    """So many batches, pass after pass."""
    done = 0
    while True:
        for batch in loader:
            if done == steps:
                return
            done += 1
            yield batch


def collection(settings: argparse.Namespace) -> tuple[str, str]:
    """Training and test images."""
    folder = Path(os.environ["UNMASK_DATA_DIR"]) / settings.collection
    test = "test.parquet" if (folder / "test.parquet").is_file() else "val.parquet"
    return str(folder / "train*.parquet"), str(folder / test)


def table(settings: argparse.Namespace) -> pyarrow.Table:
    parts = sorted(Path(collection(settings)[0]).parent.glob("train*"))
    return pyarrow.concat_tables(parquet.read_table(path) for path in parts)


def judge(settings: argparse.Namespace) -> None:
    """Frozen features of all, learnt from --labels training images drawn at random, on the test images."""
    test, few, every = collection(settings)[1], settings.out / "labels.parquet", table(settings)
    chosen = np.random.default_rng(0).permutation(len(every))[: settings.labels]
    parquet.write_table(every.take(np.sort(chosen)), few)
    runs = tuple(str(settings.out / name) for name in settings.only if name not in ("dvae", *BROKEN))
    found = compare(Compare(runs, data=str(few), test=test, out=settings.out / "comparison"))
    for run in found["runs"].values():
        del run["path"], run["seconds"]  # training may have been slowed down; rates say what it takes alone
    found["rates"] = json.loads((settings.out / "rates.json").read_text())
    results = {name: settings.out / name / "result.json" for name in settings.only if name not in THEIRS}
    results = {name: json.loads(path.read_text()) for name, path in results.items()}
    found["verdicts"] = {
        name: {key: each[key] for key in ("verdict", "sentence", "steps")} for name, each in results.items()
    }
    (settings.out / "methods.json").write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--epochs", type=float, help="passes over the images of each, instead of --seconds")
    parser.add_argument(
        "--collection", default="cifar10", help="a folder of UNMASK_DATA_DIR; lightly's are for cifar10"
    )
    parser.add_argument("--encoder", default="vit-tiny/4")
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--phases", nargs="+", default=["rates", "train", "compare"])
    parser.add_argument("--only", nargs="+", default=[*OURS, *THEIRS, *BROKEN])
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    engine.keep_memory()
    known = settings.out / "rates.json"
    for name in settings.only if "rates" in settings.phases else ():
        if name in BROKEN:
            continue
        rate = rate_of_ours(name, settings) if name in OURS else theirs(name, None, settings, 1000)
        rates = (json.loads(known.read_text()) if known.is_file() else {}) | {name: rate}
        known.write_text(json.dumps(rates, indent=2) + "\n")
        print(f"{name}: {rate:.1f} images/s", flush=True)
    for name in settings.only if "train" in settings.phases else ():
        share = 1 / 3 if name in BROKEN else 1 / 2 if name in ("dvae", *TOKENS) else 1
        rate = json.loads(known.read_text())["dino" if name in BROKEN else name]
        batch_size = chosen(name.removeprefix("lightly-"), settings, 1000)["batch_size"]
        views = share * (settings.seconds * rate if settings.epochs is None else settings.epochs * len(table(settings)))
        steps = round(views / batch_size)
        if name in THEIRS:
            theirs(name, settings.out / name, settings, steps)
        else:
            ours(name, settings.out / name, settings, steps)
    if "compare" in settings.phases:
        judge(settings)


if __name__ == "__main__":
    main()
