"""What every verb that trains is told, says and leaves behind: `unmask pretrain`, `unmask finetune`, `unmask distill`."""

import dataclasses
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from rich.table import Table

from unmask.data.augment import View
from unmask.data.decode import Preprocess, measure
from unmask.data.loader import Loader, Maps
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.methods.method import Method, Paper
from unmask.screen import console, warn
from unmask.training import distributed, engine, health
from unmask.training.optim import Optimiser, Recipe
from unmask.training.run import Run, plain, revive
from unmask.verbs.choices import Choice
from unmask.verbs.probe import few
from unmask.verbs.report import write_report

Told = TypeVar("Told", bound=Any)


@dataclass(frozen=True)
class Training:
    """What every training is told. What is not given is chosen from the data, and said."""

    data: str | None = None
    """Images to learn from: a folder, a .csv or .parquet table (or a glob of them) with a column `image`,
    hf:NAME[:SPLIT], wds:PATTERN.tar, a packed store, digits, or photos."""
    out: Path | None = None
    """Folder of the run, to be created."""
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


def check(settings: Training) -> None:
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
                warn(f"[yellow]skipped[/] {path}: {reason}")
            if len(self.reasons) == 20:
                warn("[yellow]… further ones are named in the report[/]")


def watched_images(source: Source, preprocess: Preprocess, size: tuple[int, int]) -> torch.Tensor:
    """Up to 128 images (B, C, H, W), drawn at random but always the same: whose features and reconstructions are looked at."""
    look = Loader(few(source, 128, seed=1), preprocess, (View(size, crop_scale=None, flip=0.0),), 256)
    return torch.cat([batch.views[0] for batch in look.once()])


@dataclass(frozen=True)
class Outcome:
    """What came of a training."""

    run: Run
    history: list[dict[str, Any]]
    failure: str | None
    """What was NaN or infinite, and where."""
    unreadable: dict[str, str]
    """Reasons by path."""

    def result(
        self, verdict: health.Verdict, trained: Method, images: int, precision: str, device: torch.device
    ) -> dict:
        """What result.json says of any training."""
        return {
            "verdict": verdict.word,
            "sentence": verdict.sentence,
            "advice": list(verdict.advice),
            **summary(self.history),
            "seconds": sum(line["seconds"] for line in self.history),
            "images": images,
            "parameters": count(trained),
            "encoder_parameters": count(trained.encoder),
            "precision": precision,
            "device": str(device),
            "unreadable": sorted(self.unreadable.items()),
        }


def divided(batch_size: int, accumulate: int) -> None:
    """Raise BadInput unless a batch can be cut into its parts."""
    parts = accumulate * distributed.world()
    if batch_size % parts:
        what = f"--accumulate {accumulate}" + f" x {distributed.world()} processes" * (distributed.world() > 1)
        raise BadInput(
            f"{what} does not divide the batch of {batch_size}: use --batch-size {-(-batch_size // parts) * parts}"
        )


def train(
    name: str,
    trained: Method,
    source: Source,
    settings: Training,
    own: Any,
    choices: dict[str, Choice],
    paper: Paper,
    preprocess: Preprocess,
    *,
    unreadable: list[tuple[str, str]],
    device: torch.device,
    targets: torch.Tensor | None = None,
    maps: Maps | None = None,
    probe: Callable | None = None,
    watch: torch.Tensor | None = None,
    shard: bool = False,
    facts: dict[str, Any] | None = None,
    said: str = "",
) -> Outcome:
    """Train on all of `source` as was chosen, in the run that settings.out names, begun or gone on with.

    targets, maps: classes of the images, or of their pixels, see `Loader`. unreadable: paths and reasons that are known already.
    facts: what settings.yaml is to say beside what it always says. said: what the announcement ends with.
    """
    value = {key: choice.value for key, choice in choices.items()}
    missed = Unreadable(unreadable, settings.strict)
    loader = Loader(
        source,
        preprocess,
        trained.views,
        value["batch_size"] // settings.accumulate,
        seed=settings.seed,
        workers=value["workers"],
        device=device,
        unreadable=missed,
        hold=value["hold"],
        targets=targets,
        maps=maps,
        part=distributed.rank(),
        parts=distributed.world(),
    )
    recipe = Recipe(
        steps=value["steps"],
        lr=value["lr"],
        steps_per_epoch=max(1, len(source) // value["batch_size"]),
        warmup=value["warmup_steps"],
        min_lr=value["min_lr"],
        milestones=paper.milestones,
        weight_decay=value["weight_decay"],
        weight_decay_end=value["weight_decay_end"],
        betas=paper.betas,
        momentum=paper.momentum,
        optimiser=value["optimiser"],
        clip=value["clip"],
        layer_decay=value.get("layer_decay", 1.0),
        accumulate=settings.accumulate,
        seed=settings.seed,
    )
    assert settings.out is not None
    resolved = resolve(settings, value, preprocess)
    told = described(name, resolved, own, choices, source, trained, preprocess) | (facts or {})
    run = Run.create(settings.out, told, resume=settings.resume)
    announce(name, source, said, choices, trained, run)
    failure = None
    try:
        history = engine.fit(
            trained,
            loader,
            recipe,
            run,
            device=device,
            precision=value["precision"],
            compiled=settings.compile,
            shard=shard,
            watch=watch,
            probe=probe,
            title=name,
        )
    except health.Diverged as error:
        failure, history = str(error), run.history()
    return Outcome(run, history, failure, missed.reasons)


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


def resolve(settings: Told, value: dict[str, Any], preprocess: Preprocess) -> Told:
    """The settings with everything that was chosen written in, so that the run can be run again."""
    chosen = {field.name: value[field.name] for field in dataclasses.fields(settings) if field.name in value}
    return dataclasses.replace(settings, **chosen, mean=preprocess.mean, std=preprocess.std, resume=False)


def provenance(python: str) -> dict[str, Any]:
    """With what a run was made, when, and by which command; `python` stands for it where it was called from Python."""
    typed = Path(sys.argv[0]).name == "unmask"
    return {
        "unmask": version("unmask"),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["unmask", *sys.argv[1:]]) if typed else python,
    }


def described(
    method: str,
    settings: Training,
    own: Any,
    choices: dict[str, Choice],
    source: Source,
    trained: Method,
    preprocess: Preprocess,
) -> dict[str, Any]:
    """What settings.yaml says."""
    return {
        **provenance("unmask.pretrain(…)"),
        "method": method,
        "settings": plain(settings) | {name: choices[name].value for name in ("lr", "warmup_steps")},
        "method_settings": plain(own),
        "reasons": {name: choice.reason for name, choice in choices.items() if choice.reason},
        "data": {"name": source.name, "images": len(source), "fingerprint": source.fingerprint()},
        "encoder": trained.encoder.config,
        "views": len(trained.views),
        "preprocess": preprocess.to_dict(),
    }


def resumed(stored: dict[str, Any], method: str, given: Told, own: Any) -> tuple[Told, Any]:
    """Settings of the run to go on with. BadInput, naming each difference, if others are typed than the run began with."""
    if method != stored["method"]:
        raise BadInput(f"the run in {given.out} is of {stored['method']}, not of {method}")
    settings, theirs = revive(type(given), stored["settings"]), revive(type(own), stored["method_settings"])
    names = ("resume", "out", "device", "workers", "hold", "shard")
    free = {name: getattr(given, name) for name in names if hasattr(given, name)}
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
        if name in free and free[name] is None:
            free[name] = getattr(settings, name)
    return dataclasses.replace(settings, **free), theirs


class Images(Protocol):
    """Images to learn from, with or without what is known of them."""

    @property
    def name(self) -> str: ...
    def __len__(self) -> int: ...
    def fingerprint(self) -> str: ...


def same_data(stored: dict[str, Any] | None, source: Images, out: Path | None) -> None:
    """Raise BadInput unless a run that is gone on with, of which settings.yaml says `stored`, began with these images."""
    if stored and (began := stored["data"])["fingerprint"] != source.fingerprint():
        raise BadInput(
            f"{source.name} is not what the run in {out} began with ({began['images']:,} images then, {len(source):,} now, "
            "or files of other sizes): bring it back, or begin anew in another --out"
        )


def measured(
    source: Source,
    settings: Training,
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


def announce(method: str, source: Source, said: str, choices: dict[str, Choice], trained: Method, run: Run) -> None:
    """Say what is about to happen, each chosen value with its reason."""
    console.print(f"[bold]{method}[/] on {len(source):,} images of {source.name}, into {run.folder}")
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    for name, choice in choices.items():
        if choice.reason:
            value = f"{choice.value:.4g}" if isinstance(choice.value, float) else str(choice.value)
            table.add_row(name, f"[bold]{value}[/]", f"[dim]{choice.reason}[/]")
    console.print(table)
    sizes = [count(module) / 1e6 for module in (trained.encoder, trained)]
    console.print(f"encoder {sizes[0]:.1f}M parameters, with what trains it {sizes[1]:.1f}M{said}")


def conclude(run: Run, result: dict[str, Any]) -> None:
    """Write result.json and the page of a run, and say the sentence at the end."""
    run.write("result.json", result)
    run.close()
    write_report(run.folder)
    colour = "green" if result["verdict"] == "learning" else "red"
    say = console.print if result["verdict"] == "learning" else warn
    say(f"\n[bold {colour}]{result['verdict']}[/]: {result['sentence']}.")
    for advice in result["advice"]:
        say(f"  → {advice}")
    for judged in (run.read("probe.json"), run.read("test.json")):
        if judged.get("warning"):
            warn(f"[yellow]warning[/] {judged['warning']}")
        if judged.get("sentence"):
            console.print(judged["sentence"])
    made = "   ".join(f"{name}: {run.folder / name}" for name in ("encoder", "head") if (run.folder / name).is_dir())
    console.print(f"Report: {run.folder / 'report.html'}   {made}".rstrip())
