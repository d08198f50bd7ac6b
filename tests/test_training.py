"""The loop, the schedule, the run folder and the verdict."""

import itertools
import json
import math
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unmask.errors import BadInput
from unmask.methods.method import Method
from unmask.training import engine, health
from unmask.training.engine import fit
from unmask.training.optim import Recipe, optimisers_for, rate
from unmask.training.run import Run, write


class Line(Method):
    """Fits y = 3x + noise; draws from torch's generator so that a resumed run must restore it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(OrderedDict(blocks=nn.Linear(4, 4)))
        self.head = nn.Linear(4, 1)
        self.called = []

    def forward(self, batch, clock):
        self.called.append(clock.step)
        out = self.head(self.encoder(batch.views[0]) + 0.01 * torch.randn(1))
        target = 3 * batch.views[0].sum(dim=1, keepdim=True)
        return {"loss": (out - target).square().mean(), "uninformed": target.var()}


def batches(first):
    step = first
    while True:
        generator = torch.Generator().manual_seed(step)
        yield SimpleNamespace(views=(torch.randn(16, 4, generator=generator),), index=torch.arange(16))
        step += 1


def run_in(folder):
    return Run.create(folder, {"a": 1}, resume=folder.exists())


def test_it_learns_and_logs_a_line_a_step_with_everything_health_reads(tmp_path):
    run = run_in(tmp_path / "run")
    history = fit(Line(), batches, Recipe(60, 0.05, steps_per_epoch=10), run, watch=torch.randn(32, 4))
    assert history[-1]["ratio"] < 0.05 < history[0]["ratio"]
    assert len(history) == 60 and run.history() == history
    assert history[-1]["epoch"] == 6.0
    for name in ("loss", "uninformed", "lr", "grad_norm", "update_ratio", "images_per_second", "loader_wait"):
        assert math.isfinite(history[-1][name])
    assert "rank" in history[-1] and "feature_std" in history[-1]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def timeless(lines):
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "loader_wait", "seconds")} for line in lines
    ]


@pytest.mark.parametrize(("accumulate", "optimiser"), [(1, "adamw"), (2, "adamw"), (1, "muon")])
def test_a_resumed_run_is_the_same_run(tmp_path, accumulate, optimiser, monkeypatch):
    recipe = Recipe(40, 0.05, warmup=4, accumulate=accumulate, optimiser=optimiser)
    whole = Line()
    expected = fit(whole, batches, recipe, run_in(tmp_path / "whole"))

    class Killed(Exception):
        pass

    killed, run = Line(), run_in(tmp_path / "killed")
    original = killed.forward

    def forward(batch, clock):
        if clock.step == 23:
            raise Killed
        return original(batch, clock)

    monkeypatch.setattr(killed, "forward", forward)
    with pytest.raises(Killed):
        fit(killed, batches, recipe, run)
    torch.manual_seed(99)
    again = Line()
    torch.rand(7)
    got = fit(again, batches, recipe, run_in(tmp_path / "killed"))
    assert min(again.called) == 20  # the last checkpoint
    assert timeless(got) == timeless(expected)
    assert timeless(run.history()) == timeless(expected)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulated_batches_make_the_step_of_one_large_batch():
    class Plain(Line):
        def forward(self, batch, clock):
            loss = self.head(self.encoder(batch.views[0])).square().mean()
            return {"loss": loss, "uninformed": loss.detach()}

    def joined(first):
        stream = batches(2 * first)
        while True:
            one, two = next(stream), next(stream)
            yield SimpleNamespace(views=(torch.cat([one.views[0], two.views[0]]),), index=torch.arange(32))

    parts, whole = Plain(), Plain()
    fit(parts, batches, Recipe(5, 0.01, accumulate=2))
    fit(whole, joined, Recipe(5, 0.01))
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_nan_stops_the_run_before_it_reaches_a_checkpoint_and_says_where(tmp_path):
    class Bad(Line):
        def forward(self, batch, clock):
            values = super().forward(batch, clock)
            if clock.step == 25:
                values["loss"] = values["loss"] * (self.head.bias * 0 + float("inf")).sum()
            return values

    run = run_in(tmp_path / "run")
    with pytest.raises(health.Diverged, match="at step 26"):
        fit(Bad(), batches, Recipe(40, 0.05), run)
    state = run.restore()
    assert state is not None and state["step"] == 24
    assert all(value.isfinite().all() for value in state["method"].values())
    assert run.history()[-1]["step"] == 25


def test_nan_in_the_input_is_named():
    def poisoned(first):
        for batch in batches(first):
            batch.views[0][0, 0] = float("nan")
            yield batch

    with pytest.raises(health.Diverged, match="view 0 of the input"):
        fit(Line(), poisoned, Recipe(3, 0.05))


def test_a_torn_checkpoint_is_passed_over_and_a_pickle_is_not_run(tmp_path):
    run = run_in(tmp_path / "run")
    run.save(1, {"step": 1})
    run.save(2, {"step": 2})
    newest = run.checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:50])
    assert run.restore() == {"step": 1}
    evil = tmp_path / "ran"
    torch.save({"step": 3, "code": Evil(str(evil))}, run.folder / "checkpoints" / "step-000000003.pt")
    with pytest.raises(BadInput, match="holds more than numbers"):
        run.restore()
    assert not evil.exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_rates_rise_then_fall_and_only_matrices_decay():
    recipe = Recipe(100, 1.0, warmup=10, min_lr=0.1)
    rates = [rate(recipe, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 == max(rates)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    module.register_parameter("positions", nn.Parameter(torch.zeros(4, 3)))
    (adamw,) = optimisers_for(module, recipe)
    decay, rest = adamw.param_groups
    assert [p.shape for p in decay["params"]] == [(3, 3)] and decay["weight_decay"] == 0.05
    assert len(rest["params"]) == 4 and rest["weight_decay"] == 0.0


def test_muon_takes_the_matrices_of_blocks_and_makes_their_steps_orthogonal():
    module = nn.Module()
    module.blocks = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32))
    module.prediction = nn.Linear(32, 8)
    adamw, muon = optimisers_for(module, Recipe(10, 0.01, weight_decay=0.0, optimiser="muon"))
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(32, 64)]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 5
    weight = module.blocks[0].weight
    before, weight.grad = weight.detach().clone(), torch.randn(32, 64) @ torch.diag(torch.logspace(0, -1, 64))
    muon.step()
    step = (before - weight).detach()
    singular = torch.linalg.svdvals(step)
    assert singular.max() / singular.min() < 2.5 < torch.linalg.cond(weight.grad)
    assert step.square().mean().sqrt() == pytest.approx(0.01 * 0.2, rel=0.3)  # the size of AdamW's steps


def test_a_run_folder_is_not_overwritten(tmp_path):
    folder = tmp_path / "run"
    Run.create(folder, {})
    with pytest.raises(BadInput, match="--resume"):
        Run.create(folder, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(BadInput, match="not empty"):
        Run.create(tmp_path / "other", {})
    with pytest.raises(BadInput, match="not a run"):
        Run(tmp_path)
    (tmp_path / "blocked").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        Run.create(tmp_path / "blocked" / "run", {})


def test_write_leaves_nothing_beside(tmp_path):
    write(tmp_path / "a.json", json.dumps({"x": 1}))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_unknown_devices_are_refused():
    with pytest.raises(BadInput, match="--device"):
        engine.choose_device("gpu0")
    assert engine.choose_precision("float32", torch.device("cpu")) == ("float32", "as asked")
    assert engine.choose_precision("auto", torch.device("cpu"))[0] in ("bf16", "float32")


# RankMe and the verdict


@given(st.integers(1, 8), st.integers(0, 1000))
def test_effective_rank_counts_equal_directions(rank, seed):
    torch.manual_seed(seed)
    left, right = torch.linalg.qr(torch.randn(40, rank))[0], torch.linalg.qr(torch.randn(16, rank))[0]
    assert health.effective_rank(left @ right.T) == pytest.approx(rank, rel=1e-3)


def test_collapsed_features_are_seen():
    same = torch.ones(50, 16) + 1e-4 * torch.randn(50, 16)
    assert health.features(same)["feature_std"] < health.COLLAPSED_STD
    line = torch.randn(50, 1) @ torch.randn(1, 16)
    assert health.features(line)["rank"] < health.COLLAPSED_RANK
    assert health.features(torch.randn(200, 16))["rank"] > 14


def log(ratios, **extra):
    base = {
        "grad_norm": 1.0,
        "update_ratio": 1e-3,
        "images_per_second": 100.0,
        "loader_wait": 0.0,
        "rank": 20.0,
        "feature_std": 0.5,
    }
    return [
        {"step": i + 1, "epoch": i / 10, "ratio": r, "loss": r, "uninformed": 1.0, **base, **extra}
        for i, r in enumerate(ratios)
    ]


FALLING = [1.2 - 0.7 * i / 100 for i in range(100)]


@pytest.mark.parametrize(
    ("history", "lr", "word", "says"),
    [
        (log(FALLING), 1e-3, "learning", "still falling"),
        (log([0.5] * 100), 1e-3, "learning", ""),
        (log([0.99] * 100), 1e-3, "no better than uninformed", "longer"),
        (log([0.995] * 100, update_ratio=0.2), 1e-1, "no better than uninformed", "lower the learning rate"),
        (log([1.0] * 100, update_ratio=1e-7), 1e-6, "no better than uninformed", "raise the learning rate"),
        (log([0.6] * 100, update_ratio=1e-6), 1e-5, "learning", "raise the learning rate"),
        (log([0.6] * 50 + [3.0] * 50), 1e-3, "diverged", "lower the learning rate"),
        (log([1.0] * 100, feature_std=1e-4), 1e-3, "collapsed", "learning rate"),
        (log(FALLING, loader_wait=0.8), 1e-3, "starved by the loader", "--workers"),
        ([], 1e-3, "diverged", "lower"),
    ],
)
def test_the_verdict_names_what_is_wrong(history, lr, word, says):
    verdict = health.judge(history, lr, 1e-3)
    assert verdict.word == word
    assert says in " ".join(verdict.advice)
    if verdict.word == "learning" and not says:
        assert not verdict.advice


@pytest.mark.parametrize(
    ("entropy", "kl", "information", "word", "says"),
    [
        (0.05, 0.02, 0.0, "collapsed", "one output dominates"),
        (0.31, 0.46, 0.51, "collapsed", "few outputs dominate: the teacher uses them as if there were 2.3 of 992"),
        (6.9, 0.01, 0.005, "collapsed", "all outputs are alike"),
        (6.85, 0.035, 0.045, "collapsed", "all outputs are alike"),
        (5.5, 0.9, 0.01, "collapsed", "all outputs are alike"),
        (3.0, 0.5, 2.0, "learning", "0.50 nats"),
        (6.0, 0.8, 1.2, "learning", "0.80 nats"),  # its loss, 6.8 of 6.9, says nothing of what it learnt
        (3.0, 2.0, 1.0, "no better than uninformed", "2.00 nats"),
    ],
)
def test_a_teacher_is_judged_by_what_it_tells_of_an_image(entropy, kl, information, word, says):
    teacher = {"teacher_entropy": entropy, "kl": kl, "information": information}
    history = [line | {"loss": entropy + kl, "uninformed": 6.9} for line in log([(entropy + kl) / 6.9] * 50, **teacher)]
    verdict = health.judge(history, 1e-3, 1e-3)
    assert verdict.word == word and says in verdict.sentence
    rising = [line | {"loss": 2 + 0.06 * i, "ratio": (2 + 0.06 * i) / 6.9} for i, line in enumerate(history)]
    assert health.judge(rising, 1e-3, 1e-3).word == word  # falls and rises are no divergence


def test_a_falling_loss_with_features_worse_than_untrained_is_not_learning():
    below, level = {"accuracy": 0.2, "low": 0.19, "high": 0.21}, {"accuracy": 0.25, "low": 0.2, "high": 0.3}
    for trained, word in ((below, "no better than uninformed"), (level, "learning")):
        probe = {"linear": {"trained": trained, "untrained": {"accuracy": 0.4, "low": 0.25, "high": 0.41}}}
        verdict = health.judge(log(FALLING), 1e-1, 1e-3, probe=probe)
        assert verdict.word == word
        assert ("0.200 against 0.400" in verdict.sentence) == (trained is below)
        assert "lower the learning rate" in " ".join(verdict.advice)
