"""unmask pretrain METHOD: from a collection of images to an encoder, a verdict and a report."""

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from unmask import figures, models
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.sources import open_source
from unmask.data.survey import Survey, survey
from unmask.methods import METHODS
from unmask.methods.dino import DINO
from unmask.methods.mae import MAE
from unmask.methods.method import Method
from unmask.models import interop
from unmask.models.compact import CCT
from unmask.models.vit import ViT
from unmask.screen import mute
from unmask.training import distributed, engine, health
from unmask.training.run import Run
from unmask.verbs.attend import attention_picture, pooling_picture
from unmask.verbs.choices import Choice, choose, paper_for, parse_size
from unmask.verbs.load import load_tokenizer
from unmask.verbs.probe import few, judge, watch_probe
from unmask.verbs.reconstruct import picture
from unmask.verbs.train import Training, check, conclude, divided, measured, resumed, same_data, train, watched_images


@dataclass(frozen=True)
class Pretrain(Training):
    """What every method is told. What is not given is chosen from the data, and said."""

    encoder: str | None = None
    """vit-tiny, vit-small, vit-base, vit-large or vit-huge, then / and the patch size in pixels: vit-tiny/8; a compact
    transformer, such as vit-lite-7/4, cvt-7/4 or cct-7/3x1; or a model of timm, such as resnet50, untrained. Where the method
    can train it."""
    probe: str | None = None
    """Labelled images to test the encoder on while it trains and at the end: with the labels of --data, or by five folds of these
    images where --data has none."""
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
    if distributed.rank() > 0:
        mute()
    precision, why_precision = engine.choose_precision(settings.precision, device)
    kind = METHODS[method]

    # What is there, and what it asks for
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    source = open_source(str(settings.data), **columns)
    test = open_source(settings.probe, **columns) if settings.probe else None
    taught = source  # whose labels the probes learn
    if test is not None and "label" not in source.table:
        taught, test = test, None
    same_data(stored, source, out)
    surveyed = survey(source, sample=2000)
    choices, own = settled(kind, settings, own, surveyed, device)
    choices["precision"] = Choice(precision, why_precision)
    value = {name: choice.value for name, choice in choices.items()}
    paper, size = paper_for(kind.PAPERS, value["encoder"]), parse_size(value["image_size"])
    if stored:
        preprocess = Preprocess.from_dict(stored["preprocess"])
    else:
        preprocess = measured(source, settings, value, size, kind.NORMALISED)
    probing = {"device": device, "precision": precision, "workers": value["workers"]}
    probe = watch_probe(taught, test, preprocess, size, **probing) if settings.probe else None

    # The model, the data, the run
    def build() -> Any:
        torch.manual_seed(settings.seed)
        return built(kind, value, own)

    def make() -> Method:
        tokens = getattr(own, "tokens", None)
        return kind(build(), own, **({"tokenizer": load_tokenizer(tokens, preprocess)} if tokens else {}))

    trained = make()
    if isinstance(trained, MAE) and trained.components is not None:
        first = Loader(source, preprocess, trained.views, min(256, len(source)), seed=settings.seed)
        trained.components.fit(next(first(0)).views[0], trained.encoder.patch_size)
    watch = watched_images(source, preprocess, size)
    outcome = train(
        method,
        trained,
        source,
        settings,
        own,
        choices,
        paper,
        preprocess,
        unreadable=surveyed.unreadable,
        device=device,
        probe=probe,
        watch=watch,
        shard=settings.shard,
        said=f"; probed on {len(test or taught):,} images of {(test or taught).name}" if settings.probe else "",
    )
    run, failure, judged = outcome.run, outcome.failure, None

    # What came out
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
        shown = taught if test is not None else few(taught, 5000, seed=settings.seed)  # five folds of more take longer
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
    verdict = health.judge(outcome.history, value["lr"], value["usual_lr"], failure, judged)
    result = outcome.result(verdict, trained, len(source), precision, device)
    conclude(run, result)
    return result


def settled(
    kind: type[Method], settings: Pretrain, own: Any, surveyed: Survey, device: torch.device
) -> tuple[dict[str, Choice], Any]:
    """Every setting with its reason, for a collection that was surveyed, and the method's own settings filled in."""
    choices = choose(surveyed, dataclasses.asdict(settings), device.type, kind.PAPERS)
    value = {name: choice.value for name, choice in choices.items()}
    divided(value["batch_size"], settings.accumulate)
    size = parse_size(value["image_size"])
    own, reasons = kind.suit(own, surveyed.count, value["batch_size"], size, value["steps"])
    return choices | {name: Choice(getattr(own, name), reason) for name, reason in reasons.items()}, own


def built(kind: type[Method], value: dict[str, Any], own: Any) -> Any:
    """The encoder that was settled on, untrained."""
    options = {"channels": value["channels"], "drop_path": value["drop_path"], **kind.built_with(own)}
    return models.build(value["encoder"], image_size=parse_size(value["image_size"]), **options)


def draw(run: Run, trained: Any, watch: torch.Tensor, preprocess: Preprocess) -> None:
    """The pictures of a run, into its folder figures/."""
    encoder = trained.encoder.float().cpu()
    (run.folder / "figures").mkdir(exist_ok=True)
    pictures = {}
    if isinstance(trained, MAE) and trained.token_target is None:
        pictures["reconstruction"] = picture(trained.cpu(), watch[:8].cpu(), preprocess)
    if isinstance(encoder, ViT | CCT):
        if encoder.positions is not None:
            positions = torch.nn.functional.normalize(encoder.positions.detach(), dim=1)
            pictures["positions"] = figures.positions(positions @ positions.T, encoder.grid)
        if isinstance(trained, DINO):
            pictures["attention"] = attention_picture(encoder.eval(), watch[:6].cpu(), preprocess)
        if encoder.pool is not None:
            pictures["pooling"] = pooling_picture(encoder.eval(), watch[:8].cpu(), preprocess)
    if isinstance(encoder, ViT):
        kernels = encoder.patch_embedding.weight.detach()
        pictures["filters"] = figures.filters(kernels, encoder.patch_size, encoder.channels)
    elif (kernels := encoder.filters) is not None:
        as_patches = kernels.permute(0, 2, 3, 1).flatten(1)  # (D, k*k*C)
        pictures["filters"] = figures.filters(as_patches, kernels.shape[2], encoder.channels)
    for name, png in pictures.items():
        (run.folder / "figures" / f"{name}.png").write_bytes(png)
