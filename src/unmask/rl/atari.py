"""Games of the Arcade Learning Environment (Bellemare et al. 2013), several at once, as Mnih et al. 2015 prepare them (Methods,
"Preprocessing" and "Evaluation procedure"): grey frames of 84 x 84 pixels, an action held for k frames, of the last two of them
the brighter pixel, up to 30 frames of doing nothing at the beginning of an episode.

Each episode is a function of its seed and its actions: so a run that was stopped plays its games up to where they were.

Deviations. Frames are shrunk by area and not bilinearly, grey is the emulator's own, and fewer than 30 idle frames are drawn
(0 to 29), as ale-py's vectorised environment does. `fire` presses FIRE first, as CleanRL and stable-baselines3 do; the paper
does not.
"""

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unmask.errors import BadInput

FRAME = (84, 84)
LONGEST = 108_000
"""Frames after which an episode is broken off: half an hour at 60 a second."""


@dataclass(frozen=True)
class Step:
    """What came of one action in each of E games."""

    frames: np.ndarray
    """(E, H, W) uint8: what is seen now; of an episode that ended, the first of the next."""
    rewards: np.ndarray
    """(E,) float32: the change of the score."""
    lost: np.ndarray
    """(E,) bool: a life was lost, or the game."""
    over: np.ndarray
    """(E,) bool: the game is over."""
    cut: np.ndarray
    """(E,) bool: it was broken off, being too long."""


class Games:
    """E episodes of one game, played in step."""

    def __init__(
        self, game: str, environments: int, seed: int, frame_skip: int = 4, noop_max: int = 30, fire: bool = False
    ):
        """game: Pong, or as ale-py spells it, pong. BadInput if there is none of this name."""
        vector_env = imported()
        self.name = known(game)
        self.env = vector_env.AtariVectorEnv(
            self.name, environments, stack_num=1, frameskip=frame_skip, noop_max=noop_max, use_fire_reset=fire,
            reward_clipping=False, max_num_frames_per_episode=LONGEST, num_threads=min(environments, torch.get_num_threads()),
        )  # fmt: skip
        self.environments, self.seed = environments, seed
        self.actions = int(self.env.single_action_space.n)
        self.episodes = np.zeros(environments, dtype=np.int64)
        """Episodes that were begun before this one, of each environment."""
        self.lives = np.zeros(environments, dtype=np.int64)
        self.played: list[list[int]] = [[] for _ in range(environments)]
        """Actions of this episode, of each environment."""

    def _seeds(self, which: np.ndarray) -> np.ndarray:
        """The seeds of these environments' episodes."""
        return np.array([seed_of(self.seed, int(e), int(self.episodes[e])) for e in np.flatnonzero(which)])

    def reset(self) -> np.ndarray:
        """The first frames (E, H, W) uint8."""
        which = np.ones(self.environments, dtype=bool)
        frames, told = self.env.reset(seed=self._seeds(which))
        self.lives = told["lives"].copy()
        self.played = [[] for _ in range(self.environments)]
        return frames[:, 0].copy()

    def send(self, actions: np.ndarray) -> None:
        """Begin a step; meanwhile something else may be done."""
        for played, action in zip(self.played, actions.tolist(), strict=True):
            played.append(action)
        self.env.send(actions.astype(np.int64))

    def receive(self) -> Step:
        """What came of it. Games that are over are begun anew."""
        frames, rewards, over, cut, told = self.env.recv()
        frames, rewards, over, cut = frames[:, 0].copy(), rewards.astype(np.float32), over.copy(), cut.copy()
        lost, self.lives = over | (told["lives"] < self.lives), told["lives"].copy()
        if (ended := over | cut).any():
            self.episodes += ended
            anew, told = self.env.reset(seed=self._seeds(ended), options={"reset_mask": ended})
            frames[ended] = anew[ended, 0]
            self.lives[ended] = told["lives"][ended]
            for e in np.flatnonzero(ended):
                self.played[e] = []
        return Step(frames, rewards, lost, over, cut)

    def state(self) -> dict[str, Any]:
        """What a checkpoint remembers."""
        return {
            "episodes": torch.from_numpy(self.episodes.copy()),
            "played": [torch.tensor(each, dtype=torch.uint8) for each in self.played],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Play the episodes up to where they were: those that are further on begin earlier."""
        self.episodes = state["episodes"].numpy().copy()
        self.reset()
        played = [each.tolist() for each in state["played"]]
        longest = max(map(len, played))
        for step in range(longest):
            begin = np.array([len(each) == longest - step for each in played])
            if step and begin.any():
                self.env.reset(seed=self._seeds(begin), options={"reset_mask": begin})
            actions = [each[step - longest] if len(each) >= longest - step else 0 for each in played]
            _, _, _, _, told = self.env.step(np.array(actions, dtype=np.int64))
            self.lives = told["lives"].copy()
        idle = np.array([not each for each in played])
        if longest and idle.any():
            _, told = self.env.reset(seed=self._seeds(idle), options={"reset_mask": idle})
            self.lives = told["lives"].copy()
        self.played = played

    def close(self) -> None:
        self.env.close()


def seed_of(seed: int, environment: int, episode: int) -> int:
    """Of each episode its own."""
    return int(np.random.SeedSequence((seed, environment, episode)).generate_state(1)[0]) >> 1


def filmed(
    game: str, seed: int, which: tuple[int, int], actions: list[int], frame_skip: int, noop_max: int, fire: bool
) -> np.ndarray:
    """An episode of `Games` once more, in colour: (T, 210, 160, 3) uint8. which: the environment, and its episode's number."""
    env = imported().AtariVectorEnv(
        known(game), 1, stack_num=1, frameskip=frame_skip, noop_max=noop_max, use_fire_reset=fire, grayscale=False,
        img_height=210, img_width=160, max_num_frames_per_episode=LONGEST,
    )  # fmt: skip
    frames = [env.reset(seed=np.array([seed_of(seed, *which)]))[0][0, 0].copy()]
    frames += [env.step(np.array([action]))[0][0, 0].copy() for action in actions]
    env.close()
    return np.stack(frames)


def imported() -> Any:
    """ale_py.vector_env; BadInput, with the cure, where it is not installed."""
    try:
        from ale_py import vector_env
    except ImportError:
        raise BadInput("the games are not installed: pip install 'unmask[rl]'") from None
    return vector_env


def known(game: str) -> str:
    """As ale-py spells it: of SpaceInvaders, space-invaders or ALE/SpaceInvaders-v5, space_invaders. BadInput if it is none."""
    imported()
    from ale_py import roms

    name = game.removeprefix("ALE/").split("-v")[0].removesuffix("NoFrameskip")
    spelt = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_").replace("-", "_").replace(" ", "_")
    there = sorted(roms.get_all_rom_ids())
    plain = {each.replace("_", ""): each for each in there}
    if (found := plain.get(spelt.replace("_", ""))) is None:
        near = difflib.get_close_matches(spelt, there, n=1)
        raise BadInput(f"--env {game}: no game of ale-py is called so" + (f"; did you mean {near[0]}?" if near else ""))
    return found


PUBLISHED = {
    "alien": (227.8, 6875), "amidar": (5.8, 1676), "assault": (222.4, 1496), "asterix": (210, 8503),
    "asteroids": (719.1, 13157), "atlantis": (12850, 29028), "bank_heist": (14.2, 734.4), "battle_zone": (2360, 37800),
    "beam_rider": (363.9, 5775), "bowling": (23.1, 154.8), "boxing": (0.1, 4.3), "breakout": (1.7, 31.8),
    "centipede": (2091, 11963), "chopper_command": (811, 9882), "crazy_climber": (10781, 35411),
    "demon_attack": (152.1, 3401), "double_dunk": (-18.6, -15.5), "enduro": (0, 309.6), "fishing_derby": (-91.7, 5.5),
    "freeway": (0, 29.6), "frostbite": (65.2, 4335), "gopher": (257.6, 2321), "gravitar": (173, 2672),
    "hero": (1027, 25763), "ice_hockey": (-11.2, 0.9), "jamesbond": (29, 406.7), "kangaroo": (52, 3035),
    "krull": (1598, 2395), "kung_fu_master": (258.5, 22736), "montezuma_revenge": (0, 4367), "ms_pacman": (307.3, 15693),
    "name_this_game": (2292, 4076), "pong": (-20.7, 9.3), "private_eye": (24.9, 69571), "qbert": (163.9, 13455),
    "riverraid": (1339, 13513), "road_runner": (11.5, 7845), "robotank": (2.2, 11.9), "seaquest": (68.4, 20182),
    "space_invaders": (148, 1652), "star_gunner": (664, 10250), "tennis": (-23.8, -8.9), "time_pilot": (3568, 5925),
    "tutankham": (11.4, 167.6), "up_n_down": (533.4, 9082), "venture": (0, 1188), "video_pinball": (16257, 17298),
    "wizard_of_wor": (563.5, 4757), "zaxxon": (32.5, 9173),
}  # fmt: skip
"""Scores of a random agent and of a human tester (Mnih et al. 2015, extended data table 2)."""
