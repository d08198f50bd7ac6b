"""Experience replay (Lin 1992; Mnih et al. 2015, "Training algorithm for deep Q-networks") that fits: each frame is kept once.

A state is the last `history` frames of its episode, oldest first; before the episode's first frame there is black. A million
transitions of 84 x 84 pixels are 6.6 GiB, where a buffer of states and their successors holds 53, and one of states 26.
Frames of one environment lie behind one another in a ring, and the first of them once more behind the last, so that a state
and all that follow it are one piece of memory, which a sample copies once.

On disk are the same frames, appended; the ring is longer than the memory that is sampled by what is written between two
checkpoints, twice. So what a checkpoint remembers is never written over before the next one is whole, and a run that was killed
at any moment goes on exactly.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmask.errors import BadInput


@dataclass(frozen=True)
class Transitions:
    """A minibatch of B."""

    states: Tensor
    """(B, history, H, W) uint8."""
    actions: Tensor
    """(B,) int64."""
    rewards: Tensor
    """(B,) float32: of n steps, discounted."""
    successors: Tensor
    """(B, history, H, W) uint8: what n steps, or fewer at an episode's end, led to."""
    discounts: Tensor
    """(B,) float32: of what the successor is worth; 0 where the episode ended."""


class Replay:
    """The last `capacity` transitions of `environments` games that are played in step."""

    def __init__(
        self,
        capacity: int,
        environments: int = 1,
        frame: tuple[int, int] = (84, 84),
        history: int = 4,
        n_step: int = 1,
        discount: float = 0.99,
        spare: int = 0,
    ):
        """capacity: of all environments together. spare: transitions that are written between two checkpoints."""
        self.environments, self.frame, self.history, self.n_step = environments, frame, history, n_step
        self.capacity = max(capacity // environments, history + n_step + 1)
        """Of one environment."""
        self.length = self.capacity + 2 * -(-spare // environments)
        self.span = history + n_step
        """Frames from the first of a state to the last of its successor."""
        self.powers = torch.tensor([discount**i for i in range(n_step + 1)])
        try:
            self.frames = torch.zeros(environments, self.length + self.span - 1, *frame, dtype=torch.uint8)
        except RuntimeError:
            raise BadInput(
                f"a replay of {capacity:,} transitions needs {self.bytes_for(capacity, frame) / 2**30:.1f} GiB: lower --replay"
            ) from None
        rows = (environments, self.length)
        self.actions = torch.zeros(rows, dtype=torch.uint8)
        self.rewards = torch.zeros(rows)
        self.terminal = torch.zeros(rows, dtype=torch.bool)
        """The episode ended with this transition: its successor is worth nothing."""
        self.cut = torch.zeros(rows, dtype=torch.bool)
        """The episode was broken off behind this transition: what its successor is, nobody saw."""
        self.starts = torch.zeros(rows, dtype=torch.bool)
        """The frame is the first of its episode."""
        self.written, self.saved = 0, 0
        """Frames of each environment, since the beginning: those in memory, and those on disk."""

    @staticmethod
    def bytes_for(capacity: int, frame: tuple[int, int] = (84, 84)) -> int:
        """Memory that so many transitions take."""
        return capacity * (frame[0] * frame[1] + 8)

    def __len__(self) -> int:
        """Transitions that may be sampled from."""
        return self.environments * max(0, self._newest - self._oldest)

    @property
    def _oldest(self) -> int:
        """The first frame that may be the last of a state: one with its whole history behind it."""
        first = max(0, self.written - self.capacity)
        return first + self.history - 1 if first else 0

    @property
    def _newest(self) -> int:
        """The first frame whose successor is not there yet."""
        return max(0, self.written - self.n_step)

    def add(
        self, frames: Tensor, actions: Tensor, rewards: Tensor, terminal: Tensor, cut: Tensor, starts: Tensor
    ) -> None:
        """One step of every environment: what it showed (E, H, W) uint8, whether an episode began with it, what was done, and
        what came of it (E,)."""
        at = self.written % self.length
        self.frames[:, at] = frames
        if at < self.span - 1:
            self.frames[:, self.length + at] = frames
        self.actions[:, at], self.rewards[:, at] = actions.to(torch.uint8), rewards
        self.terminal[:, at], self.cut[:, at], self.starts[:, at] = terminal, cut, starts
        self.written += 1

    def sample(self, batch_size: int, random: np.random.Generator) -> Transitions:
        """Transitions (B,), each as likely as any other. ValueError while there are none."""
        low, high = self._oldest, self._newest
        if high <= low:
            raise ValueError("the replay is empty")
        kept_e, kept_t = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        while len(kept_t) < batch_size:  # those that were broken off are drawn anew
            drawn = torch.from_numpy(random.integers(0, (high - low) * self.environments, batch_size - len(kept_t)))
            e, t = drawn % self.environments, low + drawn // self.environments
            whole = ~self._broken(e, t)
            kept_e, kept_t = torch.cat([kept_e, e[whole]]), torch.cat([kept_t, t[whole]])
        return self.at(kept_e, kept_t)

    def _window(self, e: Tensor, t: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Indices (B, count) of the environments' steps from t + first on."""
        return e[:, None], (t[:, None] + torch.arange(first, first + count)) % self.length

    def _broken(self, e: Tensor, t: Tensor) -> Tensor:
        """Whether an episode is broken off within n steps, and did not end before. (B,)"""
        ahead = self._window(e, t, 0, self.n_step)
        ended = self.terminal[ahead].cumsum(1) > 0
        return (self.cut[ahead] & ~ended).any(1)

    def at(self, e: Tensor, t: Tensor) -> Transitions:
        """The transitions that began at frame t (B,), counted from the first ever written, of environments e (B,)."""
        H, n, span = self.history, self.n_step, self.span
        # A state and what follows it are one run of `span` frames, which may begin before the first frame
        begin = (t - (H - 1)) % self.length
        pixels = self.frame[0] * self.frame[1]
        flat = self.frames.view(-1)
        runs = flat.as_strided((flat.numel() // pixels - span + 1, span * pixels), (pixels, 1))
        seen = runs.index_select(0, e * self.frames.shape[1] + begin).view(-1, span, *self.frame)

        ahead = self._window(e, t, 0, n)
        terminal = self.terminal[ahead]  # (B, n)
        alive = torch.cat([torch.ones(len(t), 1, dtype=torch.bool), terminal.cumsum(1) == 0], 1)  # (B, n + 1)
        rewards = (self.rewards[ahead] * alive[:, :n] * self.powers[:n]).sum(1)
        states, successors = seen[:, :H], seen[:, n:]
        # What lies before the beginning of an episode is black. Few states are so near to it
        behind = self._window(e, t, 1 - H, span)
        starts = self.starts[behind] | (t[:, None] + torch.arange(1 - H, 1 - H + span) == 0)  # (B, span)
        if (near := starts.any(1)).any():
            old, new = _before(starts[near, :H]), _before(starts[near, n:])  # (b, H)
            states, successors = states.clone(), successors.clone()
            states[near] = states[near].masked_fill(old[:, :, None, None], 0)
            successors[near] = successors[near].masked_fill(new[:, :, None, None], 0)
        return Transitions(
            states, self.actions[e, t % self.length].long(), rewards, successors, alive[:, n] * self.powers[n]
        )

    # On disk

    def save(self, file: Path) -> dict[str, Any]:
        """Bring the frames that are new to the disk, into `file`, and return all else for a checkpoint."""
        pixels = self.frame[0] * self.frame[1]
        with file.open("r+b" if file.exists() else "w+b") as opened:
            for e in range(self.environments):
                step = self.saved
                while step < self.written:  # up to the end of the ring, then from its beginning
                    at = step % self.length
                    count = min(self.written - step, self.length - at)
                    opened.seek((e * self.length + at) * pixels)
                    opened.write(self.frames[e, at : at + count].numpy().data)
                    step += count
            opened.flush()
            os.fsync(opened.fileno())
        self.saved = self.written
        rows = {name: getattr(self, name).clone() for name in ("actions", "rewards", "terminal", "cut", "starts")}
        return {"written": self.written, "shape": [self.environments, self.length, *self.frame], **rows}

    def restore(self, file: Path, state: dict[str, Any]) -> None:
        """Take up what `save` returned, with the frames in `file`. BadInput if they are not of this replay."""
        shape = [self.environments, self.length, *self.frame]
        if state["shape"] != shape or not file.is_file():
            raise BadInput(f"{file} does not hold the frames of this run: they were moved, or --replay was changed")
        self.written = self.saved = int(state["written"])
        for name in ("actions", "rewards", "terminal", "cut", "starts"):
            getattr(self, name).copy_(state[name])
        there, pixels = min(self.written, self.length), self.frame[0] * self.frame[1]
        with file.open("rb") as opened:
            for e in range(self.environments):
                opened.seek(e * self.length * pixels)
                if opened.readinto(self.frames[e, :there].numpy().data.cast("B")) < there * pixels:
                    raise BadInput(f"{file} is shorter than its checkpoint says: it was damaged; begin the run anew")
        self.frames[:, self.length :] = self.frames[:, : self.span - 1]


def _before(starts: Tensor) -> Tensor:
    """Which frames (B, H) lie before the last beginning among them: those of another episode, or of none."""
    return starts.flip(1).cumsum(1).flip(1) - starts.int() > 0
