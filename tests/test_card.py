"""The card of an encoder: what the hub reads, what a person reads, and code that runs."""

import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import unmask
from unmask import card
from unmask.data.decode import Preprocess
from unmask.methods.mae import MAE, Settings
from unmask.models import build, interop
from unmask.models.vit import ViT
from unmask.training.run import Run
from unmask.verbs.report import write_report

SMALL = {"image_size": (16, 24), "patch_size": 8, "width": 64, "depth": 2, "heads": 4}
SCORE = {"accuracy": 0.6, "low": 0.55, "high": 0.65, "balanced": 0.6}
PROBE = {
    "protocol": "test set",
    "train": 100,
    "test": 50,
    **{test: dict.fromkeys(card.RIVALS, SCORE) for test in ("knn", "linear")},
    "majority": {"accuracy": 0.1},
    "sentence": "fine",
}


@pytest.fixture
def run(tmp_path):
    """The files of a run, as `unmask pretrain mae` leaves them, on a folder of somebody's."""
    torch.manual_seed(0)
    encoder, preprocess = (
        ViT(**SMALL, positions="sincos", pool="class+mean"),
        Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)),
    )
    stated = {
        "unmask": "0.1.0",
        "command": "unmask pretrain mae --data /home/somebody/secret/shards --out /home/somebody/runs/a",
        "method": "mae",
        "settings": {
            "data": "/home/somebody/secret/shards",
            "out": "/home/somebody/runs/a",
            "probe": "/home/somebody/labels/test.csv",
            "encoder": "vit-tiny/8",
            "steps": 100,
            "seed": 3,
        },
        "method_settings": {"mask_ratio": 0.75, "tokens": None},
        "reasons": {"steps": "for /home/somebody"},
        "data": {"name": "/home/somebody/secret/shards", "images": 1234, "fingerprint": "abc123"},
        "preprocess": preprocess.to_dict(),
        "encoder": encoder.config,
    }
    made = Run.create(tmp_path / "a run", stated)
    interop.save(encoder, made.folder / "encoder", {"preprocess": preprocess.to_dict(), "method": "mae"})
    told = {"verdict": "learning", "sentence": "the loss is 60% of what a model that learnt nothing gets", "loss": 0.6}
    made.write("result.json", told | {"uninformed_loss": 1.0, "steps": 100})
    made.write("probe.json", PROBE)
    return made


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_reads_it(run):
    write_report(run.folder)
    read = ModelCard.load(run.folder / "encoder" / "README.md")
    assert read.data.pipeline_tag == "image-feature-extraction" and read.data.library_name == "unmask"
    assert read.data.license is None and {"mae", "vision"} <= set(read.data.tags)
    first, second = read.data.eval_results
    assert (first.metric_type, first.metric_value, first.dataset_name) == ("accuracy", 0.6, "test.csv")
    assert "95% interval 0.550 to 0.650" in first.metric_name and "linear probe" in second.metric_name
    assert front(read.content)["model-index"][0]["name"] == "a run"


def test_it_says_what_is_known_and_nothing_of_the_machine(run):
    write_report(run.folder)
    text = (run.folder / "encoder" / "README.md").read_text()
    for words in (
        "1,234 images of shards",
        "`abc123`",
        "0.4000, 0.5000, 0.6000",
        "**learning**",
        "Loss 0.6,",
        "mask_ratio",
    ):
        assert words in text
    for words in (
        "0.600 [0.550, 0.650]",
        "commonest class: 0.100",
        "seed 3",
        "83.6 / 85.9 / 86.9",
        "published, not ours",
    ):
        assert words in text
    assert "python -m pydoc unmask.methods.mae" in text and "write `license:`" in text
    assert "somebody" not in text and "secret" not in text and str(run.folder.parent) not in text


def test_without_labels_it_says_how_to_probe(run):
    run.write("probe.json", {"protocol": "no labels", "sentence": "No labels to test with.", "rank": 3.0})
    write_report(run.folder)
    text = (run.folder / "encoder" / "README.md").read_text()
    assert "`unmask probe RUN --data labelled/`" in text and "model-index" not in text
    (run.folder / "probe.json").unlink()
    (run.folder / "result.json").unlink()
    write_report(run.folder)
    assert "no verdict" in (run.folder / "encoder" / "README.md").read_text()


def test_a_card_that_somebody_made_their_own_is_left_alone(run):
    path = run.folder / "encoder" / "README.md"
    write_report(run.folder)
    assert card.MARK in path.read_text()
    path.write_text("---\nlicense: mit\n---\n# Mine\n")
    write_report(run.folder)
    assert path.read_text().endswith("# Mine\n")


def made_by(text: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The images (B, C, H, W) in the code of a card, and the vectors (B, D) that it makes of them, run where the
    files lie."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    before, names = Path.cwd(), {}
    os.chdir(folder)
    try:
        exec(code, names)
    finally:
        os.chdir(before)
    return names["images"], torch.as_tensor(names["vectors"])


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("timm", "e.safetensors"),
        ("huggingface", "hf"),
        ("mae", "m.safetensors"),
        ("unmask", "ours"),
    ],
)
def test_the_code_of_each_layout_runs_and_agrees(run, tmp_path, to, name):
    encoder, preprocess = unmask.load(run.folder)
    if to == "mae":
        settings = Settings(decoder_width=32, decoder_depth=1)
        stored = run.settings | {"method_settings": {"decoder_width": 32, "decoder_depth": 1}}
        (run.folder / "settings.yaml").write_text(yaml.safe_dump(stored))
        method = MAE(build_like(encoder), settings)
        run.save(1, {"method": method.state_dict()})
    out = unmask.export(run.folder, out=tmp_path / "out" / name, to=to)
    place = out / "README.md" if out.is_dir() else out.with_suffix(".md")
    text = place.read_text()
    images, found = made_by(text, out if out.is_dir() else out.parent)
    if to == "unmask":
        images = preprocess.normalise(images)
    else:
        assert preprocess.denormalise(images).ge(0).all() and images.mean(dim=(0, 2, 3)).abs().max() < 1
    with torch.no_grad():
        torch.testing.assert_close(found, encoder(images), rtol=0, atol=2e-4)
    assert front(text)["library_name"] == card.LIBRARIES[to] and front(text)["model-index"][0]["name"] == name


def build_like(encoder: ViT) -> ViT:
    again = ViT(**{**encoder.config, "image_size": tuple(encoder.config["image_size"])})
    again.load_state_dict(encoder.state_dict())
    return again


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "mean", "class_token": False},
        {"pool": "mean-then-norm"},
        {"pool": "mean-then-norm", "positions": "relative", "layer_scale": 0.1},
        {"pool": "class", "positions": "relative"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_code_for_timm_knows_every_form(tmp_path, options):
    torch.manual_seed(0)
    encoder, preprocess = ViT(**SMALL, **options).eval(), Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    interop.save_whole(interop.to_timm(encoder), tmp_path / "e.safetensors")
    text = card.card("e.safetensors", "timm", encoder.config, preprocess.to_dict())
    images, found = made_by(text, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(found, encoder(images), rtol=0, atol=2e-4)


def test_the_code_for_onnx_is_code():
    """It is not run: to write the graph takes ten seconds."""
    text = card.card("e.onnx", "onnx", {**SMALL, "channels": 3}, Preprocess(3, (0.4,) * 3, (0.2,) * 3).to_dict())
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert "InferenceSession('e.onnx'" in code and front(text)["library_name"] == "onnx"


def test_a_backbone_goes_back_to_timm(tmp_path):
    encoder = build("resnet18", image_size=(96, 96)).eval()
    interop.save_whole(interop.to_timm(encoder), tmp_path / "r.safetensors")
    preprocess = Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    _, found = made_by(card.card("r.safetensors", "timm", encoder.config, preprocess.to_dict()), tmp_path)
    assert found.shape == (2, 512)


def test_an_encoder_from_elsewhere_has_a_card_that_says_what_is_known(tmp_path):
    encoder = ViT(**{**SMALL, "image_size": (16, 16), "heads": 1}, positions="sincos")
    (tmp_path / "somebody").mkdir()
    official = tmp_path / "somebody" / "mae_pretrain.pth"
    torch.save({"model": interop.to_timm(encoder)}, official)
    unmask_export(official, tmp_path / "out.safetensors")
    text = (tmp_path / "out.md").read_text()
    assert "from `mae_pretrain.pth`" in text and "not who trained it" in text and "somebody" not in text
    assert "Did it learn?" not in text and "model-index" not in text and "self-supervised-learning" not in text


def unmask_export(path: Path, out: Path) -> None:
    """A width that is nobody's has no usual number of heads: that is told."""
    from unmask.verbs import export

    loaded = interop.load(path, heads=1)[0].eval(), Preprocess(3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load", lambda _: loaded)
        unmask.export(path, out=out)


def test_an_encoder_is_named_whatever_it_is():
    """As a run that goes on from another has it, whose settings name none."""
    named = {
        name: card.encoder_name({}, build(name, image_size=(16, 16)).config) for name in ("vit-tiny/8", "cct-2/3x2")
    }
    assert named["vit-tiny/8"] == "ViT of 12 blocks, 192 wide, with patches of 8 pixels"
    assert named["cct-2/3x2"] == "CCT of 2 blocks, 128 wide, with 2 convolutions of 3 pixels"


def test_sources_keep_their_last_name_only():
    assert card.bare("/home/me/photos/") == "photos" and card.bare("C:\\pictures\\cats") == "cats"
    assert (
        card.bare("hf:user/birds:train") == "hf:user/birds:train"
        and card.bare("wds:/data/a-{0..3}.tar") == "wds:a-{0..3}.tar"
    )
    data = card.card("e", "unmask", {**SMALL, "channels": 3}, Preprocess(3, (0.0,) * 3, (1.0,) * 3).to_dict(), {
        "settings": {"method": "mae", "data": {"name": "hf:user/birds:train", "images": 5, "fingerprint": "f"}}
    })  # fmt: skip
    assert front(data)["datasets"] == ["user/birds"]
