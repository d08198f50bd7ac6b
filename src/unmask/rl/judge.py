"""Does it play? Scores with intervals, beside an agent that plays at random and a human, and the verdict in words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from unmask.rl.atari import Games, Step, filmed
from unmask.rl.dqn import ALIKE, DQN, Settings, play
from unmask.training.health import BETTER, Verdict, ratio
from unmask.training.run import whole

RESAMPLES = 10_000
EPSILON = 0.05
"""Share of random actions when an agent is judged (2015, Methods, "Evaluation procedure")."""
AT_ONCE = 8
"""Games at once, when an agent is judged."""
RECENT = 10
"""Lines of the log by which a run that goes on is judged."""
LONGEST_FILM = 1800
"""Steps of a film: two minutes."""


@dataclass(frozen=True)
class Played:
    """Episodes that were played to their end."""

    scores: list[float]
    actions: list[float]
    """The share of each action."""
    typical: tuple[int, int]
    """Environment and number of the episode whose score is the median."""
    done: list[int]
    """What was done in it."""


def judged(agent: DQN, game: str, own: Settings, epsilon: float, episodes: int, seed: int, title: str | None) -> Played:
    """Episodes with a share of actions at random, each environment its part of them."""
    E = min(AT_ONCE, episodes)
    games = Games(game, E, seed, own.frame_skip, own.noop_max, own.fire)
    random = np.random.default_rng(seed)
    counts, running, numbers = np.zeros(games.actions), np.zeros(E), [0] * E
    kept: list[list[int]] = [[] for _ in range(E)]
    ended: list[tuple[float, int, int, list[int]]] = []

    def seen(states: Tensor, actions: np.ndarray, result: Step) -> None:
        nonlocal counts, running
        counts, running = counts + np.bincount(actions, minlength=len(counts)), running + result.rewards
        for e, action in enumerate(actions.tolist()):
            kept[e].append(action)
            if result.over[e] or result.cut[e]:
                if numbers[e] < episodes // E + (e < episodes % E):  # beyond its share it is not judged by
                    ended.append((float(running[e]), e, numbers[e], kept[e]))
                running[e], kept[e], numbers[e] = 0, [], numbers[e] + 1

    scores = play(lambda states: agent.act(states, epsilon, random), games, episodes, own.history, title, seen)
    games.close()
    middle = sorted(ended)[len(ended) // 2]
    return Played(scores, (counts / counts.sum()).tolist(), (middle[1], middle[2]), middle[3])


def film(game: str, own: Settings, found: Played, seed: int, out: Path) -> None:
    """The episode whose score is the median, in colour, as a GIF of 15 pictures a second."""
    prepared = (own.frame_skip, own.noop_max, own.fire)
    frames = filmed(game, seed, found.typical, found.done[:LONGEST_FILM], *prepared)
    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    with whole(out) as beside:
        pictures[0].save(beside, save_all=True, append_images=pictures[1:], duration=67, loop=0, optimize=False)


def interval(scores: list[float], seed: int = 0) -> dict[str, float]:
    """The mean of scores with its 95% bootstrap interval over episodes: "mean", "low", "high", "best", "episodes"."""
    found = np.array(scores)
    means = np.random.default_rng(seed).choice(found, (RESAMPLES, len(found))).mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {
        "mean": float(found.mean()),
        "low": float(low),
        "high": float(high),
        "best": float(found.max()),
        "episodes": len(found),
    }


def normalised(score: float, published: tuple[float, float]) -> float:
    """0 for a random agent, 1 for the human tester (Mnih et al. 2015, figure 3)."""
    random, human = published
    return (score - random) / (human - random)


def verdict(
    own: dict[str, float] | None,
    random: dict[str, float],
    history: list[dict[str, Any]],
    failure: str | None,
    largest: float | None,
    actions: list[float],
) -> Verdict:
    """own, random: intervals of the agent's scores and of random play. largest: what Q cannot exceed, for rewards of at most 1.
    actions: the share of each action in the episodes by which it was judged."""
    slower = ("lower --lr to a third", "raise --target-every: targets that move slower")
    if failure or own is None or not history:
        return Verdict("diverged", failure or "it ended before it logged anything", slower)
    q = history[-1]["q"]
    if largest is not None and abs(q) > largest:
        return Verdict("diverged", f"Q is {q:,.0f}, though no future can be worth more than {largest:,.0f}", slower)
    if history[-1]["q_spread"] < ALIKE:
        return alike(history[-1])
    seen = f"a score of {own['mean']:,.1f} [{own['low']:,.1f}, {own['high']:,.1f}] over {own['episodes']} episodes, at random "
    seen += f"{random['mean']:,.1f} [{random['low']:,.1f}, {random['high']:,.1f}]"
    if own["low"] <= random["high"]:
        if max(actions) > 0.95:
            sentence = f"in {max(actions):.0%} of all states it does the same, and gets {seen}"
            return Verdict("collapsed", sentence, ("more --steps: only then are other actions worth more", *slower))
        advice = [f"more --steps: {history[-1]['step']:,} are few"]
        if ratio(history[-max(5, len(history) // 10) :]) > BETTER:
            advice.append(
                "try three times and a third of the learning rate: Q is foretold no better than by a constant"
            )
        return Verdict("no better than uninformed", seen, (*advice, "--double --n-step 3: rewards travel back faster"))
    recent = [np.mean(line["scores"]) for line in history if line["scores"]]
    rising = len(recent) > 9 and np.mean(recent[-len(recent) // 5 :]) > np.mean(
        recent[-2 * len(recent) // 5 : -len(recent) // 5]
    )
    return Verdict("learning", seen, ("the score was still rising: more --steps",) if rising else ())


def so_far(history: list[dict[str, Any]]) -> Verdict | None:
    """The verdict on a run that goes on: the scores of its newest lines beside that of its first, which was played at random.
    None before there are enough."""
    if history[-1]["q_spread"] < ALIKE:
        return alike(history[-1])
    recent = [line["score"] for line in history[1:] if "score" in line][-RECENT:]
    if history[0]["epsilon"] < 0.8 or "score" not in history[0] or len(recent) < RECENT:
        return None
    own, random = interval(recent), history[0]["score"]
    seen = (
        f"a score of {own['mean']:,.1f} [{own['low']:,.1f}, {own['high']:,.1f}] in the last {RECENT} lines of its log, "
    )
    word = "learning" if own["low"] > random else "no better than uninformed"
    return Verdict(word, f"{seen}{random:,.1f} in the first, at random", ())


def alike(line: dict[str, Any]) -> Verdict:
    """Of a Q to which all states are the same."""
    sentence = f"all states look alike to Q (their largest Q deviate by {line['q_spread']:.2g})"
    advice = "lower --lr to a third: too large steps leave units that nothing excites"
    return Verdict("collapsed", sentence, (advice,))
