"""unmask dqn: learn to play a game from its pixels and its score, and say how well."""

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.table import Table

from unmask import models
from unmask.errors import BadInput
from unmask.rl import judge
from unmask.rl.atari import FRAME, PUBLISHED, Games, known
from unmask.rl.dqn import CONVOLUTIONS, DQN, Convolutions, Encoded, QNetwork, Schedule, Settings, learn
from unmask.rl.replay import Replay
from unmask.screen import console
from unmask.training import engine, health
from unmask.training.run import Run, plain
from unmask.verbs.load import load
from unmask.verbs.plan import memory
from unmask.verbs.train import conclude, provenance, resumed

Own = Settings


@dataclass(frozen=True)
class Dqn:
    """Learn to play an Atari game from its pixels and its score alone: DQN (Mnih et al. 2013, 2015)."""

    env: str | None = None
    """The game: Pong, Breakout, SpaceInvaders, … as ale-py has them, which carries the games."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of the run, to be created."""
    encoder: str = "nature"
    """What looks at the frames: nature (the convolutions of 2015), nips (of 2013), any encoder such as cct-2/3x2 or vit-tiny/12,
    or a run of `unmask pretrain` on what `unmask dqn record` collected."""
    evaluate: int = 30
    """Episodes by which the agent is judged at the end, with 5% of its actions at random."""
    resume: bool = False
    """Go on with the run in --out, with its own settings; begin it if there is none yet."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware."""
    seed: int = 0
    """Of weights, games, and what is random in playing and replaying."""


def dqn(settings: Dqn, own: Settings) -> dict[str, Any]:
    """Learn, judge, and return what result.json says. BadInput for what cannot be used."""
    if settings.out is None or (settings.env is None and not settings.resume):
        raise BadInput("a game and a folder are needed, as in unmask dqn --env Pong --out runs/pong")
    out = settings.out
    if settings.resume and (out / "settings.yaml").is_file():
        settings, own = resumed(Run(out).settings, "dqn", settings, own)
    if settings.env is None:
        raise BadInput(f"{out} holds no run to go on with: name a game, as in --env Pong")
    check(settings, own)
    device = engine.choose_device(settings.device)
    precision, why = engine.choose_precision(settings.precision, device)
    if device.type == "cpu":
        engine.keep_memory()
    game = known(settings.env)
    free, _ = memory(None, torch.device("cpu"), True)
    schedule = Schedule.of(own, (free or 2**40) // 2 // Replay.bytes_for(1))
    games = Games(game, own.environments, settings.seed, own.frame_skip, own.noop_max, own.fire)
    torch.manual_seed(settings.seed)
    q = network(settings.encoder, games.actions, own)
    agent = DQN(q, games.actions, own, schedule.target_every, device, precision)
    run = Run.create(out, described(settings, own, schedule, game, agent, precision, why), resume=settings.resume)
    memories = Replay(
        schedule.replay, own.environments, FRAME, own.history, own.n_step, own.discount, schedule.save_every
    )
    announce(run, game, own, agent, memories)
    failure = None
    try:
        history = learn(agent, games, memories, schedule, run, seed=settings.seed, title="dqn")
    except health.Diverged as error:
        failure, history = str(error), run.history()
    games.close()

    asked = {"episodes": settings.evaluate, "seed": settings.seed + 1}
    random = judge.judged(agent, game, own, 1.0, title="at random", **asked)
    found = None if failure else judge.judged(agent, game, own, judge.EPSILON, title="judging", **asked)
    largest = 1 / (1 - own.discount) if own.clip_rewards and own.discount < 1 else None
    score = None if found is None else judge.interval(found.scores)
    told = judge.verdict(
        score, judge.interval(random.scores), history, failure, largest, found.actions if found else [1.0]
    )
    result = {
        "method": "dqn",
        "game": game,
        "verdict": told.word,
        "sentence": told.sentence,
        "advice": list(told.advice),
    }
    result |= {"score": score, "random": judge.interval(random.scores), "epsilon": judge.EPSILON}
    if game in PUBLISHED and score is not None:
        result |= {"published": {"random": PUBLISHED[game][0], "human": PUBLISHED[game][1]}}
        result |= {
            "human_normalised": {k: judge.normalised(score[k], PUBLISHED[game]) for k in ("mean", "low", "high")}
        }
    seconds = sum(line["seconds"] for line in history)
    result |= {"steps": own.steps, "frames": own.steps * own.frame_skip, "updates": agent.updates, "seconds": seconds}
    if history:
        tail = history[-max(1, len(history) // 10) :]
        result |= {"loss": health.mean([line["loss"] for line in tail])}
        result |= {"uninformed_loss": health.mean([line["uninformed"] for line in tail])}
        result |= {"images_per_second": history[-1]["step"] / max(seconds, 1e-9), "q": history[-1]["q"]}
    result |= {"device": str(device), "precision": precision}
    result |= {"encoder_parameters": sum(p.numel() for p in agent.q.parameters())}
    if found is not None:
        judge.film(game, own, found, settings.seed + 1, run.folder / "play.gif")
    conclude(run, result)
    return result


def check(settings: Dqn, own: Settings) -> None:
    """BadInput for settings that no run could have."""
    least = {
        "steps": 1,
        "environments": 1,
        "history": 1,
        "frame_skip": 2,
        "noop_max": 0,
        "batch_size": 1,
        "update_every": 1,
    }
    least |= {"n_step": 1, "replay": 1, "learn_from": 0, "exploration_steps": 1, "target_every": 1}
    for name, low in least.items():
        if (value := getattr(own, name)) is not None and value < low:
            raise BadInput(f"--{name.replace('_', '-')} is {value}: at least {low} is needed")
    if settings.evaluate < 2:
        raise BadInput(f"--evaluate is {settings.evaluate}: an interval wants two episodes or more")
    if not 0 <= own.final_epsilon <= 1 or not 0 < own.discount <= 1:
        raise BadInput("--final-epsilon and --discount are shares, between 0 and 1")


def network(encoder: str, actions: int, own: Settings) -> QNetwork:
    """Q with the trunk called so: convolutions of a paper, an encoder by name, or one that a run trained."""
    if encoder in CONVOLUTIONS:
        return QNetwork(Convolutions(encoder, own.history), actions, own.duelling)
    if Path(encoder).exists():
        trained, preprocess = load(encoder)
        if trained.channels != own.history:
            raise BadInput(
                f"--encoder {encoder} sees {trained.channels} channels, and a state has {own.history} frames: pre-train on what "
                f"`unmask dqn record --history {own.history}` collects"
            )
        trunk = Encoded(models.adapted(trained, FRAME), preprocess.mean, preprocess.std)
    else:
        built = models.build(encoder, image_size=FRAME, channels=own.history)
        trunk = Encoded(built, (0.5,) * own.history, (0.5,) * own.history)
    return QNetwork(trunk, actions, own.duelling)


def described(
    settings: Dqn, own: Settings, schedule: Schedule, game: str, agent: DQN, precision: str, why: str
) -> dict[str, Any]:
    """What settings.yaml says."""
    whole = dataclasses.replace(
        own,
        **{name: getattr(schedule, name) for name in ("replay", "learn_from", "exploration_steps", "target_every")},
        lr=agent.optimiser.param_groups[0]["lr"],
    )
    shorter = {
        "replay": "the paper's 1,000,000, at most --steps and what half of the free memory holds",
        "learn_from": "the paper's 50,000, at most a twentieth of --steps",
        "exploration_steps": "the paper's 1,000,000, at most a tenth of --steps",
        "target_every": "the paper's 10,000 updates, at most a 250th of all",
        "lr": "the paper's" if own.optimiser == "rmsprop" else "CleanRL's and stable-baselines3's",
    }
    reasons = {name: "as asked" if getattr(own, name) is not None else words for name, words in shorter.items()}
    return {
        **provenance("unmask.dqn(…)"),
        "ale-py": version("ale-py"),
        "method": "dqn",
        "settings": plain(settings) | {"steps": own.steps, "precision": precision},
        "method_settings": plain(whole),
        "reasons": reasons | {"precision": why},
        "data": {"name": game},
        "encoder": {"name": settings.encoder},
    }


def announce(run: Run, game: str, own: Settings, agent: DQN, memories: Replay) -> None:
    """Say what is about to happen, each value that the paper does not fix with its reason."""
    stated = run.settings
    console.print(f"[bold]dqn[/] on {game}, into {run.folder}: {own.steps:,} steps of {own.frame_skip} frames each")
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    for name, reason in stated["reasons"].items():
        value = stated["method_settings"].get(name, stated["settings"].get(name))
        table.add_row(name, f"[bold]{f'{value:,}' if isinstance(value, int) else value}[/]", f"[dim]{reason}[/]")
    console.print(table)
    memory_gib = memories.frames.nbytes / 2**30
    parameters = sum(p.numel() for p in agent.q.parameters()) / 1e6
    console.print(f"{parameters:.1f}M parameters; the replay takes {memory_gib:.2g} GiB of memory, and of disk")
