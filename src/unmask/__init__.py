"""unmask: pre-train, judge and use vision transformers on the images you have.

    import unmask

    unmask.pretrain("mae", data="photos/", out="runs/a")
    unmask.probe("runs/a", data="labelled/")
    table = unmask.embed("runs/a", data="photos/")
    encoder, preprocess = unmask.load("runs/a")

Each function takes what the command of its name takes (`unmask pretrain mae --help`), and raises `BadInput` with one line
for input that cannot be used.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unmask.errors import BadInput

__all__ = [
    "BadInput",
    "ablate",
    "attend",
    "audit",
    "compare",
    "detect",
    "distill",
    "dqn",
    "embed",
    "export",
    "finetune",
    "inspect",
    "load",
]
__all__ += ["pack", "plan", "predict", "pretrain", "probe", "reconstruct", "robustness", "segment", "simulate", "study"]
__version__ = version("unmask")


def pretrain(method: str, *, data: str | Path | None = None, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Learn from images without labels, as `unmask pretrain METHOD` does. Returns what RUN/result.json says.

    settings: any option of the command, its own name with _ for -: encoder="vit-tiny/4", image_size=32, mask_ratio=0.6.
    """
    from unmask.methods import METHODS
    from unmask.verbs.pretrain import Pretrain
    from unmask.verbs.pretrain import pretrain as run

    if method not in METHODS:
        raise BadInput(f"no method is called {method!r}: use one of {', '.join(METHODS)}")
    general, own = _told(f"pretrain {method}", (Pretrain, METHODS[method].Settings), settings)
    return run(method, Pretrain(data=None if data is None else str(data), out=Path(out), **general), own)


def finetune(
    run: str | Path | None = None, *, data: str | Path | None = None, out: str | Path, **settings: Any
) -> dict[str, Any]:
    """Learn from labels, on from an encoder or (encoder="cct-7/3x1") from scratch, as `unmask finetune` does. Returns what
    RUN/result.json says."""
    from unmask.verbs.finetune import Finetune, Own
    from unmask.verbs.finetune import finetune as learn

    general, own = _told("finetune", (Finetune, Own), settings)
    given = {"run": None if run is None else str(run), "data": None if data is None else str(data), "out": Path(out)}
    return learn(Finetune(**given, **general), own)


def detect(
    run: str | Path | None = None, *, data: str | Path | None = None, out: str | Path, **settings: Any
) -> dict[str, Any]:
    """Learn to find objects, on from an encoder or (encoder="resnet18") from scratch, as `unmask detect` does. Returns what
    RUN/result.json says."""
    from unmask.verbs.detect import Detect, Own
    from unmask.verbs.detect import detect as learn

    general, own = _told("detect", (Detect, Own), settings)
    given = {"run": None if run is None else str(run), "data": None if data is None else str(data), "out": Path(out)}
    return learn(Detect(**given, **general), own)


def segment(
    run: str | Path | None = None, *, data: str | Path | None = None, out: str | Path, **settings: Any
) -> dict[str, Any]:
    """Learn the class of every pixel, on from an encoder or (encoder="vit-tiny/16") from scratch, as `unmask segment` does.
    Returns what RUN/result.json says."""
    from unmask.verbs.segment import Own, Segment
    from unmask.verbs.segment import segment as learn

    general, own = _told("segment", (Segment, Own), settings)
    given = {"run": None if run is None else str(run), "data": None if data is None else str(data), "out": Path(out)}
    return learn(Segment(**given, **general), own)


def distill(teacher: str | Path, *, data: str | Path | None = None, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Teach a student what a classifier says of images, as `unmask distill` does. Returns what RUN/result.json says."""
    from unmask.verbs.distill import Distill, Own
    from unmask.verbs.distill import distill as learn

    general, own = _told("distill", (Distill, Own), settings)
    given = {"teacher": str(teacher), "data": None if data is None else str(data), "out": Path(out)}
    return learn(Distill(**given, **general), own)


def _told(command: str, kinds: tuple[Any, Any], settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What is told to every training, and the settings of this one's own. BadInput for a name that neither has."""
    import dataclasses

    known = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    if unknown := set(settings) - known[0] - known[1]:
        name = command.split()[-1]
        raise BadInput(f"no setting of {name} is called {sorted(unknown)[0]!r}: see `unmask {command} --help`")
    general, own = ({name: value for name, value in settings.items() if name in names} for names in known)
    if "image_size" in general:
        size = general["image_size"]
        general["image_size"] = "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
    for name in ("test", "probe", "student", "labelled", "images", "masks", "test_masks", "classes"):
        if isinstance(general.get(name), Path):
            general[name] = str(general[name])
    return general, kinds[1](**own)


def predict(run: str | Path, *, data: str | Path, **settings: Any):
    """Name what is in images, as `unmask predict` does: a pandas table of predictions and probabilities."""
    from unmask.verbs.predict import Predict
    from unmask.verbs.predict import predict as name

    return name(Predict(str(run), str(data), **settings))


def probe(run: str | Path, *, data: str | Path, test: str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Test a frozen encoder, as `unmask probe` does. Returns what probe.json says."""
    from unmask.verbs.probe import Probe
    from unmask.verbs.probe import probe as judge

    return judge(Probe(str(run), str(data), None if test is None else str(test), **settings))


def ablate(
    method: str, *, data: str | Path, out: str | Path, vary: dict[str, Sequence[Any]] | None = None, **settings: Any
) -> dict[str, Any]:
    """The same pre-training over a grid of settings, as `unmask ablate METHOD` does. Returns what ablation.json says.

    vary: values by setting, {"mask_ratio": (0.5, 0.75), "norm_pix": (True, False)}; settings: any option of the command.
    """
    from unmask.methods import METHODS
    from unmask.verbs.ablate import Ablate, said
    from unmask.verbs.ablate import ablate as run

    if method not in METHODS:
        raise BadInput(f"no method is called {method!r}: use one of {', '.join(METHODS)}")
    general, own = _told(f"ablate {method}", (Ablate, METHODS[method].Settings), settings)
    varied = tuple(f"{name}={','.join(map(said, values))}" for name, values in (vary or {}).items())
    return run(method, Ablate(data=str(data), out=Path(out), vary=varied, **general), own)


def compare(*runs: str | Path, data: str | Path, test: str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Test several frozen encoders on the same images, as `unmask compare` does. Returns what compare.json says."""
    from unmask.verbs.compare import Compare
    from unmask.verbs.compare import compare as judge

    return judge(Compare(tuple(map(str, runs)), str(data), None if test is None else str(test), **settings))


def robustness(run: str | Path, *, data: str | Path, **settings: Any) -> dict[str, Any]:
    """How much of a classifier's accuracy corruptions and attacks leave, as `unmask robustness` does. Returns what
    robustness.json says."""
    from unmask.verbs.robustness import Robustness
    from unmask.verbs.robustness import robustness as judge

    return judge(Robustness(str(run), str(data), **settings))


def embed(run: str | Path, *, data: str | Path, **settings: Any):
    """One vector an image, as `unmask embed` does: a pandas table with what is known of each and a column `embedding`."""
    from unmask.verbs.embed import Embed
    from unmask.verbs.embed import embed as vectors

    return vectors(Embed(str(run), str(data), **settings))


def reconstruct(run: str | Path, *images: str | Path, out: str | Path, **settings: Any) -> Path:
    """Draw what a masked autoencoder paints where it cannot see, as `unmask reconstruct` does. Returns where."""
    from unmask.verbs.reconstruct import Reconstruct
    from unmask.verbs.reconstruct import reconstruct as draw

    return draw(Reconstruct(str(run), tuple(map(str, images)), Path(out), **settings))


def attend(run: str | Path, *images: str | Path, out: str | Path, **settings: Any) -> Path:
    """Draw where a ViT looks, head by head, and the object that follows, as `unmask attend` does. Returns where."""
    from unmask.verbs.attend import Attend
    from unmask.verbs.attend import attend as draw

    return draw(Attend(str(run), tuple(map(str, images)), Path(out), **settings))


def export(run: str | Path, *, out: str | Path, to: str = "timm") -> Path:
    """Write an encoder as another library reads it, as `unmask export` does. Returns where."""
    from unmask.verbs.export import Export
    from unmask.verbs.export import export as write

    return write(Export(str(run), Path(out), to))  # type: ignore[arg-type]


def plan(encoder: str, **settings: Any) -> dict[str, Any]:
    """What a training will need of memory and time, as `unmask plan` prints."""
    from unmask.verbs.plan import Plan
    from unmask.verbs.plan import plan as reckon

    return reckon(Plan(encoder, **settings))


def inspect(data: str | Path, **settings: Any) -> dict[str, Any]:
    """What is in a collection and the settings it asks for, as `unmask inspect` prints."""
    from unmask.verbs.inspect import Inspect
    from unmask.verbs.inspect import inspect as look

    return look(Inspect(str(data), **settings))


def pack(data: str | Path, *, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Decode and shrink a collection once, into a store, as `unmask pack` does. Returns what its result.json says."""
    from unmask.verbs.pack import Pack
    from unmask.verbs.pack import pack as write

    return write(Pack(str(data), Path(out), **settings))


def study(path: str | Path, *, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Judge a study of assemblages from end to end, as `unmask study run` does. Returns what OUT/result.json says."""
    from unmask.verbs.study import Run, run

    return run(Run(Path(path), Path(out), **settings))


def audit(path: str | Path, **settings: Any):
    """What the data of a study cannot answer, as `unmask study audit` prints: a list of `unmask.debitage.findings.Finding`."""
    from unmask.verbs.study import Audit
    from unmask.verbs.study import audit as look

    return look(Audit(Path(path), **settings))


def simulate(out: str | Path, **settings: Any) -> Path:
    """Write a study of simulated flakes, as `unmask study simulate` does. Returns the path of its study.yaml."""
    from unmask.verbs.study import Simulate, write_simulated

    return write_simulated(Simulate(Path(out), **settings))


def dqn(game: str, *, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Learn to play an Atari game from its pixels and its score, as `unmask dqn --env GAME` does. Returns what RUN/result.json
    says."""
    from unmask.rl.dqn import Settings
    from unmask.verbs.dqn import Dqn
    from unmask.verbs.dqn import dqn as learn

    general, own = _told("dqn", (Dqn, Settings), settings)
    return learn(Dqn(game, Path(out), **general), own)


def load(path: str | Path):
    """An encoder and what is to be done to images before it sees them: see `unmask.verbs.load.load`."""
    from unmask.verbs.load import load as read

    return read(path)
