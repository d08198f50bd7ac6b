"""DQN: learning to play from pixels and the score alone.

Mnih et al. 2013, Playing Atari with Deep Reinforcement Learning (https://arxiv.org/abs/1312.5602), and Mnih et al. 2015,
Human-level control through deep reinforcement learning (Nature 518, 529; "2015" below).

    unmask dqn --env Pong --out runs/pong

Defaults are those of 2015, extended data table 1, but for the length: 10 million steps as in 2013, not 50. Published by others:
CleanRL's dqn_atari.py (Adam, epsilon down to 0.01, FIRE, lives) reports 20.25 ± 0.41 in Pong and 366.9 ± 39.9 in Breakout after
10 million steps.

Deviations from 2015:
- Several games are played at once, in step; for each --update-every of their steps together there is one update. What an update
  learns from is what was there before the step that is being played meanwhile.
- In a run of fewer steps, what the paper counts in steps is shorter in proportion: see `Schedule`.
- A life that is lost ends nothing, unless --life-loss says so. (The authors' code does so while training.)
- Q is the mean over 256 held states, not over some thousands.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.methods.method import length_of
from unmask.rl.atari import Step
from unmask.rl.replay import Replay, Transitions
from unmask.screen import bar, warn
from unmask.training import health
from unmask.training.engine import Stopped, autocast, seed_of, signals
from unmask.training.run import Run

CONVOLUTIONS = {
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),
    "nips": (((16, 8, 4), (32, 4, 2)), 256),
}
"""Channels, kernel and stride of each layer, and the width of the hidden layer: of 2015 (Methods, "Model architecture") and of
2013 (section 4.1)."""
ALIKE = 1e-4
"""Deviation over states of the largest Q, below which all states look alike to it. Fresh weights have 0.003 and more; with Adam
at 2.5e-4 Pong's first 40,000 updates left no unit of the last convolution that any frame could excite, and a deviation of 0."""
HELD = 256
"""States, met before anything was learnt, by whose largest Q the run is watched (2013, section 5.1)."""


@dataclass(frozen=True)
class Settings:
    """How DQN learns."""

    steps: int = 10_000_000
    """Actions taken in all games together. (2013: 10 million frames; 2015: 50 million.)"""
    environments: int = 8
    """Games that are played at once."""
    history: int = 4
    """Frames that make up a state."""
    frame_skip: int = 4
    """Frames for which an action is held; of the last two the brighter pixel is seen."""
    noop_max: int = 30
    """Most frames of doing nothing at the beginning of an episode."""
    fire: bool = False
    """Press FIRE at the beginning of an episode. CleanRL and stable-baselines3 do; the paper does not."""
    life_loss: bool = False
    """A lost life ends the episode, for what is learnt."""
    clip_rewards: bool = True
    """Learn from the sign of the score's change: -1, 0 or 1."""
    replay: int | None = None
    """Transitions that are remembered. The paper's: 1,000,000; by default at most --steps, and what half of the free
    memory holds."""
    learn_from: int | None = None
    """Steps at random before the first update. The paper's: 50,000; by default at most a twentieth of --steps."""
    exploration_steps: int | None = None
    """Steps over which epsilon falls. The paper's: 1,000,000; by default at most a tenth of --steps."""
    final_epsilon: float = 0.1
    """Share of actions at random from there on."""
    batch_size: int = 32
    """Transitions an update learns from."""
    update_every: int = 4
    """Steps to an update."""
    target_every: int | None = None
    """Updates after which the target network becomes what is learnt. The paper's: 10,000; by default at most a 250th of all."""
    discount: float = 0.99
    """Of a reward, for each step until it comes."""
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    """rmsprop as the authors' code has it: centred, epsilon below the root; or adam."""
    lr: float | None = None
    """Learning rate, constant. Default: the paper's 2.5e-4 for rmsprop, and 1e-4 for adam (CleanRL, stable-baselines3)."""
    clip: float | None = None
    """Largest norm of a gradient. (stable-baselines3: 10.)"""
    loss: Literal["huber", "squared"] = "huber"
    """Of the error. 2015 clips its derivative to -1 to 1, which is Huber's; 2013 and CleanRL square."""
    double: bool = False
    """Choose the next action by what is learnt, and value it by the target network (van Hasselt et al. 2016)."""
    duelling: bool = False
    """Add up the value of a state and the advantage of each action (Wang et al. 2016)."""
    n_step: int = 1
    """Steps until the target network is asked what is to come (Sutton 1988; Hessel et al. 2018)."""


@dataclass(frozen=True)
class Schedule:
    """What the paper counts in steps, for a run of so many."""

    replay: int
    learn_from: int
    exploration_steps: int
    target_every: int
    log_every: int
    save_every: int

    @staticmethod
    def of(settings: Settings, most: int = 10**12) -> "Schedule":
        """most: transitions that there is memory for."""
        steps, E = settings.steps, settings.environments
        updates = steps // settings.update_every
        # A fifth more is written over between two checkpoints
        replay = settings.replay or min(1_000_000, steps, most * 5 // 6)
        log_every = max(1, min(steps // 200, max(10_000, replay // 10)) // E) * E
        return Schedule(
            replay,
            min(50_000, steps // 20) if settings.learn_from is None else settings.learn_from,
            settings.exploration_steps or min(1_000_000, max(1, steps // 10)),
            settings.target_every or max(1, min(10_000, updates // 250)),
            log_every,
            max(1, min(steps // 20, replay // 10) // log_every) * log_every,
        )


# Networks


class Convolutions(nn.Module):
    """States (B, history, 84, 84) uint8 to features (B, F): the convolutions of 2015 or 2013.

    Pixels enter as whole numbers, which bf16 holds exactly; their 1/255 is in the first weights.
    """

    def __init__(self, name: str, history: int, frame: tuple[int, int] = (84, 84)):
        super().__init__()
        layers, self.hidden = CONVOLUTIONS[name]
        channels, (height, width) = history, frame
        self.layers = nn.ModuleList()
        for out, kernel, stride in layers:
            self.layers.append(nn.Conv2d(channels, out, kernel, stride))
            channels, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.features = channels * height * width

    def forward(self, states: Tensor) -> Tensor:
        first, *rest = (layer for layer in self.layers if isinstance(layer, nn.Conv2d))
        low = torch.is_autocast_enabled(states.device.type)
        whole = states.to(torch.get_autocast_dtype(states.device.type) if low else torch.float32)
        x = F.relu(F.conv2d(whole, first.weight / 255, first.bias, first.stride))
        for layer in rest:
            x = F.relu(layer(x))
        return x.flatten(1)


class Encoded(nn.Module):
    """States (B, history, H, W) uint8 to features (B, F): any encoder of ours, whose images have a channel a frame."""

    hidden = 512
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Any, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.encoder, self.features = encoder, length_of(encoder)  # MAE's vectors are twice as long as it is wide
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255)

    def forward(self, states: Tensor) -> Tensor:
        return self.encoder((states.float() - self.mean) / self.std)


class Stream(nn.Module):
    """Features (B, F) to outputs (B, A), float32: what two actions are worth may differ by less than bf16 can tell."""

    def __init__(self, features: int, hidden: int, outputs: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(features, hidden), nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.hidden(features))
        with torch.autocast(hidden.device.type, enabled=False):
            return self.out(hidden.float())


class QNetwork(nn.Module):
    """States (B, history, H, W) uint8 to the value of each action (B, A), float32."""

    def __init__(self, trunk: Any, actions: int, duelling: bool = False):
        super().__init__()
        self.trunk = trunk
        self.advantage = Stream(trunk.features, trunk.hidden, actions)
        self.value = Stream(trunk.features, trunk.hidden, 1) if duelling else None

    def forward(self, states: Tensor) -> Tensor:
        features = self.trunk(states)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)  # Wang et al., equation 9


class RMSProp(torch.optim.Optimizer):
    """g / sqrt(mean of g² - (mean of g)² + epsilon), as in the authors' code (Graves 2013, equations 38 to 40, without its
    momentum)."""

    def __init__(self, parameters: Any, lr: float, alpha: float = 0.95, eps: float = 0.01):
        super().__init__(parameters, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if not self.state[p]:
                    self.state[p] = {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                mean, square = self.state[p]["mean"], self.state[p]["square"]
                mean.lerp_(p.grad, 1 - group["alpha"])
                square.mul_(group["alpha"]).addcmul_(p.grad, p.grad, value=1 - group["alpha"])
                spread = torch.addcmul(square, mean, mean, value=-1).add_(group["eps"]).sqrt_()
                p.addcdiv_(p.grad, spread, value=-group["lr"])


# The algorithm (2015, algorithm 1)


class DQN(nn.Module):
    """What is learnt, Q, and the target network that its targets come from."""

    def __init__(
        self, q: QNetwork, actions: int, settings: Settings, target_every: int, device: torch.device, precision: str
    ):
        super().__init__()
        self.q = q.to(device).train()
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.actions, self.settings, self.target_every = actions, settings, target_every
        self.device, self.precision = device, precision
        if settings.optimiser == "adam":
            rate = {"lr": settings.lr or 1e-4, "fused": True}
            self.optimiser: torch.optim.Optimizer = torch.optim.Adam(self.q.parameters(), **rate)
        else:  # the authors add up the gradients of a minibatch; ours is their mean, so that 0.01 becomes so much smaller
            eps = 0.01 / settings.batch_size**2
            self.optimiser = RMSProp(self.q.parameters(), settings.lr or 2.5e-4, eps=eps)
        self.updates = 0

    @torch.no_grad()
    def values(self, states: Tensor) -> Tensor:
        """Q of each action, (B, A)."""
        with autocast(self.device, self.precision):
            return self.q(states.to(self.device))

    def act(self, states: Tensor, epsilon: float, random: np.random.Generator) -> np.ndarray:
        """An action in each state (E,), int64: with probability epsilon any, else the one that is worth most."""
        drawn, at_random = random.integers(0, self.actions, len(states)), random.random(len(states)) < epsilon
        return drawn if at_random.all() else np.where(at_random, drawn, self.values(states).argmax(1).cpu().numpy())

    def targets(self, batch: Transitions) -> Tensor:
        """y: what came, and what the target network thinks will come (B,)."""
        with torch.no_grad(), autocast(self.device, self.precision):
            ahead = self.target(batch.successors)
            if self.settings.double:
                best = self.q(batch.successors).argmax(1, keepdim=True)
                return batch.rewards + batch.discounts * ahead.gather(1, best).squeeze(1)
            return batch.rewards + batch.discounts * ahead.max(1).values

    def loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """The mean error of Q, and that of the best constant in its place."""
        of = F.smooth_l1_loss if self.settings.loss == "huber" else F.mse_loss
        y = self.targets(batch)
        with autocast(self.device, self.precision):
            q = self.q(batch.states)
        q = q.gather(1, batch.actions[:, None]).squeeze(1)
        return of(q, y), of(y.mean().expand_as(y), y)

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step of the optimiser, and every `target_every` of them the target network. batch: on the agent's device."""
        loss, uninformed = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.q.parameters(), self.settings.clip)
        self.optimiser.step()
        self.updates += 1
        if self.updates % self.target_every == 0:
            self.target.load_state_dict(self.q.state_dict())
        return {"loss": loss.detach(), "uninformed": uninformed}


def epsilon_at(step: int, schedule: Schedule, final: float) -> float:
    """Share of actions at random: all until `learn_from`, then falling to `final` along a line."""
    done = (step - schedule.learn_from) / schedule.exploration_steps
    return 1 - (1 - final) * min(1.0, max(0.0, done))


class Playable(Protocol):
    """Games that are played in step, see `unmask.rl.atari.Games`."""

    environments: int
    actions: int

    def reset(self) -> np.ndarray: ...
    def send(self, actions: np.ndarray) -> None: ...
    def receive(self) -> Step: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


def begun(frames: np.ndarray, history: int) -> Tensor:
    """States (E, history, H, W) of episodes that begin with frames (E, H, W)."""
    states = torch.zeros(len(frames), history, *frames.shape[1:], dtype=torch.uint8)
    states[:, -1] = torch.from_numpy(frames)
    return states


def follow(states: Tensor, frames: np.ndarray, starts: np.ndarray) -> Tensor:
    """States one frame later; where an episode starts with it, nothing was before."""
    states = torch.cat([states[:, 1:], torch.from_numpy(frames)[:, None]], 1)
    if starts.any():
        states[torch.from_numpy(starts), :-1] = 0
    return states


def learn(
    agent: DQN,
    games: Playable,
    replay: Replay,
    schedule: Schedule,
    run: Run | None = None,
    *,
    seed: int = 0,
    title: str | None = None,
) -> list[dict[str, Any]]:
    """Play and learn, and return the log: 200 lines or more, whose "scores" are those of the episodes that ended since the last.

    Killed at any moment and called again, it ends with the same weights and the same log, where the arithmetic of the device is
    repeatable. Raises health.Diverged when a loss or weight is NaN or infinite, and Stopped after SIGTERM or Ctrl-C.
    """
    settings, E, file = agent.settings, games.environments, None if run is None else run.folder / "replay.bin"
    random = np.random.default_rng(seed_of(seed, 1))
    step, history, held = 0, [], torch.empty(0)
    scores: list[float] = []
    totals: dict[str, Any] = {"loss": 0.0, "uninformed": 0.0}
    count = 0
    state = run.restore() if run is not None else None
    for path in run.torn if run is not None else ():
        warn(f"[yellow]torn[/] {path.name}: passed over for the one before")
    if state is not None:
        assert file is not None
        step, held, agent.updates, scores = state["step"], state["held"], state["updates"], list(state["scores"])
        totals, count = dict(state["totals"]), state["count"]
        agent.load_state_dict(state["agent"])
        agent.optimiser.load_state_dict(state["optimiser"])
        random.bit_generator.state = json.loads(state["random"])
        replay.restore(file, state["replay"])
        games.restore(state["games"])
        states, running = state["states"], state["running"].numpy()
    else:
        states, running = begun(games.reset(), settings.history), np.zeros(E)
    if run is not None:
        history = run.rewind(step)
    saved, stop = step, False
    since, waited, first = time.perf_counter(), 0.0, step

    def save() -> None:
        nonlocal saved
        assert run is not None and file is not None
        with run.writing("the replay"):
            remembered = replay.save(file)
        told = {"step": step, "held": held, "updates": agent.updates, "scores": list(scores)}
        told |= {"totals": dict(totals), "count": count}  # a signal comes between two lines of the log
        told |= {"agent": agent.state_dict(), "optimiser": agent.optimiser.state_dict(), "replay": remembered}
        told |= {"random": json.dumps(random.bit_generator.state), "games": games.state(), "states": states}
        run.save(step, told | {"running": torch.from_numpy(running)})
        saved = step

    seeded = torch.random.fork_rng([agent.device] if agent.device.type == "cuda" else [])
    with signals(run is not None) as caught, seeded, bar(title, settings.steps, step, "steps", pause=0) as show:
        while step < settings.steps and not stop:
            torch.manual_seed(seed_of(seed, step))
            actions = agent.act(states, epsilon_at(step, schedule, settings.final_epsilon), random)
            games.send(actions)
            last = (step + E) // schedule.log_every > step // schedule.log_every or step + E >= settings.steps
            before = health.snapshot(agent.q) if last else []
            updates = (step + E) // settings.update_every - step // settings.update_every
            if step >= schedule.learn_from and len(replay) and updates:
                if not len(held):
                    held = replay.sample(HELD, np.random.default_rng(seed_of(seed, 2))).states.clone()
                drawn = replay.sample(updates * settings.batch_size, random).to(agent.device)
                for batch in drawn.minibatches(updates):
                    for name, value in agent.update(batch).items():
                        totals[name] = totals[name] + value
                    count += 1
            waiting = time.perf_counter()
            result = games.receive()
            waited += time.perf_counter() - waiting

            ended = result.lost if settings.life_loss else result.over
            rewards = np.sign(result.rewards) if settings.clip_rewards else result.rewards
            replay.add(states[:, -1], actions, rewards, ended, result.cut & ~ended)
            states = follow(states, result.frames, ended | result.cut)
            running = running + result.rewards
            scores += running[result.over].tolist()
            running = np.where(result.over | result.cut, 0.0, running)
            step += E

            stop = bool(caught)
            if (last or stop) and not math.isfinite(float(totals["loss"])):
                raise health.Diverged(f"the loss is NaN or infinite at step {step}")
            if last and count:
                seconds = time.perf_counter() - since
                means = {name: float(value) / count for name, value in totals.items()}
                line = {"step": step, "epoch": agent.updates * settings.batch_size / schedule.replay, **means}
                line |= {"ratio": means["loss"] / max(means["uninformed"], 1e-12)}
                worth = agent.values(held).max(1).values
                line |= {"q": float(worth.mean()), "q_spread": float(worth.std()), "updates": agent.updates}
                line |= {"epsilon": epsilon_at(step, schedule, settings.final_epsilon)}
                line |= {"update_ratio": health.update_ratio(agent.q, before) / max(1, E // settings.update_every)}
                line |= {"scores": scores, **({"score": float(np.mean(scores))} if scores else {})}
                line |= {
                    "images_per_second": (step - first) / seconds,
                    "loader_wait": waited / seconds,
                    "seconds": seconds,
                }
                if not math.isfinite(line["q"]):
                    raise health.Diverged(f"Q is NaN or infinite at step {step}")
                if line["q_spread"] < ALIKE and not any(each["q_spread"] < ALIKE for each in history):
                    words = f"at step {step:,} all states look alike to Q: stop, and take a third of the learning rate"
                    warn(f"[yellow]warning[/] {words}")
                history.append(line)
                show(step, *now(history))
                if run is not None:
                    run.log(line)
                scores, totals, count = [], {"loss": 0.0, "uninformed": 0.0}, 0
                since, waited, first = time.perf_counter(), 0.0, step
            due = step // schedule.save_every > (step - E) // schedule.save_every or step >= settings.steps
            if run is not None and (stop or (last and due)):
                save()
    if stop:
        kept = f"the checkpoint of step {saved:,} is kept"
        raise Stopped(f"stopped at step {step:,} of {settings.steps:,}; {kept}", caught[0])
    return history


def now(history: list[dict[str, Any]]) -> list[str]:
    """The newest line of the log for the screen, the most important first."""
    line = history[-1]
    recent = [score for each in history[-10:] for score in each["scores"]][-20:]
    words = [f"score {np.mean(recent):,.1f}"] if recent else []
    return [*words, f"Q {line['q']:.2f}", f"epsilon {line['epsilon']:.2f}", f"{line['images_per_second']:,.0f} steps/s"]


# Judging


def play(
    act: Callable[[Tensor], np.ndarray],
    games: Playable,
    episodes: int,
    history: int = 4,
    title: str | None = None,
    seen: Callable[[Tensor, np.ndarray, Step], None] | None = None,
) -> list[float]:
    """Scores of so many episodes. Each environment plays its share of them to the end: those that end first are the short ones.

    act: states (E, history, H, W) uint8 to actions (E,). seen: is shown each state, what was done, and what came of it.
    """
    E = games.environments
    left = np.array([episodes // E + (e < episodes % E) for e in range(E)])
    states, running, scores = begun(games.reset(), history), np.zeros(E), []
    with bar(title, episodes, 0, "episodes") as show:
        while left.any():
            actions = act(states)
            games.send(actions)
            result = games.receive()
            if seen is not None:
                seen(states, actions, result)
            running += result.rewards
            ended = result.over | result.cut
            for e in np.flatnonzero(ended & (left > 0)):
                scores.append(float(running[e]))
                left[e] -= 1
                show(len(scores), f"score {np.mean(scores):,.1f}")
            running[ended] = 0
            states = follow(states, result.frames, ended)
    return scores
