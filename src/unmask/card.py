"""The card of an encoder: what the hub of Hugging Face, and whoever is handed the files, should know of it.

A front matter in YAML that the hub reads, then words. Nothing of the machine that it was trained on is in it: of paths only
the last name stays.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from unmask.methods import METHODS
from unmask.training.run import Run
from unmask.training.run import write as write_whole

MARK = "<!-- Written by unmask, and anew with each report: delete this line, and it is left alone. -->"
LIBRARIES = {"unmask": "unmask", "timm": "timm", "huggingface": "transformers", "onnx": "onnx", "mae": "unmask"}
"""What reads each layout."""
TESTS = {"knn": "k-NN", "linear": "linear probe", "logistic": "logistic regression"}
RIVALS = {"trained": "this encoder", "untrained": "the same, untrained", "raw_pixels": "raw pixels"}
PRIVATE = (
    "data",
    "out",
    "resume",
    "device",
    "workers",
    "hold",
    "image",
    "label",
    "group",
    "strict",
    "mean",
    "std",
    "compile",
)
"""Settings that say nothing of the encoder, or are said elsewhere."""
FILES = ("probe", "test", "run", "teacher", "tokens", "labelled", "images", "masks", "test_masks", "classes")
"""Settings that name something on the disk, of which only the last name is kept."""


def write(path: Path, text: str) -> Path | None:
    """Write a card, and return where; None where somebody has made the one that is there their own."""
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    write_whole(path, text)
    return path


def files_of(run: Run) -> dict[str, dict[str, Any]]:
    """What a run says of its encoder, as `card` takes it."""
    names = ("result", "probe", "test")
    return {"settings": run.settings, **{name: run.read(f"{name}.json") for name in names}}


def card(
    name: str,
    layout: str,
    encoder: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    run: Mapping[str, dict[str, Any]] | None = None,
    *,
    came_from: str = "",
) -> str:
    """The text of a card.

    name: of the file or folder. layout: as `unmask export --to` calls it. encoder, preprocess: what config.json says of them.
    run: what `files_of` says, None for an encoder from elsewhere, of which `came_from` names the file.
    """
    settings, result, probe, test = (
        dict((run or {}).get(part, {})) for part in ("settings", "result", "probe", "test")
    )
    told = described(settings, encoder) if run else ""
    parts = [
        f"---\n{front(name, layout, settings, probe, test)}\n---",
        MARK,
        f"# {name}",
        intent(told, encoder) if run else foreign(came_from, encoder),
        section("How to load it", loading(name, layout, encoder, preprocess)),
        section("Data", data(settings, preprocess, bool(run))),
        section("Did it learn?", learnt(result)) if run else "",
        section("What its vectors are worth", probed(probe, settings)) if run else "",
        section("What was made of it", f"{test['sentence']}") if test.get("sentence") else "",
        section("The paper, and this", paper(settings)) if run else "",
        section("Settings", recipe(settings)) if run else "",
        section("Licence", LICENCE),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


LICENCE = (
    "None is stated, for it is for its owner to give one: write `license:` with a name that the hub knows into the lines at the "
    "top. The terms of the images that it learnt from, and of the weights that it began with, may bind you."
)


def section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def bare(name: Any) -> str:
    """A source without the way to it: what stands behind the last slash. The names of hf: are public, and stay."""
    words = str(name)
    if words.startswith("hf:"):
        return words
    kind, _, rest = words.partition(":") if words.startswith("wds:") else ("", "", words)
    return (f"{kind}:" if kind else "") + (PurePath(rest.replace("\\", "/")).name or "images")


def method_of(settings: Mapping[str, Any]) -> str:
    return str(settings.get("method", ""))


def encoder_name(settings: Mapping[str, Any], encoder: Mapping[str, Any]) -> str:
    """As the command line calls it, or of what size it is."""
    told = (settings.get("settings") or {}).get("encoder")
    if told or "backbone" in encoder:
        return str(told or encoder["backbone"])
    if "width" not in encoder:
        return "encoder of a discrete VAE"
    kind, cut = "ViT", f"patches of {encoder.get('patch_size')} pixels"
    if "kernel" in encoder:
        kind, cut = "CCT", f"{encoder['convolutions']} convolutions of {encoder['kernel']} pixels"
    return f"{kind} of {encoder['depth']} blocks, {encoder['width']} wide, with {cut}"


# The front matter


def front(
    name: str, layout: str, settings: Mapping[str, Any], probe: Mapping[str, Any], test: Mapping[str, Any]
) -> str:
    """YAML that the hub reads."""
    method, told = method_of(settings), settings.get("settings") or {}
    seen = [bare(settings["data"]["name"])] if settings.get("data") else []
    judged = told.get("probe") or (seen[0] if seen else "")
    results = scores(probe, str(judged)) + tested(test, bare(told.get("test") or (seen[0] if seen else "")))
    kind = "self-supervised-learning" if method in METHODS else ""
    known = ModelCardData(
        model_name=name,
        library_name=LIBRARIES[layout],
        pipeline_tag="image-feature-extraction",
        tags=list(dict.fromkeys(tag for tag in ("vision", "unmask", kind, method, layout) if tag)),
        datasets=[one.removeprefix("hf:").split(":")[0] for one in seen if one.startswith("hf:")] or None,
        eval_results=results or None,
    )
    return known.to_yaml()


def scores(probe: Mapping[str, Any], judged: str) -> list[EvalResult]:
    """Of each probe its accuracy, the interval in its name."""
    found = []
    for test, words in TESTS.items():
        if score := (probe.get(test) or {}).get("trained"):
            metric = f"accuracy of a {words} on frozen vectors, 95% interval {score['low']:.3f} to {score['high']:.3f}"
            found.append(result(judged, metric, score["accuracy"], "naming classes from frozen vectors"))
    return found


def tested(test: Mapping[str, Any], judged: str) -> list[EvalResult]:
    """Of a classifier its accuracy on images that it never saw."""
    if "accuracy" not in test or "kind" in test:
        return []
    interval = f", 95% interval {test['low']:.3f} to {test['high']:.3f}" if "low" in test else ""
    return [result(judged, f"accuracy{interval}", test["accuracy"], "classification, fine-tuned")]


def result(judged: str, metric: str, value: float, task: str) -> EvalResult:
    kind = re.sub(r"[^\w.-]+", "-", bare(judged).lower()).strip("-") or "images"
    return EvalResult(
        task_type="image-classification",
        task_name=task,
        dataset_type=kind,
        dataset_name=bare(judged) or kind,
        metric_type="accuracy",
        metric_name=metric,
        metric_value=round(float(value), 4),
    )


# The words


def described(settings: Mapping[str, Any], encoder: Mapping[str, Any]) -> str:
    """What was trained how, on what."""
    told, method = settings.get("settings") or {}, method_of(settings)
    known, images = settings.get("data") or {}, (settings.get("data") or {}).get("images")
    name = f"{encoder_name(settings, encoder)}"
    began = f", on from {bare(told['run'])}" if told.get("run") else ""
    how = f"pre-trained by {method}, without labels" if method in METHODS else f"trained by `unmask {method}`{began}"
    return f"A {name}, {how}, on {images:,} images of {bare(known.get('name'))}" if images else f"A {name}, {how}"


def intent(told: str, encoder: Mapping[str, Any]) -> str:
    size = " x ".join(map(str, encoder.get("image_size", ())))
    return (
        f"{told}. It turns an image of {size} pixels and {encoder.get('channels', 3)} channels into one vector, for k-NN, a "
        "linear layer, clusters, or to be fine-tuned."
    )


def foreign(came_from: str, encoder: Mapping[str, Any]) -> str:
    size = " x ".join(map(str, encoder.get("image_size", ())))
    return (
        f"A {encoder_name({}, encoder)}, for images of {size} pixels and {encoder.get('channels', 3)} channels, read by unmask "
        f"from `{bare(came_from)}`. That file tells its weights and nothing else: not who trained it, on what, nor what it is "
        "worth. `unmask probe` says what it is worth on images of yours."
    )


def loading(name: str, layout: str, encoder: Mapping[str, Any], preprocess: Mapping[str, Any]) -> str:
    """Code that runs where the files lie."""
    channels, (height, width) = encoder.get("channels", 3), encoder.get("image_size", (224, 224))
    shape = f"{channels}, {height}, {width}"
    mean, std = (", ".join(f"{value:.6g}" for value in preprocess[key]) for key in ("mean", "std"))
    images = (
        f"images = torch.rand(2, {shape})  # yours: (B, C, H, W), from 0 for black to 1 for white\n"
        f"mean, std = (torch.tensor(x)[:, None, None] for x in ([{mean}], [{std}]))\nimages = (images - mean) / std\n"
    )
    pool = encoder.get("pool")
    pooled = {
        "class": "tokens[:, 0]",
        "mean": f"tokens[:, {int(encoder.get('class_token', True))}:].mean(dim=1)",
        "class+mean": "torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)",
    }.get(str(pool))
    if layout == "huggingface":
        code = (
            "import torch\nfrom transformers import ViTModel\n\n"
            'model = ViTModel.from_pretrained(".", add_pooling_layer=False).eval()  # this folder\n'
            f"{images}with torch.no_grad():\n    tokens = model(images).last_hidden_state\nvectors = {pooled}\n"
        )
    elif layout == "onnx":
        code = (
            "import onnxruntime\nimport torch\n\n"
            f'session = onnxruntime.InferenceSession({name!r}, providers=["CPUExecutionProvider"])\n'
            f'{images}(vectors,) = session.run(None, {{"images": images.numpy()}})\n'
        )
    elif layout == "timm" and "backbone" in encoder:
        code = (
            "import timm\nimport torch\nfrom safetensors.torch import load_file\n\n"
            f'model = timm.create_model("{encoder["backbone"]}", num_classes=0, in_chans={channels}).eval()\n'
            f"model.load_state_dict(load_file({name!r}))\n{images}with torch.no_grad():\n    vectors = model(images)\n"
        )
    elif layout == "timm":
        relative, normed = encoder["positions"] == "relative", pool == "mean-then-norm"
        options = {
            "img_size": (height, width),
            "patch_size": encoder["patch_size"],
            "in_chans": channels,
            "num_classes": 0,
        }
        options |= {"embed_dim": encoder["width"], "depth": encoder["depth"], "num_heads": encoder["heads"]}
        options |= {"mlp_ratio": encoder["mlp_ratio"], "init_values": encoder["layer_scale"]}
        if relative:
            options |= {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "use_fc_norm": normed}
        elif normed or not encoder["class_token"]:
            options |= {"class_token": encoder["class_token"], "global_pool": "avg", "fc_norm": normed}
        model = "beit import Beit as Model" if relative else "vision_transformer import VisionTransformer as Model"
        arguments = "".join(f"    {key}={value!r},\n" for key, value in options.items())
        vectors = "vectors = model(images)" if normed else "tokens = model.forward_features(images)"
        code = (
            f"import torch\nfrom safetensors.torch import load_file\nfrom timm.models.{model}\n\n"
            f"model = Model(\n{arguments}).eval()\nmodel.load_state_dict(load_file({name!r}))\n"
            f"{images}with torch.no_grad():\n    {vectors}\n" + ("" if normed else f"vectors = {pooled}\n")
        )
    elif layout == "mae":
        code = (
            "import torch\nfrom unmask.models import interop\n\n"
            f"encoder, _ = interop.load({name!r}, image_size=({height}, {width}), heads={encoder['heads']})\n"
            f"{images}with torch.no_grad():\n    tokens = encoder.forward_features(images).tokens\nvectors = {pooled}\n"
        )
    else:
        code = (
            'import torch\nimport unmask\n\nencoder, preprocess = unmask.load(".")  # this folder\n'
            f"images = torch.zeros(2, {shape}, dtype=torch.uint8)  # yours: (B, C, H, W), resized\n"
            "with torch.no_grad():\n    vectors = encoder(preprocess.normalise(images))\n"
        )
    return f"```python\n{code}```\n\nA vector an image. From a shell: `unmask embed` reads the same files."


def data(settings: Mapping[str, Any], preprocess: Mapping[str, Any], ours: bool) -> str:
    known = settings.get("data") or {}
    mean, std = (", ".join(f"{value:.4f}" for value in preprocess[key]) for key in ("mean", "std"))
    rows = [("channels", preprocess["channels"]), ("mean of each, from 0 to 1", mean), ("deviation of each", std)]
    if known:
        rows = [
            ("name", bare(known["name"])),
            ("images", f"{known['images']:,}"),
            ("fingerprint", f"`{known['fingerprint']}`"),
            *rows,
        ]
    rows += [(name, "yes") for name in ("trim", "pad") if preprocess.get(name)]
    words = "" if ours else "It is not known what it was trained on. Images are normalised by these:\n\n"
    words += table(("", ""), rows)
    return words + ("\n\nThe same images give the same fingerprint." if known else "")


def learnt(result: Mapping[str, Any]) -> str:
    if "verdict" not in result:
        return "The run that it comes from has no verdict: it was stopped before its end."
    words = f"**{result['verdict']}**: {result['sentence']}."
    if result.get("loss") is not None:
        words += (
            f" Loss {result['loss']:.4g}, that of a model that learnt nothing {result['uninformed_loss']:.4g}, after "
            f"{result['steps']:,} steps."
        )
    return words


def probed(probe: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The probes beside what they have to beat."""
    if "linear" not in probe and "knn" not in probe:
        words = "Not probed, for want of labels. `unmask probe RUN --data labelled/` would say."
        return f"{words} {probe['sentence']}" if probe.get("sentence") else words
    protocol = {"test set": "on a test set", "by group": "on groups kept apart", "by image": "on images held out"}
    head = ("accuracy", *RIVALS.values())
    rows = [
        (words, *(spread(probe[test].get(rival)) for rival in RIVALS)) for test, words in TESTS.items() if test in probe
    ]
    told = f"{protocol[probe['protocol']].capitalize()}, {probe['test']:,} images; in brackets 95% intervals.\n\n"
    after = f"\n\nAlways naming the commonest class: {probe['majority']['accuracy']:.3f}. One run, seed "
    return told + table(head, rows) + after + f"{(settings.get('settings') or {}).get('seed', 0)}."


def spread(score: Mapping[str, float] | None) -> str:
    return f"{score['accuracy']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else ""


def paper(settings: Mapping[str, Any]) -> str:
    """What the method's file says was published; where it deviates."""
    method = method_of(settings)
    if method not in METHODS:
        return f"`unmask {method} --help` tells its recipe, and the papers behind it."
    module = inspect.getmodule(METHODS[method])
    first, *rest = inspect.cleandoc(module.__doc__ or "").split("\n\n")  # type: ignore[union-attr]
    published = next((" ".join(part.split()) for part in rest if part.startswith("Published")), "")
    here = "What was measured here stands above: other images, another size and length, so the figures are not to be compared."
    where = f"`python -m pydoc {module.__name__}`"  # type: ignore[union-attr]
    return (
        f"{' '.join(first.split())}\n\n{published}\n\nThat is published, not ours. {here}\n\n"
        f"Deviations from the paper are listed by {where}."
    )


def recipe(settings: Mapping[str, Any]) -> str:
    told = {**(settings.get("settings") or {}), **(settings.get("method_settings") or {})}
    rows = []
    for name, value in told.items():
        if name not in PRIVATE and value is not None:
            rows.append(
                (
                    name,
                    bare(value) if name in FILES else ", ".join(map(str, value)) if isinstance(value, list) else value,
                )
            )
    made = ", ".join(
        f"{name} {settings[name]}" for name in ("unmask", "torch", "torchvision", "python") if settings.get(name)
    )
    return f"{table(('setting', 'value'), rows)}\n\n{made}."


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
