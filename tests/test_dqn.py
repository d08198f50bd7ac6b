"""DQN agrees with stable-baselines3 and with the authors' formulas, learns what only it can, and goes on exactly where it was."""

import dataclasses
import itertools
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask import models
from unmask.errors import BadInput
from unmask.rl import atari, judge
from unmask.rl.dqn import (
    DQN,
    Convolutions,
    Encoded,
    QNetwork,
    RMSProp,
    Schedule,
    Settings,
    begun,
    epsilon_at,
    follow,
    learn,
    play,
)
from unmask.rl.replay import Replay, Transitions
from unmask.training import health
from unmask.training.engine import Stopped
from unmask.training.run import Run

CPU = torch.device("cpu")
# The same as others


def batch_of(seed, B=32, history=4, actions=6):
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (B, 2 * history, 84, 84), dtype=torch.uint8, generator=draw)
    rewards = torch.randint(-1, 2, (B,), generator=draw).float()
    discounts = 0.99 * (torch.rand(B, generator=draw) > 0.2)
    return Transitions(
        frames, torch.stack([torch.randint(actions, (B,), generator=draw), rewards, discounts], 1), history
    )


def test_updates_are_those_of_stable_baselines3():
    """Nature's network, other weights in the target, ends of episodes among the transitions, and gradients that are clipped."""
    sb3 = pytest.importorskip("stable_baselines3")
    gymnasium = pytest.importorskip("gymnasium")
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    class Screen(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        action_space = gymnasium.spaces.Discrete(6)

    theirs = sb3.DQN("CnnPolicy", Screen(), buffer_size=1, seed=0, device="cpu", max_grad_norm=0.1)
    assert theirs.lr_schedule(1) == 1e-4 and theirs.gamma == 0.99  # its defaults
    torch.manual_seed(3)
    with torch.no_grad():
        for p in theirs.q_net_target.parameters():
            p.add_(0.01 * torch.randn_like(p))

    ours = DQN(QNetwork(Convolutions("nature", 4), 6), 6, Settings(optimiser="adam", clip=0.1), 10**9, CPU, "float32")

    names = {
        "features_extractor.cnn.0": "trunk.layers.0",
        "features_extractor.cnn.2": "trunk.layers.1",
        "features_extractor.cnn.4": "trunk.layers.2",
        "features_extractor.linear.0": "advantage.hidden",
        "q_net.0": "advantage.out",
    }

    def renamed(state):
        return {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": value for k, value in state.items()}

    ours.q.load_state_dict(renamed(theirs.q_net.state_dict()))
    ours.target.load_state_dict(renamed(theirs.q_net_target.state_dict()))
    before = {name: value.clone() for name, value in ours.q.state_dict().items()}
    batches = [batch_of(seed) for seed in range(5)]
    torch.testing.assert_close(
        ours.values(batches[0].states), theirs.q_net(batches[0].states).detach(), atol=1e-6, rtol=1e-5
    )

    def sampled(batch):
        done = (batch.discounts == 0).float()[:, None]
        return ReplayBufferSamples(
            batch.states, batch.actions[:, None], batch.successors, done, batch.rewards[:, None], None
        )

    given = iter(batches)
    theirs.replay_buffer = SimpleNamespace(sample=lambda *_, **__: sampled(next(given)))
    theirs.set_logger(Logger(None, []))
    for update, batch in enumerate(batches, start=1):
        loss = ours.update(batch)["loss"]
        theirs.train(gradient_steps=1, batch_size=32)
        assert float(loss) == pytest.approx(theirs.logger.name_to_value["train/loss"], rel=1e-5)
        got, expected = ours.q.state_dict(), renamed(theirs.q_net.state_dict())
        for name in got:
            moved = (expected[name] - before[name]).norm()
            assert moved > 0 and (got[name] - expected[name]).norm() < 3e-4 * moved, (name, update)
            torch.testing.assert_close(got[name], expected[name], atol=3e-6, rtol=0)
        clipped = nn.utils.get_total_norm([p.grad for p in ours.q.parameters()])
        assert float(clipped) == pytest.approx(0.1, rel=1e-3)


def untrained(own, actions=3, seed=0):
    """A small agent whose target network is another."""
    torch.manual_seed(seed)
    agent = DQN(QNetwork(Flat(2 * 64), actions, own.duelling), actions, own, 10**9, CPU, "float32")
    with torch.no_grad():
        for p in agent.target.parameters():
            p.add_(0.3 * torch.randn_like(p))
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (16, 4, 8, 8), dtype=torch.uint8, generator=draw)
    rewards, discounts = torch.randn(16, generator=draw), 0.9 * (torch.rand(16, generator=draw) > 0.3)
    taken = torch.randint(actions, (16,), generator=draw)
    return agent, Transitions(frames, torch.stack([taken, rewards, discounts], 1), 2)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("loss", ["huber", "squared"])
def test_the_loss_is_the_papers(double, loss):
    agent, batch = untrained(Settings(double=double, loss=loss))
    got, uninformed = agent.loss(batch)
    y, errors, chosen = [], [], []
    with torch.no_grad():
        for i in range(16):
            ahead, now = agent.target(batch.successors[i : i + 1])[0], agent.q(batch.successors[i : i + 1])[0]
            chosen.append((int(now.argmax()), int(ahead.argmax())))
            # van Hasselt et al. 2016, equation 4; Mnih et al. 2015, algorithm 1
            best = ahead[now.argmax()] if double else ahead.max()
            y.append(float(batch.rewards[i] + batch.discounts[i] * best))
            errors.append(float(agent.q(batch.states[i : i + 1])[0, batch.actions[i]]) - y[-1])
    assert any(a != b for a, b in chosen)  # the two ways differ
    assert max(map(abs, errors)) > 1 > min(map(abs, errors))
    of = {"huber": lambda d: 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5, "squared": lambda d: d * d}[loss]
    assert got.item() == pytest.approx(np.mean([of(d) for d in errors]), rel=1e-5)
    assert uninformed.item() == pytest.approx(np.mean([of(each - np.mean(y)) for each in y]), rel=1e-5)


def test_squared_it_is_cleanrls():
    """https://github.com/vwxyzjn/cleanrl/blob/master/cleanrl/dqn_atari.py, the lines that train."""
    agent, batch = untrained(Settings(loss="squared"))
    rewards, actions = batch.rewards[:, None], batch.actions[:, None]
    dones = (batch.discounts == 0).float()[:, None]
    with torch.no_grad():
        target_max, _ = agent.target(batch.successors).max(dim=1)
        td_target = rewards.flatten() + 0.9 * target_max * (1 - dones.flatten())
    old_val = agent.q(batch.states).gather(1, actions).squeeze()
    torch.testing.assert_close(agent.loss(batch)[0], F.mse_loss(td_target, old_val))


def test_duelling_adds_the_advantage_to_the_value():
    """Wang et al. 2016, equation 9: only the value shifts all actions."""
    agent, batch = untrained(Settings(duelling=True), actions=4)
    q, features = agent.q(batch.states), agent.q.trunk(batch.states)
    advantage, value = agent.q.advantage(features), agent.q.value(features)
    assert q.shape == (16, 4) and value.shape == (16, 1)
    for i, a in itertools.product(range(16), range(4)):
        expected = value[i, 0] + advantage[i, a] - sum(advantage[i, b] for b in range(4)) / 4
        torch.testing.assert_close(q[i, a], expected)
    torch.testing.assert_close(q.mean(1), value[:, 0])


def test_the_target_network_becomes_what_is_learnt_every_so_many_updates():
    own = Settings(optimiser="adam", lr=1e-2)
    agent, batch = untrained(own)
    agent.target_every = 3
    before = [p.clone() for p in agent.target.parameters()]
    for update in range(1, 8):
        agent.update(batch)
        learnt, target = list(agent.q.parameters()), list(agent.target.parameters())
        assert all(map(torch.equal, learnt, target)) == (update % 3 == 0)
        assert all(map(torch.equal, before, target)) == (update % 3 != 0)
        before = [p.clone() for p in target]
    assert not any(p.requires_grad for p in agent.target.parameters())


def test_rmsprop_is_the_authors():
    """Of their code (NeuralQLearner.lua): the gradients of a minibatch are summed there, and 0.01 stands below the root."""
    draw, B = np.random.default_rng(0), 32
    w = draw.standard_normal((3, 4)).astype(np.float32)
    layer = nn.Linear(4, 3, bias=False)
    layer.weight.data = torch.from_numpy(w.copy())
    plain = RMSProp([layer.weight], 2.5e-4)
    mean = square = np.zeros((3, 4))
    w = w.astype(np.float64)
    for scale in (1.0, 0.1, 3.0, 1e-3, 0.5):
        g = scale * draw.standard_normal((3, 4))
        layer.weight.grad = torch.from_numpy(g).float()
        plain.step()
        mean, square = 0.95 * mean + 0.05 * g, 0.95 * square + 0.05 * g**2
        w -= 2.5e-4 * g / np.sqrt(square - mean**2 + 0.01)
        np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=0, atol=2e-7)
    # What `DQN` takes: the mean over a minibatch, and the same step
    agent, _ = untrained(Settings(batch_size=B))
    assert isinstance(agent.optimiser, RMSProp)
    scaled = agent.optimiser.param_groups[0]
    assert scaled["lr"] == 2.5e-4 and scaled["alpha"] == 0.95
    summed, averaged = nn.Parameter(torch.zeros(50)), nn.Parameter(torch.zeros(50))
    theirs, ours = RMSProp([summed], 2.5e-4), RMSProp([averaged], 2.5e-4, eps=scaled["eps"])
    for _ in range(4):
        averaged.grad = 0.003 * torch.randn(50)
        summed.grad = B * averaged.grad
        theirs.step()
        ours.step()
        torch.testing.assert_close(averaged, summed, rtol=1e-4, atol=0)


# The paper's sizes


@pytest.mark.parametrize("actions", [6, 18])
@pytest.mark.parametrize(
    ("name", "trunk"),
    [  # 84 -> 20 -> 9 -> 7, and 84 -> 20 -> 9
        ("nature", (4 * 8 * 8 * 32 + 32) + (32 * 4 * 4 * 64 + 64) + (64 * 3 * 3 * 64 + 64) + (64 * 7 * 7 * 512 + 512)),
        ("nips", (4 * 8 * 8 * 16 + 16) + (16 * 4 * 4 * 32 + 32) + (32 * 9 * 9 * 256 + 256)),
    ],
)
def test_the_networks_are_as_large_as_the_papers_and_all_of_them_learns(name, trunk, actions):
    q = QNetwork(Convolutions(name, 4), actions)
    hidden = {"nature": 512, "nips": 256}[name]
    assert sum(p.numel() for p in q.parameters()) == trunk + hidden * actions + actions
    agent = DQN(q, actions, Settings(), 10_000, CPU, "float32")
    agent.update(batch_of(0, actions=actions))
    assert q(batch_of(0, B=3).states).shape == (3, actions)
    for parameter in q.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_epsilon_falls_along_a_line_once_there_is_something_to_learn_from():
    schedule = Schedule.of(Settings())
    at = [epsilon_at(step, schedule, 0.1) for step in (0, 49_999, 50_000, 550_000, 1_050_000, 1_050_001, 10_000_000)]
    assert at == pytest.approx([1, 1, 1, 0.55, 0.1, 0.1, 0.1])
    assert epsilon_at(10**9, schedule, 0.0) == 0


def test_the_schedule_is_the_papers_for_ten_million_steps_and_shorter_in_proportion():
    whole = Schedule.of(Settings())
    assert (whole.replay, whole.learn_from, whole.exploration_steps, whole.target_every) == (
        10**6,
        50_000,
        10**6,
        10**4,
    )
    assert whole.log_every == 50_000 and whole.save_every == 100_000
    assert Schedule.of(Settings(steps=50_000_000)) == dataclasses.replace(whole, log_every=100_000)
    short = Schedule.of(Settings(steps=100_000))
    assert (short.replay, short.learn_from, short.exploration_steps, short.target_every) == (100_000, 5000, 10_000, 100)
    assert short.log_every == 496 and short.save_every == 4960  # of eight games
    asked = Settings(steps=100_000, replay=50, learn_from=0, exploration_steps=7, target_every=3)
    assert Schedule.of(asked) == Schedule(50, 0, 7, 3, 496, 496)
    poor = Schedule.of(Settings(), most=600_000)
    assert poor.replay == 500_000 and poor.replay + 2 * poor.save_every <= 600_000
    tiny = Schedule.of(Settings(steps=1, environments=3))
    assert tiny == Schedule(1, 0, 1, 1, 3, 3)


def test_some_actions_are_at_random_and_the_others_the_best():
    agent, batch = untrained(Settings())
    states = batch.states.repeat(250, 1, 1, 1)
    best = agent.values(states).argmax(1).numpy()
    assert np.array_equal(agent.act(states, 0.0, np.random.default_rng(0)), best)
    share = (agent.act(states, 0.3, np.random.default_rng(0)) == best).mean()
    assert share == pytest.approx(0.7 + 0.3 / 3, abs=0.02)
    counts = np.bincount(agent.act(states, 1.0, np.random.default_rng(0)))
    assert counts == pytest.approx([4000 / 3] * 3, rel=0.1)


# A game whose best score is known


class Corridor:
    """Playable: six cells in a row, and a treasure worth 1 in the last. LEFT, RIGHT, or TAKE: 0.4 at once, and the end. An
    episode begins somewhere in the first five, and is broken off after 20 steps. From anywhere it is best to walk to the
    treasure; one who cannot see further than the next reward takes the 0.4."""

    LEFT, RIGHT, TAKE = range(3)
    actions, frame, treasure, longest = 3, (8, 8), 5, 20

    def __init__(self, environments, seed):
        self.environments, self.seed = environments, seed
        self.episodes = np.zeros(environments, dtype=np.int64)
        self.at, self.steps = np.zeros((2, environments), dtype=np.int64)

    def _begin(self, which):
        for e in np.flatnonzero(which):
            self.at[e] = np.random.default_rng((self.seed, e, self.episodes[e])).integers(self.treasure)
            self.steps[e] = 0

    def _seen(self):
        frames = np.zeros((self.environments, *self.frame), dtype=np.uint8)
        frames[np.arange(self.environments), :, self.at] = 255
        return frames

    def reset(self):
        self._begin(np.ones(self.environments, dtype=bool))
        return self._seen()

    def send(self, actions):
        self.doing = actions

    def receive(self):
        self.steps += 1
        self.at = np.maximum(self.at + (self.doing == self.RIGHT) - (self.doing == self.LEFT), 0)
        found, took = self.at == self.treasure, self.doing == self.TAKE
        rewards, over = (found + 0.4 * took).astype(np.float32), found | took
        cut = ~over & (self.steps == self.longest)
        self.episodes += over | cut
        self._begin(over | cut)
        return atari.Step(self._seen(), rewards, over.copy(), over, cut)

    def state(self):
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in ("episodes", "at", "steps")}

    def restore(self, state):
        for name, value in state.items():
            setattr(self, name, value.numpy().copy())


class Flat(nn.Module):
    """A trunk for small frames."""

    features = hidden = 64

    def __init__(self, pixels):
        super().__init__()
        self.layer = nn.Linear(pixels, 64)

    def forward(self, states):
        return F.relu(self.layer(states.flatten(1) / 255))


SMALL = Settings(
    steps=3000, environments=4, history=2, replay=1200, learn_from=200, exploration_steps=1000, final_epsilon=0.3,
    target_every=40, discount=0.9, optimiser="adam", lr=1e-3, clip_rewards=False,
)  # fmt: skip


def small(seed=0, kind=Replay, trunk=None, **changes):
    """An agent for the corridor, the corridor, its replay, and its schedule."""
    own = dataclasses.replace(SMALL, **changes)
    schedule = Schedule.of(own)
    torch.manual_seed(seed)
    q = QNetwork(trunk or Flat(own.history * 64), Corridor.actions, own.duelling)
    agent = DQN(q, Corridor.actions, own, schedule.target_every, CPU, "float32")
    games = Corridor(own.environments, seed)
    memory = (
        schedule.replay,
        own.environments,
        games.frame,
        own.history,
        own.n_step,
        own.discount,
        schedule.save_every,
    )
    return agent, games, kind(*memory), schedule


def score(agent, episodes=40):
    """Of greedy play, on average: at best 1.0."""
    random = np.random.default_rng(0)
    return np.mean(
        play(lambda states: agent.act(states, 0.0, random), Corridor(4, 99), episodes, agent.settings.history)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimiser": "rmsprop", "lr": 2.5e-4, "clip": 10.0},
        {"double": True, "duelling": True, "n_step": 3, "loss": "squared"},
        {"environments": 1, "history": 1},
    ],
    ids=["adam", "rmsprop", "double, duelling, three steps, squared", "one environment, one frame"],
)
def test_it_learns_to_walk_to_the_treasure_from_anywhere(changes):
    agent, games, replay, schedule = small(**changes)
    history = learn(agent, games, replay, schedule)
    assert score(agent) == 1.0
    assert agent.updates == history[-1]["updates"] == (3000 - 200) // 4
    assert history[-1]["ratio"] < 0.7 and history[-1]["step"] == 3000
    # What it is worth to be five cells from the treasure, four of them, …
    states = begun(np.zeros((5, 8, 8), np.uint8), agent.settings.history)
    states[torch.arange(5), :, :, torch.arange(5)] = 255
    off = (
        0.1 if agent.settings.n_step == 1 else 0.3
    )  # three steps, some of them at random, are worth less than the best
    found, worth = agent.values(states).max(1).values, 0.9 ** torch.arange(4.0, -1, -1)
    torch.testing.assert_close(found, worth, atol=off, rtol=0)


def test_an_encoder_of_ours_learns_it_too():
    torch.manual_seed(0)
    encoder = models.build("vit-lite-2/4", image_size=(8, 8), channels=SMALL.history)
    trunk = Encoded(encoder, (0.5,) * SMALL.history, (0.5,) * SMALL.history)
    agent, games, replay, schedule = small(trunk=trunk, steps=2000)
    before = [each.clone() for each in encoder.parameters() if each.requires_grad]
    learn(agent, games, replay, schedule)
    assert score(agent) == 1.0
    after = [each for each in encoder.parameters() if each.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Blind(Replay):
    """What follows a state is said to be that state again."""

    def at(self, rows):
        batch = super().at(rows)
        return dataclasses.replace(batch, frames=batch.states)


class Shuffled(Replay):
    """Each reward is another transition's."""

    def at(self, rows):
        batch = super().at(rows)
        batch.told[:, 1] = batch.told[torch.randperm(len(rows)), 1]
        return batch


class Endless(Replay):
    """An episode's end is not seen."""

    def at(self, rows):
        batch = super().at(rows)
        batch.told[:, 2] = 0.9
        return batch


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Replay, {"target_every": 10**9}),
        (Blind, {}),
        (Shuffled, {}),
        (Endless, {}),
    ],
    ids=["the target never moves", "successors", "rewards", "ends"],
)
def test_broken_it_does_not_learn_it(kind, changes):
    agent, games, replay, schedule = small(kind=kind, **changes)
    learn(agent, games, replay, schedule)
    assert score(agent) < 0.9


# Killed and called again


class Killed(Exception):
    pass


def short_run(folder, seed=0):
    """A run whose replay, of 100 frames of each environment, wraps round several times."""
    agent, games, replay, schedule = small(seed, steps=1600, replay=400, exploration_steps=400, learn_from=100)
    assert schedule.log_every == 8 and schedule.save_every == 40 and replay.length == 120
    return agent, games, replay, schedule, Run.create(folder, {"a": 1}, resume=folder.exists())


def killed(games, run, number, how, monkeypatch):
    """Prepare the end of a life: in its step of this number, or in writing its checkpoint of this number."""
    where, name = (run, "save") if how == "in a checkpoint" else (games, "receive")
    original, calls = getattr(where, name), itertools.count(1)

    def dying(*args):
        if next(calls) == number:
            if how != "by a signal":
                raise Killed
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(where, name, dying)


def outcome(agent, run):
    state = dict(agent.state_dict())
    for i, slots in agent.optimiser.state_dict()["state"].items():
        state |= {f"{i}.{name}": value for name, value in slots.items()}
    return state, (run.folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    agent, games, replay, schedule, run = short_run(tmp_path_factory.mktemp("run") / "whole")
    history = learn(agent, games, replay, schedule, run)
    assert len(history) == 188 and history[-1]["step"] == 1600 and replay.written == 400 > 3 * replay.length
    assert [line["scores"] for line in run.history()] == [line["scores"] for line in history]
    return outcome(agent, run)


@pytest.mark.parametrize(
    ("how", "numbers"),
    [
        ("in a step", (2, 153, 78)),
        ("by a signal", (28, 135, 76)),  # between two lines of the log, too
        ("in a checkpoint", (1, 17, 9)),  # its frames are on the disk by then
        ("torn", (30, 154)),
    ],
)
def test_killed_and_called_again_it_ends_the_same(tmp_path, never_killed, how, numbers):
    for number in numbers:
        agent, games, replay, schedule, run = short_run(tmp_path / "run")
        with pytest.MonkeyPatch.context() as patch, pytest.raises((Killed, Stopped)) as end:
            killed(games, run, number, how, patch)
            learn(agent, games, replay, schedule, run)
        if how == "by a signal":
            assert isinstance(end.value, Stopped) and end.value.number == signal.SIGTERM
        if how == "torn":
            newest = run.checkpoints()[-1]
            newest.write_bytes(newest.read_bytes()[:-100])
    agent, games, replay, schedule, run = short_run(tmp_path / "run")
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(1)  # all that counts comes from the checkpoint
    games.seed = 0
    torch.manual_seed(99)
    history = learn(agent, games, replay, schedule, run)
    weights, log = outcome(agent, run)
    assert log == never_killed[1]
    assert weights.keys() == never_killed[0].keys()
    assert all(torch.equal(value, weights[name]) for name, value in never_killed[0].items())
    assert history[-1]["updates"] == agent.updates == 375
    assert bool(run.torn) == (how == "torn")
    assert learn(agent, games, replay, schedule, run)[-1]["step"] == 1600  # and once more it has nothing to do
    assert outcome(agent, run)[1] == log


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    agent, games, replay, schedule, run = short_run(tmp_path / "run")
    original, calls = games.receive, itertools.count()

    def receive():
        step = original()
        return dataclasses.replace(step, rewards=step.rewards * (np.nan if next(calls) > 100 else 1))

    games.receive = receive
    with pytest.raises(health.Diverged, match=r"at step 4\d\d"):
        learn(agent, games, replay, schedule, run)
    state = run.restore()
    assert state is not None and all(value.isfinite().all() for value in state["agent"].values())


def test_each_environment_plays_its_share_to_the_end():
    games, draw, lines = Corridor(4, 1), np.random.default_rng(0), []

    def seen(states, actions, step):
        assert states.shape == (4, 2, 8, 8)
        lines.append(step)

    scores = play(lambda states: draw.integers(0, 3, len(states)), games, 10, 2, seen=seen)
    rewards, ended = (np.stack(each) for each in zip(*((s.rewards, s.over | s.cut) for s in lines), strict=True))
    expected = []
    for e, share in enumerate((3, 3, 2, 2)):
        ends = np.flatnonzero(ended[:, e])[:share]
        expected += [part.sum() for part in np.split(rewards[:, e], ends + 1)[:share]]
    assert len(scores) == 10 and sorted(scores) == pytest.approx(sorted(expected))
    last = [np.flatnonzero(ended[:, e])[share - 1] for e, share in enumerate((3, 3, 2, 2))]
    assert len(lines) == max(last) + 1  # and not a step more


# Games of Atari


def moves(games, steps, seed=0):
    """Actions (T, E): the first plays at random, the second presses FIRE now and then, the third does nothing."""
    drawn = np.random.default_rng(seed).integers(0, games.actions, (steps, games.environments))
    drawn[::4, 1], drawn[:, 2:] = 1, 0
    return drawn


def played(games, actions):
    """Frames, rewards, lost, over, cut and lives of each step."""
    lines = []
    for action in actions:
        games.send(action)
        lines.append((*dataclasses.astuple(games.receive()), games.lives.copy()))
    return [np.stack(each) for each in zip(*lines, strict=True)]


def alike(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_seed_and_actions_make_a_game():
    pytest.importorskip("ale_py")
    first, second, other = (atari.Games("breakout", 3, seed) for seed in (4, 4, 5))
    begins = [games.reset() for games in (first, second, other)]
    assert begins[0].shape == (3, 84, 84) and begins[0].dtype == np.uint8 and first.actions == 4
    assert np.array_equal(begins[0], begins[1])
    actions = moves(first, 60)
    found = [played(games, actions) for games in (first, second, other)]
    assert alike(found[0], found[1]) and not alike(found[0], found[2])
    assert found[0][1].dtype == np.float32 and found[0][1].sum() > 0
    for games in (first, second, other):
        games.close()


@pytest.mark.parametrize(("game", "moments"), [("breakout", (10, 164, 240)), ("assault", (420,))])
def test_games_are_played_up_to_where_they_were(game, moments):
    """In Breakout an episode has just begun at step 164. In Assault one who does nothing, as those do that wait for the longest
    episode to come that far, loses all lives after 154 steps."""
    pytest.importorskip("ale_py")
    first = atari.Games(game, 3, 0)
    first.reset()
    actions, states, lives = moves(first, max(moments) + 25), {}, {}
    lines = []
    for step in range(max(moments) + 25):
        if step in moments:
            states[step], lives[step] = first.state(), first.lives.copy()
        lines.append(played(first, actions[step : step + 1]))
    expected = [np.concatenate(each) for each in zip(*lines, strict=True)]
    assert expected[3].sum() >= 2 and expected[2].sum() > expected[3].sum()  # games were over, lives were lost
    first.close()
    lengths = {step: [len(each) for each in state["played"]] for step, state in states.items()}
    assert 0 in lengths.get(164, [0])
    assert game != "assault" or max(lengths[420]) - sorted(lengths[420])[0] > 154
    for step, state in states.items():
        again = atari.Games(game, 3, 0)
        again.restore(state)
        assert np.array_equal(again.lives, lives[step])
        assert alike(played(again, actions[step : step + 25]), [each[step : step + 25] for each in expected])
        assert np.array_equal(again.episodes, state["episodes"].numpy() + expected[3][step : step + 25].sum(0))
        again.close()


@pytest.mark.parametrize("fire", [False, True])
def test_states_are_ale_pys_own_stacks_of_four_frames(fire):
    """In each episode, which is the one that its seed makes in an environment of its own."""
    pytest.importorskip("ale_py")
    games = atari.Games("breakout", 2, 3, fire=fire)
    states = begun(games.reset(), 4)
    own = {"stack_num": 4, "use_fire_reset": fire, "reward_clipping": False}
    peers = [atari.imported().AtariVectorEnv("breakout", 1, **own) for _ in range(2)]
    numbers = [0, 0]

    def anew(e):
        seed = atari.seed_of(3, e, numbers[e])
        return peers[e].reset(seed=np.array([seed]))[0]

    stacks = np.concatenate([anew(e) for e in range(2)])
    assert np.array_equal(states.numpy(), stacks)
    actions = moves(games, 260)
    for step in range(260):
        games.send(actions[step])
        result = games.receive()
        ended = result.over | result.cut
        states = follow(states, result.frames, ended)
        for e in range(2):
            seen, reward, over, _, _ = peers[e].step(actions[step, e : e + 1])
            assert (reward[0], over[0]) == (result.rewards[e], result.over[e])
            if over[0]:
                numbers[e] += 1
                seen = anew(e)
            assert np.array_equal(states[e].numpy(), seen[0]), (step, e)
    assert min(numbers) >= 1 and games.episodes.tolist() == numbers
    for each in (games, *peers):
        each.close()


def remembered(games, **changes):
    """What a replay remembers of 600 random steps, and what the games said, (E, T) each."""
    own = Settings(steps=600, environments=3, learn_from=10**6, replay=600, **changes)
    agent = DQN(QNetwork(Convolutions("nips", 4), games.actions), games.actions, own, 1, CPU, "float32")
    replay, results, original = Replay(600, 3), [], games.receive

    def receive():
        results.append(original())
        return results[-1]

    games.receive = receive
    assert learn(agent, games, replay, Schedule.of(own)) == []
    told = {name: np.stack([getattr(step, name) for step in results]) for name in ("rewards", "lost", "over", "cut")}
    return replay, told


@pytest.mark.parametrize("life_loss", [False, True])
def test_a_lost_life_ends_what_is_learnt_but_not_the_game(life_loss):
    pytest.importorskip("ale_py")
    games = atari.Games("breakout", 3, 0)
    replay, told = remembered(games, life_loss=life_loss)
    ends = told["lost" if life_loss else "over"]
    assert told["lost"].sum() > told["over"].sum() + 6
    assert np.array_equal(replay.told[:200, :, 2] == 0, ends)
    alone = replay.runs[:200, :, 2] == replay.black  # of four frames and one more, the last but one of the state
    assert np.array_equal(alone[1:], ends[:-1]) and alone[0].all()
    assert games.episodes.tolist() == told["over"].sum(0).tolist()
    assert not replay.broken.any() and told["rewards"].max() <= 1  # the lowest rows of bricks
    games.close()


def test_an_episode_that_is_too_long_is_broken_off_and_has_no_successor(monkeypatch):
    pytest.importorskip("ale_py")
    monkeypatch.setattr(atari, "LONGEST", 240)
    games = atari.Games("pong", 3, 0)
    replay, told = remembered(games)
    assert told["cut"].sum() >= 9 and not told["over"].any()
    gaps = [np.diff(np.flatnonzero(row)) for row in told["cut"].T]
    assert all(30 < gap <= 60 for row in gaps for gap in row)  # 240 frames are 60 steps, less those of doing nothing
    assert np.array_equal(replay.broken[:200], told["cut"]) and replay.told[:200, :, 2].all()
    assert np.array_equal(replay.runs[1:200, :, 2] == replay.black, told["cut"][:-1])
    assert set(np.unique(told["rewards"])) <= {-1, 0, 1}
    games.close()


def test_an_episode_is_filmed_as_it_was_played():
    pytest.importorskip("ale_py")
    games = atari.Games("breakout", 3, 0)
    grey, number = [games.reset()[0]], 0
    actions = moves(games, 260)
    for step in range(260):
        games.send(actions[step])
        result = games.receive()
        if result.over[0]:
            number, since, grey = number + 1, step + 1, []
        grey.append(result.frames[0])
    assert number == 1
    film = atari.filmed("breakout", 0, (0, 1), actions[since:, 0].tolist(), 4, 30, False)
    assert film.shape == (len(grey), 210, 160, 3) and film.dtype == np.uint8
    bright = torch.from_numpy(film).float() @ torch.tensor([0.299, 0.587, 0.114])
    shrunk = F.interpolate(bright[:, None], (84, 84), mode="area")[:, 0]
    moved, shown = torch.from_numpy(np.stack(grey)).float().diff(dim=0), shrunk.diff(dim=0)
    motion = moved.abs().mean()  # what stands still differs a little: grey is the emulator's own
    assert (shown - moved).abs().mean() < 0.3 * motion < (shown[1:] - moved[:-1]).abs().mean()
    games.close()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("SpaceInvaders", "space_invaders"),
        ("space-invaders", "space_invaders"),
        ("space_invaders", "space_invaders"),
        ("ALE/Pong-v5", "pong"),
        ("PongNoFrameskip-v4", "pong"),
        ("MsPacman", "ms_pacman"),
        ("mspacman", "ms_pacman"),
        ("Qbert", "qbert"),
    ],
)
def test_a_game_is_known_by_any_of_its_names(name, found):
    pytest.importorskip("ale_py")
    assert atari.known(name) == found


def test_a_slip_in_a_games_name_is_one_line_with_the_nearest():
    pytest.importorskip("ale_py")
    with pytest.raises(BadInput, match=r"--env SpaceInvader: .*did you mean space_invaders\?") as slip:
        atari.known("SpaceInvader")
    assert "\n" not in str(slip.value)
    with pytest.raises(BadInput, match=r"called so$"):
        atari.known("xyzzy")


def test_the_published_scores_are_of_games_there_are():
    pytest.importorskip("ale_py")
    assert len(atari.PUBLISHED) == 49
    for name, (random, human) in atari.PUBLISHED.items():
        assert atari.known(name) == name
        assert atari.known("".join(part.title() for part in name.split("_"))) == name
        assert human > random or name == "venture"


# Judging


def test_the_interval_is_of_the_mean_over_episodes():
    scores = np.random.default_rng(0).normal(100, 20, 50).tolist()
    found = judge.interval(scores)
    assert found["mean"] == pytest.approx(np.mean(scores)) and found["best"] == max(scores) and found["episodes"] == 50
    half = 1.96 * np.std(scores) / 50**0.5
    assert found["low"] == pytest.approx(found["mean"] - half, abs=0.6)
    assert found["high"] == pytest.approx(found["mean"] + half, abs=0.6)
    assert judge.interval(scores) == found
    assert judge.interval([3.0, 3.0]) == {"mean": 3, "low": 3, "high": 3, "best": 3, "episodes": 2}


def test_a_score_is_told_between_random_and_human_play():
    assert judge.normalised(-20.7, atari.PUBLISHED["pong"]) == 0
    assert judge.normalised(9.3, atari.PUBLISHED["pong"]) == 1
    assert judge.normalised(401.2, atari.PUBLISHED["breakout"]) == pytest.approx(13.27, abs=0.01)  # DQN of 2015: 1,327%


def of(mean, width=1.0):
    return {"mean": mean, "low": mean - width, "high": mean + width, "best": mean + 9, "episodes": 30}


def log(scores, q=2.0, ratio=0.5, q_spread=0.1):
    return [
        {"step": 100 * i, "q": q, "q_spread": q_spread, "loss": ratio, "uninformed": 1.0}
        | {"scores": [] if score is None else [score]}
        for i, score in enumerate(scores, start=1)
    ]


EVEN = [0.3, 0.3, 0.4]


@pytest.mark.parametrize(
    ("own", "history", "failure", "actions", "word", "says", "advises"),
    [
        (of(20), log([1.0] * 20), None, EVEN, "learning", "20.0 [19.0, 21.0] over 30 episodes, at random 1.0", None),
        (of(20), log(list(range(20))), None, EVEN, "learning", "20.0", "still rising"),
        (of(20), log([None, *range(20), None]), None, EVEN, "learning", "20.0", "still rising"),
        (of(20), log([5.0] * 4), None, [1.0, 0, 0], "learning", "20.0", None),  # one key may be all there is to do
        (of(2.5), log([1.0] * 20), None, EVEN, "no better than uninformed", "2.5", "more --steps: 2,000 are few"),
        (of(1), log([1.0] * 20, ratio=0.99), None, EVEN, "no better than uninformed", "1.0", "learning rate"),
        (of(-5), log([1.0] * 20), None, EVEN, "no better than uninformed", "-5.0", "--n-step 3"),
        (
            of(1),
            log([1.0] * 20),
            None,
            [0.99, 0.01, 0],
            "collapsed",
            "in 99% of all states it does the same",
            "--steps",
        ),
        (
            of(20),
            log([1.0] * 20, q_spread=1e-6),
            None,
            EVEN,
            "collapsed",
            "all states look alike to Q",
            "--lr to a third",
        ),
        (of(20), log([1.0] * 20, q=101), None, EVEN, "diverged", "Q is 101, though", "--lr"),
        (of(20), log([1.0] * 20, q=-500), None, EVEN, "diverged", "Q is -500, though", "--target-every"),
        (None, log([1.0] * 20), "the loss or Q is NaN", [1.0], "diverged", "the loss or Q is NaN", "--lr"),
        (of(20), [], None, EVEN, "diverged", "before it logged anything", "--lr"),
    ],
)
def test_the_verdict_names_what_is_wrong(own, history, failure, actions, word, says, advises):
    found = judge.verdict(own, of(1), history, failure, 100.0, actions)
    assert found.word == word and says in found.sentence
    assert advises in " ".join(found.advice) if advises else found.advice == ()
    if word == "no better than uninformed":
        assert ("learning rate" in " ".join(found.advice)) == (history[-1]["loss"] > 0.9)


def test_without_a_bound_on_rewards_q_may_be_anything():
    assert judge.verdict(of(20), of(1), log([1.0] * 20, q=1e6), None, None, EVEN).word == "learning"
