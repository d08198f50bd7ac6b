"""DQN on Pong: steps a second of the whole loop, and what a replay costs, beside stable-baselines3 and CleanRL.

    uv run python benchmarks/dqn.py [--rounds 5] [--only steps|replay|pong] [--device cpu]

`steps`: environment steps a second of acting, emulator, replay and updates together, once learning has begun. The same for all:
the network of 2015, Adam at 1e-4, an update of 32 transitions every 4 steps, the target network every 1,000, 1% of the actions at
random, torch's own number of threads, 1,000 steps at random before the first update; the first 1,500 steps are left out. Nobody
writes checkpoints or logs.

- unmask: `unmask.rl.dqn.learn` with network, games and replay as `unmask dqn --optimiser adam` builds them, 8 games at once; in
  bf16 where the processor has it, and in float32.
- stable-baselines3: DQN("CnnPolicy") on make_atari_env (AtariWrapper) and VecFrameStack, with the settings of its zoo; one game.
- CleanRL: its dqn_atari.py is a script for gymnasium 0.29 and cannot be imported. What runs here is its loop, written anew from
  the same components: the same wrappers in the same order (stable-baselines3's, of which its own are copies, and gymnasium's),
  stable-baselines3's ReplayBuffer (its own is a copy), an nn.Sequential network on x / 255, torch's Adam as it comes, the squared
  error; one game. What it writes to TensorBoard is left out.

`replay`: minibatches of 32 from 20,000 transitions, in transitions a second, and the bytes of each buffer: ours with the room
that checkpoints want (`spare`), theirs with `optimize_memory_usage` and without. Ours draws what the loop draws: the
minibatches of a step at once, two of eight games; beside it one, and four.

`pong`: not a comparison, but a run of about an hour on two cores: `unmask dqn` with the settings of docs/dqn.md, "On little
hardware". Called again after a stop it goes on. Its curve is drawn into docs/pong.png.

In each round all take their turn, in one process; ratios are taken round by round, and their median is quoted with the least
and the most. Needs stable-baselines3 and opencv-python-headless. Writes benchmarks/results/dqn.json, by kind of device.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, RecordEpisodeStatistics, ResizeObservation
from stable_baselines3 import DQN as TheirDQN
from stable_baselines3.common.atari_wrappers import (
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
)
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack
from torch import Tensor, nn

from unmask.rl import page
from unmask.rl.atari import FRAME, Games, Step
from unmask.rl.dqn import DQN, Schedule, Settings, learn
from unmask.rl.replay import Replay
from unmask.training import engine
from unmask.training.run import Run
from unmask.verbs.dqn import network

ROOT = Path(__file__).parent.parent
GAME = "PongNoFrameskip-v4"
REPLAY = 20_000
LEARN_FROM, WARM = 1_000, 1_500
"""Steps at random, and steps before the clock starts."""
EVERY, TARGET_EVERY = 4, 1_000
"""Steps to an update, and to a new target network."""
EPSILON = 0.01
EPISODE = 1_000
"""Steps of an episode in `replay`: of Pong at random it has some 900."""

gymnasium.register_envs(ale_py)


def speed(times: list[float], at_once: int = 1) -> float:
    """Steps a second from step WARM on. times: when each step of so many games was over."""
    timed = times[WARM // at_once :]
    return at_once * (len(timed) - 1) / (timed[-1] - timed[0])


# Ours


class Timed(Games):
    """Games that remember when each step was over."""

    def reset(self) -> np.ndarray:
        self.times: list[float] = []
        return super().reset()

    def receive(self) -> Step:
        result = super().receive()
        self.times.append(time.perf_counter())
        return result


def ours(steps: int, seed: int, device: torch.device, precision: str) -> float:
    own = Settings(steps=WARM + steps, optimiser="adam", final_epsilon=EPSILON, update_every=EVERY)
    schedule = Schedule(
        REPLAY, LEARN_FROM, exploration_steps=1, target_every=TARGET_EVERY // EVERY, log_every=50_000, save_every=REPLAY // 10
    )  # fmt: skip
    games = Timed(GAME, own.environments, seed, own.frame_skip, own.noop_max, own.fire)
    torch.manual_seed(seed)
    agent = DQN(network("nature", games.actions, own), games.actions, own, schedule.target_every, device, precision)
    memories = Replay(REPLAY, own.environments, FRAME, own.history, own.n_step, own.discount, schedule.save_every)
    learn(agent, games, memories, schedule, seed=seed)
    games.close()
    return speed(games.times, own.environments)


# stable-baselines3


class Clock(BaseCallback):
    """Remembers when each step was over."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def _on_step(self) -> bool:
        self.times.append(time.perf_counter())
        return True


def stable_baselines3(steps: int, seed: int, device: torch.device) -> float:
    games = VecFrameStack(make_atari_env(GAME, seed=seed), n_stack=4)
    agent = TheirDQN(
        "CnnPolicy",
        games,
        learning_rate=1e-4,
        buffer_size=REPLAY,
        learning_starts=LEARN_FROM,
        batch_size=32,
        train_freq=EVERY,
        gradient_steps=1,
        target_update_interval=TARGET_EVERY,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        seed=seed,
        device=device,
    )
    clock = Clock()
    agent.learn(WARM + steps, callback=clock)
    games.close()
    return speed(clock.times)


# CleanRL


def prepared() -> gymnasium.Env:
    """A game as its make_env wraps it."""
    env = MaxAndSkipEnv(NoopResetEnv(RecordEpisodeStatistics(gymnasium.make(GAME)), noop_max=30), skip=4)
    env = ClipRewardEnv(FireResetEnv(EpisodicLifeEnv(env)))
    return FrameStackObservation(GrayscaleObservation(ResizeObservation(env, FRAME)), 4)


class Sequential(nn.Module):
    """Its QNetwork."""

    def __init__(self, actions: int):
        super().__init__()
        convolutions = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3)]
        head = [nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, actions)]
        self.network = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), *head)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x / 255.0)


def cleanrl(steps: int, seed: int, device: torch.device) -> float:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    envs = gymnasium.vector.SyncVectorEnv([prepared], autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
    space, actions_there = envs.single_observation_space, envs.single_action_space
    assert isinstance(actions_there, gymnasium.spaces.Discrete)
    actions_there.seed(seed)
    q, target = (Sequential(int(actions_there.n)).to(device) for _ in range(2))
    target.load_state_dict(q.state_dict())
    optimiser = torch.optim.Adam(q.parameters(), lr=1e-4)
    buffer = ReplayBuffer(
        REPLAY, space, actions_there, device, optimize_memory_usage=True, handle_timeout_termination=False
    )
    times = []
    seen, _ = envs.reset(seed=seed)
    for step in range(WARM + steps):
        if step < LEARN_FROM or random.random() < EPSILON:
            actions = np.array([actions_there.sample()])
        else:
            actions = q(torch.Tensor(seen).to(device)).argmax(1).cpu().numpy()
        ahead, rewards, terminations, truncations, told = envs.step(actions)
        times.append(time.perf_counter())
        successor = ahead.copy()
        for e in np.flatnonzero(truncations):
            successor[e] = told["final_obs"][e]
        buffer.add(seen, successor, actions, rewards, terminations, told)
        seen = ahead
        if step > LEARN_FROM and step % EVERY == 0:
            batch = buffer.sample(32)
            with torch.no_grad():
                best = target(batch.next_observations).max(1).values
                y = batch.rewards.flatten() + 0.99 * best * (1 - batch.dones.flatten())
            loss = F.mse_loss(y, q(batch.observations).gather(1, batch.actions).squeeze())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if step > LEARN_FROM and step % TARGET_EVERY == 0:
            for old, new in zip(target.parameters(), q.parameters(), strict=True):
                old.data.copy_(new.data)
    envs.close()
    return speed(times)


# Replays


def filled(device: torch.device) -> tuple[dict[str, tuple[Callable[[], Any], int]], dict[str, int]]:
    """How each buffer draws, how many minibatches that are, and the bytes that it takes. All hold as many frames of noise."""
    noise = np.random.default_rng(0)
    E = Settings().environments
    ours = Replay(REPLAY, E, FRAME, spare=REPLAY // 10)
    space, actions = gymnasium.spaces.Box(0, 255, (4, *FRAME), np.uint8), gymnasium.spaces.Discrete(6)
    theirs = {
        "stable-baselines3": ReplayBuffer(REPLAY, space, actions, device),
        "stable-baselines3, optimize_memory_usage": ReplayBuffer(
            REPLAY, space, actions, device, optimize_memory_usage=True, handle_timeout_termination=False
        ),
    }
    for step in range(ours.length):
        frames = torch.from_numpy(noise.integers(0, 256, (E, *FRAME), dtype=np.uint8))
        over = np.full(E, step % EPISODE == EPISODE - 1)
        ours.add(frames, noise.integers(0, 6, E), np.zeros(E), over, np.zeros(E, bool))
    seen = noise.integers(0, 256, (REPLAY + 4, *FRAME), dtype=np.uint8)
    for step in range(REPLAY):
        over = np.array([step % EPISODE == EPISODE - 1])
        for buffer in theirs.values():
            before, after = seen[None, step : step + 4], seen[None, step + 1 : step + 5]
            buffer.add(before, after, np.array([step % 6]), np.zeros(1), over, [{}])

    def sample(minibatches: int) -> Any:
        told = ours.sample(32 * minibatches, noise).to(device).minibatches(minibatches)
        return [(batch.states, batch.successors) for batch in told]

    draws: dict[str, tuple[Callable[[], Any], int]] = {
        name: (lambda at_once=at_once: sample(at_once), at_once)
        for name, at_once in {
            "unmask": E // EVERY,
            "unmask, of one game": 1,
            "unmask, of 16 games": 16 // EVERY,
        }.items()
    }
    draws |= {name: (lambda buffer=buffer: buffer.sample(32), 1) for name, buffer in theirs.items()}
    size = {"unmask": sum(x.nbytes for x in vars(ours).values() if isinstance(x, np.ndarray | Tensor))}
    for name, buffer in theirs.items():
        size[name] = sum(x.nbytes for x in vars(buffer).values() if isinstance(x, np.ndarray))
    return draws, size


def drawn(draw: Callable[[], Any], at_once: int, batches: int, device: torch.device) -> float:
    """Transitions a second. at_once: minibatches of a draw."""
    for _ in range(20):
        draw()
    began = time.perf_counter()
    for _ in range(batches // at_once):
        draw()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 32 * batches / (time.perf_counter() - began)


# Turns


def turns(contestants: dict[str, Callable[[int], float]], rounds: int, unit: str) -> dict[str, dict[str, Any]]:
    """What each does a second: the median over rounds, all of them, and for ours the ratio to each peer."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, contestant in contestants.items():
            rates[name].append(contestant(turn))
    found: dict[str, dict[str, Any]] = {}
    for name, values in rates.items():
        found[name] = {unit: statistics.median(values), "rounds": values}
        line = f"{name:<42}{statistics.median(values):>10,.0f} {unit.replace('_', ' ')}"
        for peer in (peer for peer in rates if name.startswith("unmask") and not peer.startswith("unmask")):
            ratios = [a / b for a, b in zip(values, rates[peer], strict=True)]
            told = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            found[name][f"over {peer}"] = told
            line += f"\n{'':<42}{told['median']:>10.2f} times {peer} [{told['least']:.2f}, {told['most']:.2f}]"
        print(line)
    return found


def steps_a_second(device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    fast, _ = engine.choose_precision("auto", device)
    contestants: dict[str, Callable[[int], float]] = {
        "unmask": lambda turn: ours(steps, turn, device, fast),
        "unmask, float32": lambda turn: ours(steps, turn, device, "float32"),
        "stable-baselines3": lambda turn: stable_baselines3(steps, turn, device),
        "CleanRL": lambda turn: cleanrl(steps, turn, device),
    }
    found = turns(contestants, rounds, "steps_per_second")
    return {"steps": steps, "precision": fast, **found}


def samples_a_second(device: torch.device, rounds: int, batches: int) -> dict[str, Any]:
    draws, size = filled(device)
    contestants = {name: lambda turn, how=how: drawn(*how, batches, device) for name, how in draws.items()}
    found = turns(contestants, rounds, "samples_per_second")
    for name, taken in size.items():
        found[name] |= {"bytes": taken, "bytes_per_transition": taken / REPLAY, "times_ours": taken / size["unmask"]}
        print(f"{name:<42}{taken / REPLAY:>10,.0f} bytes a transition, {taken / size['unmask']:.2f} times ours")
    return {"transitions": REPLAY, "batches": batches, **found}


# An hour of Pong

PONG = (
    "--env Pong --encoder nips --steps 1500000 --optimiser adam --double --n-step 3 --replay 200000 --learn-from 10000 "
    "--exploration-steps 60000 --final-epsilon 0.02 --target-every 500"
)
LINES = 50
"""Of the curve that is kept."""


def pong(folder: Path, device: torch.device) -> dict[str, Any]:
    """The run in `folder`, made or gone on with unless it is whole: what became of it, and its curve."""
    run = Run(folder)
    if not (folder / "result.json").is_file():
        call = f"dqn {PONG} --device {device.type} --resume --out"
        subprocess.run([sys.executable, "-m", "unmask", *call.split(), str(folder)], check=True)
    result, history = run.read("result.json"), run.history()
    (ROOT / "docs" / "pong.png").write_bytes(page.score_curve(history, result) or b"")
    kept = ("verdict", "score", "random", "human_normalised", "steps", "frames", "updates", "seconds", "precision")
    curve = []
    for part in np.array_split(np.array(history), LINES):
        scores = [score for line in part for score in line["scores"]]
        means = {name: round(statistics.mean(line[name] for line in part), 4) for name in ("q", "q_spread", "ratio")}
        told = {"episodes": len(scores), "score": round(statistics.mean(scores), 2) if scores else None}
        curve.append({"step": part[-1]["step"], **told, **means})
    print(f"pong: {result['sentence']}")
    return {"command": f"unmask dqn {PONG}", **{name: result[name] for name in kept}, "curve": curve}


def machine(device: torch.device) -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    told = {"processor": named[1] if named else platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if device.type == "cuda":
        told |= {"gpu": torch.cuda.get_device_name(device)}
    told |= {name: version(name) for name in ("unmask", "ale-py", "gymnasium", "stable-baselines3", "numpy")}
    told |= {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "python": platform.python_version()}
    return told | {"date": datetime.now(UTC).date().isoformat()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2_000, help="steps a turn")
    parser.add_argument("--batches", type=int, default=1_000, help="minibatches a turn")
    parser.add_argument("--only", choices=("steps", "replay", "pong"))
    parser.add_argument("--run", type=Path, default=Path("runs/pong-hour"), help="folder of the run of `pong`")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "dqn.json")
    settings = parser.parse_args()
    device = engine.choose_device(settings.device)
    if device.type == "cpu":
        engine.keep_memory()  # as `unmask dqn` does; it helps the others as well
    results = json.loads(settings.out.read_text()) if settings.out.is_file() else {}
    there = results.setdefault(device.type, {})
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "steps": lambda: {"rounds": settings.rounds, **steps_a_second(device, settings.rounds, settings.steps)},
        "replay": lambda: {"rounds": settings.rounds, **samples_a_second(device, settings.rounds, settings.batches)},
        "pong": lambda: pong(settings.run, device),
    }
    for name in (settings.only,) if settings.only else parts:
        there[name] = {"machine": machine(device), **parts[name]()}
    settings.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
