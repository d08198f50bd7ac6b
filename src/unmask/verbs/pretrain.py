"""unmask pretrain METHOD: from a collection of images to an encoder, a verdict and a report."""

import dataclasses
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from unmask import figures, models
from unmask.data.augment import View
from unmask.data.decode import Preprocess, measure
from unmask.data.loader import Loader
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.data.survey import survey
from unmask.errors import BadInput
from unmask.methods import METHODS
from unmask.methods.dino import DINO
from unmask.methods.mae import MAE
from unmask.methods.method import Method
from unmask.models import interop
from unmask.models.vit import ViT
from unmask.training import distributed, engine, health
from unmask.training.engine import console
from unmask.training.optim import Optimiser, Recipe
from unmask.training.run import Run, plain, revive
from unmask.verbs.attend import attention_picture
from unmask.verbs.choices import Choice, choose, paper_for, parse_size
from unmask.verbs.load import load_tokenizer
from unmask.verbs.probe import few, judge, watch_probe
from unmask.verbs.reconstruct import picture
from unmask.verbs.report import write_report


@dataclass(frozen=True)
class Pretrain:
    """What every method is told. What is not given is chosen from the data, and said."""

    data: str | None = None
    """Images to learn from: a folder, a .csv or .parquet table (or a glob of them) with a column `image`,
    hf:NAME[:SPLIT], wds:PATTERN.tar, a packed store, digits, or photos."""
    out: Path | None = None
    """Folder of the run, to be created."""
    encoder: str | None = None
    """vit-tiny, vit-small, vit-base, vit-large or vit-huge, then / and the patch size in pixels: vit-tiny/8; a compact
    transformer, such as vit-lite-7/4, cvt-7/4 or cct-7/3x1; or a model of timm, such as resnet50, untrained. Where the method
    can train it."""
    image_size: str | None = None
    """Pixels that the encoder sees: 224, or HEIGHTxWIDTH as in 160x224."""
    epochs: float | None = None
    """Passes over the images. Default: the paper's."""
    steps: int | None = None
    """Steps of the optimiser, instead of --epochs."""
    batch_size: int | None = None
    """Images a step."""
    base_lr: float | None = None
    """Learning rate for a batch of 256; the rate itself is this x batch / 256."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine. Default: the paper's, mostly 0."""
    warmup: float | None = None
    """Share of the steps over which the rate rises from 0."""
    optimiser: Optimiser | None = None
    """adamw, lars or sgd, by default the paper's; or muon (Jordan et al. 2024) for the matrices of a ViT's blocks: slower
    steps, but on short runs better features for the same time."""
    weight_decay: float | None = None
    """Weight decay of matrices. Default: the paper's."""
    weight_decay_end: float | None = None
    """Weight decay at the end of the run, reached along a cosine. Default: the paper's, mostly the same as at the start."""
    clip: float | None = None
    """Largest norm of a gradient, inf for none. Default: the paper's, mostly none."""
    accumulate: int = 1
    """Parts a batch is computed in, where it does not fit into memory at once."""
    drop_path: float | None = None
    """Stochastic depth: rate at which the encoder's last block is skipped. Default: the paper's, mostly 0."""
    channels: int | None = None
    """Channels of the images, where they are mixed or only look coloured."""
    trim: bool | None = None
    """Crop each image to its content before anything else."""
    pad: bool | None = None
    """Pad each image with its border's colour to the shape of --image-size, instead of cropping its longer side."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, from 0 to 1. Default: measured."""
    std: tuple[float, ...] | None = None
    """Deviation of each channel. Default: measured."""
    probe: str | None = None
    """Labelled images to test the encoder on while it trains and at the end (--data must have labels too)."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes."""
    group: str = "group"
    """Column of tables that must not be on both sides of a split: patient, site, knapper."""
    strict: bool = False
    """Fail at the first unreadable image instead of skipping, counting and naming it."""
    resume: bool = False
    """Go on with the run in --out, with its own settings; begin it if there is none yet. On any number of processes."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware."""
    seed: int = 0
    """Of weights, order, crops and masks."""
    workers: int | None = None
    """Processes that read and crop images. By default none on a CPU where all images fit into 1 GiB, and are kept."""
    hold: bool | None = None
    """Hold all images on the device and crop whole batches there. By default on a GPU, where they are of one size and take
    at most a quarter of its memory."""
    compile: bool = False
    """Let torch.compile the step: slow to start, faster on a GPU."""
    shard: bool = False
    """Under torchrun: cut weights and optimiser state into a part for each process (FSDP2), where they do not fit whole."""


def pretrain(method: str, settings: Pretrain, own: Any) -> dict[str, Any]:
    """Train `method` as `settings` and the method's `own` settings say; return what result.json says.

    Raises BadInput for anything in the settings or the data that cannot be used.
    """
    check(settings)
    assert settings.out is not None
    out, stored = settings.out, None
    if settings.resume and ((out / "settings.yaml").is_file() or settings.data is None):
        stored = Run(out).settings
        settings, own = resumed(stored, method, settings, own)
    device = distributed.start(engine.choose_device(settings.device))
    console.quiet = distributed.rank() > 0
    precision, why_precision = engine.choose_precision(settings.precision, device)
    kind = METHODS[method]

    # What is there, and what it asks for
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    source = open_source(str(settings.data), **columns)
    test = open_source(settings.probe, **columns) if settings.probe else None
    if stored and (began := stored["data"])["fingerprint"] != source.fingerprint():
        raise BadInput(
            f"{source.name} is not what the run in {out} began with ({began['images']:,} images then, {len(source):,} now, "
            "or files of other sizes): bring it back, or begin anew in another --out"
        )
    surveyed = survey(source, sample=2000)
    choices = choose(surveyed, dataclasses.asdict(settings), device.type, kind)
    choices["precision"] = Choice(precision, why_precision)
    value = {name: choice.value for name, choice in choices.items()}
    paper = paper_for(kind, value["encoder"])
    size, batch_size = parse_size(value["image_size"]), value["batch_size"]
    parts = settings.accumulate * distributed.world()
    if batch_size % parts:
        what = f"--accumulate {settings.accumulate}" + (
            f" x {distributed.world()} processes" * (distributed.world() > 1)
        )
        raise BadInput(
            f"{what} does not divide the batch of {batch_size}: use --batch-size {-(-batch_size // parts) * parts}"
        )
    own, reasons = kind.suit(own, len(source), batch_size, size, value["steps"])
    choices |= {name: Choice(getattr(own, name), reason) for name, reason in reasons.items()}
    if stored:
        preprocess = Preprocess.from_dict(stored["preprocess"])
    else:
        preprocess = measured(source, settings, value, size, kind.NORMALISED)
    probing = {"device": device, "precision": precision, "workers": value["workers"]}
    probe = watch_probe(source, test, preprocess, size, **probing) if test is not None else None

    # The model, the data, the run
    def build() -> Any:
        torch.manual_seed(settings.seed)
        options = {"channels": value["channels"], "drop_path": value["drop_path"], **kind.built_with(own)}
        return models.build(value["encoder"], image_size=size, **options)

    def make() -> Method:
        tokens = getattr(own, "tokens", None)
        return kind(build(), own, **({"tokenizer": load_tokenizer(tokens, preprocess)} if tokens else {}))

    trained = make()
    unreadable = Unreadable(surveyed.unreadable, settings.strict)
    loader = Loader(
        source,
        preprocess,
        trained.views,
        batch_size // settings.accumulate,
        seed=settings.seed,
        workers=value["workers"],
        device=device,
        unreadable=unreadable,
        hold=value["hold"],
        part=distributed.rank(),
        parts=distributed.world(),
    )
    recipe = Recipe(
        steps=value["steps"],
        lr=value["lr"],
        steps_per_epoch=max(1, len(source) // batch_size),
        warmup=value["warmup_steps"],
        min_lr=value["min_lr"],
        milestones=paper.milestones,
        weight_decay=value["weight_decay"],
        weight_decay_end=value["weight_decay_end"],
        betas=paper.betas,
        momentum=paper.momentum,
        optimiser=value["optimiser"],
        clip=value["clip"],
        accumulate=settings.accumulate,
        seed=settings.seed,
    )
    facts = described(method, resolve(settings, value, preprocess), own, choices, source, trained, preprocess)
    run = Run.create(out, facts, resume=settings.resume)
    announce(method, source, test, choices, trained, run)
    watch = watched_images(source, preprocess, size)
    began, failure = time.perf_counter(), None
    try:
        history = engine.fit(
            trained,
            loader,
            recipe,
            run,
            device=device,
            precision=precision,
            compiled=settings.compile,
            shard=settings.shard,
            watch=watch,
            probe=probe,
            title=method,
        )
    except health.Diverged as error:
        failure, history = str(error), run.history()

    # What came out
    seconds, judged = time.perf_counter() - began, None
    if settings.shard and distributed.world() > 1 and (weights := distributed.whole_weights(trained)):
        trained = make()
        trained.load_state_dict(weights)
    if distributed.rank() > 0:
        return {"verdict": "diverged" if failure else "left to rank 0"}
    if failure is None:
        known = {
            "name": value["encoder"],
            "method": method,
            "preprocess": preprocess.to_dict(),
            "unmask": version("unmask"),
        }
        interop.save(trained.encoder, run.folder / "encoder", known)
        draw(run, trained, watch, preprocess)
        shown = source if test is not None else few(source, 5000, seed=settings.seed)  # five folds of more take longer
        with distributed.apart():
            judged = judge(
                trained.encoder,
                build(),
                shown,
                test,
                preprocess,
                size,
                seed=settings.seed,
                projection=getattr(trained, "projection", None),
                **probing,
            )
        run.write("probe.json", judged)
    verdict = health.judge(history, value["lr"], value["usual_lr"], failure, judged)
    result = {
        "verdict": verdict.word,
        "sentence": verdict.sentence,
        "advice": list(verdict.advice),
        **summary(history),
        "seconds": seconds,
        "images": len(source),
        "parameters": count(trained),
        "encoder_parameters": count(trained.encoder),
        "precision": precision,
        "device": str(device),
        "unreadable": sorted(unreadable.reasons.items()),
    }
    run.write("result.json", result)
    run.close()
    write_report(run.folder)
    conclude(run, result)
    return result


def check(settings: Pretrain) -> None:
    """Raise BadInput for settings that no data could make sense of."""
    if settings.out is None:
        raise BadInput("--out is missing: name a folder for the run, as in --out runs/first")
    if settings.data is None and not settings.resume:
        raise BadInput("--data is missing: name a folder or table of images, or try --data photos")
    for name in ("epochs", "steps", "batch_size", "accumulate", "base_lr", "clip", "channels"):
        if (value := getattr(settings, name)) is not None and value <= 0:
            raise BadInput(f"--{name.replace('_', '-')} is {value}: give a number above 0")
    if settings.workers is not None and settings.workers < 0:
        raise BadInput(f"--workers is {settings.workers}: give 0 or more")


class Unreadable:
    """Collects images that cannot be read, and says so once for each; with `strict`, the first one ends the run."""

    def __init__(self, known: list[tuple[str, str]], strict: bool):
        self.strict, self.reasons = strict, {}
        for path, reason in known:
            self(path, reason)

    def __call__(self, path: str, reason: str) -> None:
        if self.strict:
            raise BadInput(f"{path}: {reason}; without --strict it would be skipped")
        if path not in self.reasons:
            self.reasons[path] = reason
            if len(self.reasons) <= 20:
                console.print(f"[yellow]skipped[/] {path}: {reason}")
            if len(self.reasons) == 20:
                console.print("[yellow]… further ones are named in the report[/]")


def watched_images(source: Source, preprocess: Preprocess, size: tuple[int, int]) -> torch.Tensor:
    """Up to 128 images (B, C, H, W), drawn at random but always the same: whose features and reconstructions are looked at."""
    look = Loader(few(source, 128, seed=1), preprocess, (View(size, crop_scale=None, flip=0.0),), 256)
    return torch.cat([batch.views[0] for batch in look.once()])


def summary(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The end of the log in a few numbers: means over its last tenth, medians of what varies."""
    if not history:
        return {"loss": None, "uninformed_loss": None, "steps": 0}
    tail = history[-max(1, len(history) // 10) :]
    watched = next((line for line in reversed(history) if "rank" in line), {})
    return {
        "loss": health.mean([line["loss"] for line in tail]),
        "uninformed_loss": health.mean([line["uninformed"] for line in tail]),
        "steps": history[-1]["step"],
        "images_per_second": health.median([line["images_per_second"] for line in history]),
        "loader_wait": health.median([line["loader_wait"] for line in history]),
        "rank": watched.get("rank"),
        "feature_std": watched.get("feature_std"),
    }


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def resolve(settings: Pretrain, value: dict[str, Any], preprocess: Preprocess) -> Pretrain:
    """The settings with everything that was chosen written in, so that the run can be run again."""
    chosen = {field.name: value[field.name] for field in dataclasses.fields(settings) if field.name in value}
    return dataclasses.replace(settings, **chosen, mean=preprocess.mean, std=preprocess.std, resume=False)


def described(
    method: str,
    settings: Pretrain,
    own: Any,
    choices: dict[str, Choice],
    source: Source,
    trained: Method,
    preprocess: Preprocess,
) -> dict[str, Any]:
    """What settings.yaml says."""
    return {
        "unmask": version("unmask"),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["unmask", *sys.argv[1:]])
        if Path(sys.argv[0]).name == "unmask"
        else "unmask.pretrain(…)",
        "method": method,
        "settings": plain(settings) | {name: choices[name].value for name in ("lr", "warmup_steps")},
        "method_settings": plain(own),
        "reasons": {name: choice.reason for name, choice in choices.items() if choice.reason},
        "data": {"name": source.name, "images": len(source), "fingerprint": source.fingerprint()},
        "encoder": trained.encoder.config,
        "views": len(trained.views),
        "preprocess": preprocess.to_dict(),
    }


def resumed(stored: dict[str, Any], method: str, given: Pretrain, own: Any) -> tuple[Pretrain, Any]:
    """Settings of the run to go on with. BadInput, naming each difference, if others are typed than the run began with."""
    if method != stored["method"]:
        raise BadInput(f"the run in {given.out} is of {stored['method']}, not of {method}")
    settings, theirs = revive(Pretrain, stored["settings"]), revive(type(own), stored["method_settings"])
    free = {name: getattr(given, name) for name in ("resume", "out", "device", "workers", "hold", "shard")}
    other = [
        f"--{field.name.replace('_', '-')} {typed} (it began with {began})"
        for typed_in, run_has in ((given, settings), (own, theirs))
        for field in dataclasses.fields(typed_in)
        if field.name not in free
        and (typed := getattr(typed_in, field.name)) not in (field.default, began := getattr(run_has, field.name))
    ]
    if other:
        raise BadInput(
            f"the run in {given.out} has other settings than {', '.join(other)}: leave them out to resume, "
            "or choose another --out"
        )
    for name in ("workers", "hold"):
        if free[name] is None:
            free[name] = getattr(settings, name)
    return dataclasses.replace(settings, **free), theirs


def measured(
    source: Source,
    settings: Pretrain,
    value: dict[str, Any],
    size: tuple[int, int],
    fixed: tuple[float, float] | None,
) -> Preprocess:
    """Mean and deviation of each channel: as given, as the method has them fixed, or measured from a sample of the images."""
    preprocess = measure(
        source,
        channels=value["channels"],
        trim=value["trim"],
        pad=value["pad"],
        aspect=size[1] / size[0],
        seed=settings.seed,
    )
    for name in ("mean", "std"):
        given = getattr(settings, name)
        if given is not None and len(given) != value["channels"]:
            raise BadInput(f"--{name} has {len(given)} numbers for images of {value['channels']} channels")
        if given is not None:
            preprocess = dataclasses.replace(preprocess, **{name: tuple(given)})
    if fixed is not None:
        if settings.mean is not None or settings.std is not None:
            raise BadInput("--mean and --std: this method sees black and white as 0.1 and 0.9, leave them out")
        low, high = preprocess.low or (0.0,) * value["channels"], preprocess.high or (1.0,) * value["channels"]
        mean = tuple(a + (b - a) * fixed[0] for a, b in zip(low, high, strict=True))
        std = tuple((b - a) * fixed[1] for a, b in zip(low, high, strict=True))
        preprocess = dataclasses.replace(preprocess, mean=mean, std=std)
    return preprocess


def announce(
    method: str, source: Source, test: Source | None, choices: dict[str, Choice], trained: Method, run: Run
) -> None:
    """Say what is about to happen, each chosen value with its reason."""
    console.print(f"[bold]{method}[/] on {len(source):,} images of {source.name}, into {run.folder}")
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    for name, choice in choices.items():
        if choice.reason:
            value = f"{choice.value:.4g}" if isinstance(choice.value, float) else str(choice.value)
            table.add_row(name, f"[bold]{value}[/]", f"[dim]{choice.reason}[/]")
    console.print(table)
    sizes = [count(module) / 1e6 for module in (trained.encoder, trained)]
    probed = f"; probed on {len(test):,} images of {test.name}" if test is not None else ""
    console.print(f"encoder {sizes[0]:.1f}M parameters, with what trains it {sizes[1]:.1f}M{probed}")


def draw(run: Run, trained: Any, watch: torch.Tensor, preprocess: Preprocess) -> None:
    """The pictures of a run, into its folder figures/."""
    encoder = trained.encoder.float().cpu()
    (run.folder / "figures").mkdir(exist_ok=True)
    pictures = {}
    if isinstance(trained, MAE) and trained.token_target is None:
        pictures["reconstruction"] = picture(trained.cpu(), watch[:8].cpu(), preprocess)
    if isinstance(encoder, ViT):
        if encoder.positions is not None:
            positions = torch.nn.functional.normalize(encoder.positions.detach(), dim=1)
            pictures["positions"] = figures.positions(positions @ positions.T, encoder.grid)
        kernels = encoder.patch_embedding.weight.detach()
        pictures["filters"] = figures.filters(kernels, encoder.patch_size, encoder.channels)
        if isinstance(trained, DINO):
            pictures["attention"] = attention_picture(encoder.eval(), watch[:6].cpu(), preprocess)
    elif (kernels := encoder.filters) is not None:
        as_patches = kernels.permute(0, 2, 3, 1).flatten(1)  # (D, k*k*C)
        pictures["filters"] = figures.filters(as_patches, kernels.shape[2], encoder.channels)
    for name, png in pictures.items():
        (run.folder / "figures" / f"{name}.png").write_bytes(png)


def conclude(run: Run, result: dict[str, Any]) -> None:
    """The sentence at the end."""
    colour = "green" if result["verdict"] == "learning" else "red"
    console.print(f"\n[bold {colour}]{result['verdict']}[/]: {result['sentence']}.")
    for advice in result["advice"]:
        console.print(f"  → {advice}")
    probe = run.read("probe.json")
    if probe.get("sentence"):
        console.print(probe["sentence"])
    console.print(f"Report: {run.folder / 'report.html'}   encoder: {run.folder / 'encoder'}")
