"""The plan of a training: parameters, operations and bytes, against formulas and against real tensors."""

import functools
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unmask import models
from unmask.cli import main
from unmask.methods.mae import MAE
from unmask.training.engine import Clock, autocast
from unmask.verbs import plan

CPU = torch.device("cpu")
SMALL = ["--encoder", "vit-tiny/8", "--image-size", "32", "--batch-size", "8"]


def mae(name: str, size=(32, 32), channels: int = 3) -> MAE:
    return MAE(models.build(name, image_size=size, channels=channels, **MAE.ENCODER))


def encoder_parameters(patch: int, channels: int, width: int, depth: int) -> int:
    """Patch embedding, class token, blocks (two norms, attention, MLP of four times the width), final norm."""
    return (patch**2 * channels + 1) * width + width + depth * (12 * width**2 + 13 * width) + 2 * width


def mae_flops(patch, channels, grid, width, depth, decoder_width, decoder_depth) -> int:
    """Operations of one image's step: 2 for each multiplication and addition of a matrix product, and twice the forward
    pass for the backward one, but that nobody asks for the gradient of the pixels."""
    N, pixels = grid[0] * grid[1], patch**2 * channels
    K = N // 4
    T, M, d = K + 1, N - K, decoder_width
    embed = 2 * K * pixels * width
    blocks = depth * (24 * T * width**2 + 4 * T**2 * width)
    decoder = 2 * T * width * d + (decoder_depth - 1) * (24 * (N + 1) * d**2 + 4 * (N + 1) ** 2 * d)
    decoder += 4 * (N + 1) * d**2 + 20 * M * d**2 + 4 * M * (N + 1) * d  # the last block asks for hidden patches alone
    return 3 * (embed + blocks + decoder + 2 * M * d * pixels) - embed


@pytest.mark.parametrize(
    ("name", "size", "channels", "shape"),
    [
        ("vit-tiny/8", (32, 48), 1, (192, 12, 128, 2)),
        ("vit-small/16", (224, 224), 3, (384, 12, 256, 4)),
        ("vit-base/16", (224, 224), 3, (768, 12, 512, 8)),
    ],
)
def test_parameters_and_operations_are_those_of_the_formula(name, size, channels, shape):
    width, depth, *_ = shape
    patch = int(name.split("/")[1])
    need = plan.needs(lambda: mae(name, size, channels), 3, "float32", "adamw")
    grid = (size[0] // patch, size[1] // patch)
    assert need.encoder_parameters == encoder_parameters(patch, channels, width, depth)
    assert need.flops == 3 * mae_flops(patch, channels, grid, *shape)
    assert need.gradients == 4 * need.parameters
    assert need.optimiser == pytest.approx(8 * need.parameters, rel=1e-3)  # two moments; and a count of steps each


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_without_contents_is_a_real_one(precision):
    need = plan.needs(lambda: mae("vit-tiny/4"), 6, precision, "adamw")
    method = mae("vit-tiny/4").train()
    assert need.parameters == sum(p.numel() for p in method.parameters())
    batch = plan.blank(method, 6, CPU)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*method.parameters(), *method.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other takes its place
        return tensor

    with FlopCounterMode(display=False) as counter, autocast(CPU, precision):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = method(batch, Clock(0, 1, 0.0))["loss"]
        loss.backward()
    assert need.flops == counter.get_total_flops()
    saved = sum(size for size, _ in kept.values()) + batch.views[0].nbytes
    assert need.activations == pytest.approx(saved, rel=0.03)
    assert need.peak > need.weights + need.optimiser + need.activations


def test_memory_is_counted_until_it_is_given_back():
    with plan.Allocations() as there:
        one = torch.zeros(1000)
        two = one.double()
        one.view(10, 100).add_(1)  # the same memory
        assert there.now == there.peak == 12_000
        del two
        assert there.now == 4000 and there.peak == 12_000


def test_muon_remembers_less_than_adamw():
    need = {name: plan.needs(lambda: mae("vit-tiny/8"), 2, "float32", name) for name in ("adamw", "muon")}
    assert 0.4 < need["muon"].optimiser / need["adamw"].optimiser < 0.7


def test_the_largest_batch_fits_and_a_tenth_more_does_not():
    @functools.cache
    def play(batch_size):
        return plan.needs(lambda: mae("vit-tiny/8"), batch_size, "bf16", "adamw")

    free = 200 * 2**20
    most = plan.largest(play, 4, free)
    assert play(most).peak <= free < play(round(most * 1.1)).peak
    assert plan.largest(play, 4, 2**20) == 0


def run(*arguments):
    try:
        main(["plan", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_steps_are_timed_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "SECONDS", 0.1)
    assert run(*SMALL, "--images", 1000, "--epochs", 10, "--device", "cpu", "--out", tmp_path / "plan.json") == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["steps"] == 1250 and found["images_per_second"] > 10
    assert found["hours"] == pytest.approx(10_000 / found["images_per_second"] / 3600)
    assert 0 < found["peak"] < found["memory"] and found["largest_batch_size"] > 8
    assert found["peak"] == pytest.approx(plan.HELD * found["tensors"], rel=1e-6)
    said = capsys.readouterr().out
    assert "timed here" in said and "which fits" in said


def test_a_gpu_that_is_not_here_is_planned_from_its_rate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there = ["--device", "cuda", "--tflops", 100, "--share", 0.5, "--memory", 0.25, "--images", 800, "--epochs", 1]
    assert run(*SMALL, "--processes", 4, *there, "--out", tmp_path / "plan.json") == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["images_per_second"] == pytest.approx(4 * 0.5 * 100e12 / found["flops"], rel=1e-6)
    assert found["precision"] == "bf16" and found["memory"] == 2**28 and found["largest_batch_size"] % 4 == 0
    alone = plan.needs(lambda: mae("vit-tiny/8"), 2, "bf16", "adamw")
    assert found["peak"] == found["tensors"] == pytest.approx(alone.peak + alone.gradients, rel=1e-6)
    assert run(*SMALL[:-1], 4096, *there[:-4]) == 0
    assert "does not fit" in capsys.readouterr().out
    assert run(*SMALL, "--device", "cuda", "--images", 800) == 0
    assert "give --tflops" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--encoder is missing"),
        (["--encoder", "vit-tiny"], "no encoder is called"),
        (["--encoder", "vit-tiny/9"], "do not tile"),
        ([*SMALL, "--method", "mea"], "no method is called 'mea'"),
        ([*SMALL, "--processes", "3"], "3 processes do not divide"),
        ([*SMALL, "--images", "4"], "more than the 4 images"),
        ([*SMALL, "--tflops", "0"], "above 0"),
        ([*SMALL, "--image-size", "wide"], "give pixels"),
        ([*SMALL, "--device", "abacus"], "use auto, cpu or cuda"),
        ([*SMALL, "--tflops", "1", "--out", "/dev/null/plan.json"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(arguments, line, capsys):
    assert run(*arguments) == 2
    said = capsys.readouterr().err.strip()
    assert line in said and "\n" not in said


def test_dropout_in_attention_is_planned():
    """Compact transformers leave out weights by random numbers, of which a step that is only played through has none."""
    found = plan.needs(lambda: mae("vit-lite-2/4"), 4, "bf16", "adamw")
    assert found.flops > 0 and found.peak > 0
