"""unmask dqn play and unmask dqn record: watch an agent, and collect what is seen in a game."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from torch import Tensor
from tyro.conf import Positional

from unmask.errors import BadInput
from unmask.rl import judge
from unmask.rl.atari import FRAME, PUBLISHED, Games, Step, known
from unmask.rl.dqn import DQN, Settings, begun, follow
from unmask.screen import bar, console
from unmask.training.run import Run, revive, whole
from unmask.verbs.dqn import network


@dataclass(frozen=True)
class Play:
    """Let an agent play: its score with an interval beside random play, and a film of the episode whose score is the median."""

    run: Positional[str]
    """A run of `unmask dqn`."""
    out: Path
    """The film (.gif): 15 pictures a second, two minutes at most."""
    episodes: int = 10
    """How many it plays."""
    epsilon: float = judge.EPSILON
    """Share of actions at random."""
    seed: int = 1
    """Of the episodes, and of what is random."""


@dataclass(frozen=True)
class Record:
    """Collect what is seen in a game, as images of a channel a frame, to pre-train an encoder on: `unmask pretrain mae --data
    FILE`."""

    out: Path
    """The table (.parquet): images as TIFF, with what was done, the reward, and the episode as group."""
    env: str | None = None
    """The game, as in Pong, played at random."""
    run: str | None = None
    """A run of `unmask dqn` that plays instead."""
    images: int = 20_000
    """How many."""
    history: int = 4
    """Frames, and channels, of an image."""
    every: int = 4
    """Steps between two images of an episode: neighbours are nearly the same."""
    epsilon: float = judge.EPSILON
    """Share of actions at random, where a run plays."""
    seed: int = 0
    """Of the episodes, and of what is random."""


def agent_of(run: str) -> tuple[DQN, Settings, str]:
    """The agent of a run as its newest checkpoint has it, how it learnt, and its game. BadInput if there is none."""
    opened = Run(run)
    stored = opened.settings
    if stored["method"] != "dqn":
        raise BadInput(f"{run} is a run of {stored['method']}: give one of `unmask dqn`")
    own, game = revive(Settings, stored["method_settings"]), str(stored["data"]["name"])
    if (state := opened.restore()) is None:
        raise BadInput(f"{run} has no checkpoint yet: let `unmask dqn` run further")
    games = Games(game, 1, 0)
    games.close()
    agent = DQN(
        network(stored["settings"]["encoder"], games.actions, own),
        games.actions,
        own,
        1,
        torch.device("cpu"),
        "float32",
    )
    agent.load_state_dict(state["agent"])
    agent.q.eval()
    return agent, own, game


def play(settings: Play) -> dict[str, Any]:
    """Play, write the film, and return the scores. BadInput for what is no run, or cannot be written."""
    if settings.out.suffix.lower() != ".gif":
        raise BadInput(f"--out {settings.out}: films are written as .gif")
    if settings.episodes < 2:
        raise BadInput(f"--episodes is {settings.episodes}: an interval wants two or more")
    agent, own, game = agent_of(settings.run)
    found = judge.judged(agent, game, own, settings.epsilon, settings.episodes, settings.seed, game)
    judge.film(game, own, found, settings.seed, settings.out)
    score, (random, human) = judge.interval(found.scores), PUBLISHED.get(game, (None, None))
    beside = "" if random is None else f"; published: at random {random:,}, a human {human:,}"
    said = f"{score['mean']:,.1f} [{score['low']:,.1f}, {score['high']:,.1f}] over {settings.episodes} episodes{beside}"
    console.print(f"{game}: a score of {said}")
    console.print(f"Film of the episode whose score is the median: {settings.out}", markup=False)
    return {"game": game, "scores": found.scores, "score": score, "actions": found.actions, "film": str(settings.out)}


def record(settings: Record) -> dict[str, Any]:
    """Play until there are so many images, and write them. BadInput for what cannot be played or written."""
    if settings.out.suffix.lower() != ".parquet":
        raise BadInput(f"--out {settings.out}: images are written into a table, as .parquet")
    if (settings.env is None) == (settings.run is None):
        raise BadInput("say what to play: --env Pong, at random, or --run RUN, whose agent plays")
    if min(settings.images, settings.history, settings.every) < 1:
        raise BadInput("--images, --history and --every are 1 or more")
    agent, own, game = agent_of(settings.run) if settings.run else (None, Settings(), known(str(settings.env)))
    if agent is not None and settings.history != own.history:
        raise BadInput(f"--history {settings.history}: the agent of {settings.run} sees {own.history} frames")
    games = Games(game, judge.AT_ONCE, settings.seed, own.frame_skip, own.noop_max, own.fire)
    random, rows = np.random.default_rng(settings.seed), []
    states, step = begun(games.reset(), settings.history), 0
    with bar(game, settings.images, 0, "images") as show:
        while len(rows) < settings.images:
            if agent is None:
                actions = random.integers(0, games.actions, games.environments)
            else:
                actions = agent.act(states, settings.epsilon, random)
            numbers = games.episodes.copy()
            games.send(actions)
            result = games.receive()
            if step % settings.every == settings.every - 1:
                rows += shown(states, actions, result, numbers)
                show(min(len(rows), settings.images))
            states, step = follow(states, result.frames, result.over | result.cut), step + 1
    games.close()
    rows = rows[: settings.images]
    count = len({row["group"] for row in rows})
    with whole(settings.out) as beside:
        pd.DataFrame(rows).to_parquet(beside)
    side = f"{FRAME[0]} x {FRAME[1]} pixels and {settings.history} channels"
    console.print(
        f"{len(rows):,} images of {side}, of {count} episodes of {game}: {settings.out}",
        markup=False,
    )
    return {"game": game, "images": len(rows), "episodes": count, "out": str(settings.out)}


def shown(states: Tensor, actions: np.ndarray, result: Step, numbers: np.ndarray) -> list[dict[str, Any]]:
    """A row of the table for each game: its state as a TIFF of a channel a frame."""
    rows = []
    for e, state in enumerate(states.numpy()):
        file = io.BytesIO()
        tifffile.imwrite(
            file, np.moveaxis(state, 0, -1), photometric="minisblack", planarconfig="contig", compression="zlib"
        )
        told = {"action": int(actions[e]), "reward": float(result.rewards[e]), "group": f"{e}-{numbers[e]}"}
        rows.append({"image": file.getvalue(), **told})
    return rows
