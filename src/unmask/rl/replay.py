"""Experience replay (Lin 1992; Mnih et al. 2015, "Training algorithm for deep Q-networks") that fits: each frame is kept once.

A state is the last `history` frames of its episode, oldest first; before the episode's first frame there is black. A million
transitions of 84 x 84 pixels are 6.6 GiB, where a buffer of states and their successors holds 53, and one of states 26.
Frames of one environment lie behind one another in a ring: a sample copies a state and what followed it as one piece of memory,
and what both have in common once. What n steps earned is added up when they are played, not when they are drawn.

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

ROWS = ("told", "broken", "runs", "age")
"""Arrays that a checkpoint holds; frames are in a file of their own."""


@dataclass(slots=True)
class Transitions:
    """A minibatch of B."""

    frames: Tensor
    """(B, history + n, H, W) uint8: a state, and what followed it for n steps; anything where the episode ended before."""
    told: Tensor
    """(B, 3) float32: what was done, what it earned in n steps, discounted, and the discount of what the successor is worth,
    0 where the episode ended."""
    history: int
    """Frames that make up a state."""

    @property
    def states(self) -> Tensor:
        """(B, history, H, W) uint8."""
        return self.frames[:, : self.history]

    @property
    def successors(self) -> Tensor:
        """(B, history, H, W) uint8: what n steps led to."""
        return self.frames[:, -self.history :]

    @property
    def actions(self) -> Tensor:
        """(B,) int64."""
        return self.told[:, 0].long()

    @property
    def rewards(self) -> Tensor:
        """(B,) float32."""
        return self.told[:, 1]

    @property
    def discounts(self) -> Tensor:
        """(B,) float32."""
        return self.told[:, 2]

    def minibatches(self, count: int) -> "list[Transitions]":
        """So many of the same size, which `count` has to divide."""
        parts = zip(self.frames.chunk(count), self.told.chunk(count), strict=True)
        return [Transitions(frames, told, self.history) for frames, told in parts]

    def to(self, device: torch.device) -> "Transitions":
        return Transitions(self.frames.to(device), self.told.to(device), self.history)


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
        self.black = environments * self.length
        """The frame behind all others, which stands for what was before an episode."""
        self.around = np.arange(1 - history, 1 + n_step)
        """Steps of the frames of a state and what followed it, counted from the state's last."""
        self.powers = discount ** np.arange(n_step + 1)
        try:
            # By numpy, which asks for pages of 2 MiB: frames are drawn from all over the memory
            self.frames = torch.from_numpy(np.zeros((environments * self.length + 1, *frame), np.uint8))
        except (MemoryError, ValueError):  # more than there is, or than can be counted
            needed = self.bytes_for(self.black, frame) / 2**30
            raise BadInput(f"a replay of {capacity:,} transitions needs {needed:.1f} GiB: lower --replay") from None
        rows = (self.length, environments)  # so those that may be drawn lie behind one another
        self.told = np.zeros((*rows, 3), np.float32)
        """What was done; what the next n steps earned, discounted, as far as they were played; and the discount of what the
        state n steps on is worth."""
        self.broken = np.zeros(rows, bool)
        """The episode was broken off within n steps: what they led to, nobody saw."""
        self.runs = np.zeros((*rows, history + n_step), np.int32 if self.black < 2**31 else np.int64)
        """Which frames make up the state, and follow it."""
        self.age = np.zeros(environments, np.int32)
        """Of the next frame."""
        self.written, self.saved = 0, 0
        """Frames of each environment, since the beginning: those in memory, and those on disk."""

    @staticmethod
    def bytes_for(capacity: int, frame: tuple[int, int] = (84, 84)) -> int:
        """Memory that so many transitions of states of four frames take."""
        return capacity * (frame[0] * frame[1] + 33)

    def __len__(self) -> int:
        """Transitions that may be sampled from."""
        return self.environments * max(0, self._newest - self._oldest)

    @property
    def ring(self) -> Tensor:
        """The frames of each environment (E, length, H, W)."""
        return self.frames[: self.black].view(self.environments, self.length, *self.frame)

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
        self, frames: Tensor, actions: np.ndarray, rewards: np.ndarray, terminal: np.ndarray, cut: np.ndarray
    ) -> None:
        """One step of every environment: what it showed (E, H, W) uint8, what was done, and what came of it (E,): the reward,
        whether the episode ended, and whether it was broken off. The next frame is then the first of another."""
        at = self.written % self.length
        self.ring[:, at] = frames
        first = self.length * np.arange(self.environments)[:, None]
        before = self.age[:, None] < -self.around  # the episode began later: black
        self.runs[at] = np.where(before, self.black, first + (at + self.around) % self.length)
        self.told[at, :, 0], self.told[at, :, 1:], self.broken[at] = actions, (0, self.powers[-1]), False
        for i in range(self.n_step):  # it belongs to the transition i steps ago as well, if that is of the same episode
            then = (at - i) % self.length
            self.told[then, :, 1] += np.where(self.age >= i, self.powers[i] * rewards, 0)
            self.told[then, (self.age >= i) & terminal, 2] = 0
            self.broken[then] |= (self.age >= i) & cut
        self.age = np.where(terminal | cut, 0, self.age + 1).astype(np.int32)
        self.written += 1

    def sample(self, count: int, random: np.random.Generator) -> Transitions:
        """Transitions (count,), each as likely as any other. ValueError while there are none."""
        low, high = self._oldest * self.environments, self._newest * self.environments
        if high <= low:
            raise ValueError("the replay is empty")
        rows = random.integers(low, high, count) % self.broken.size
        while anew := np.count_nonzero(broken := self.broken.take(rows)):
            rows[broken] = random.integers(low, high, anew) % self.broken.size
        return self.at(rows)

    def at(self, rows: np.ndarray) -> Transitions:
        """The transitions (B,) of `rows`, which count all environments of one step of the ring after those of another."""
        wanted = self.runs.reshape(-1, len(self.around)).take(rows, 0)  # (B, history + n)
        frames = self.frames.index_select(0, torch.from_numpy(wanted.ravel())).view(*wanted.shape, *self.frame)
        told = torch.from_numpy(self.told.reshape(-1, 3).take(rows, 0))
        return Transitions(frames, told, self.history)

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
                    opened.write(self.ring[e, at : at + count].numpy().data)
                    step += count
            opened.flush()
            os.fsync(opened.fileno())
        self.saved = self.written
        rows = {name: torch.from_numpy(getattr(self, name).copy()) for name in ROWS}
        return {"written": self.written, "shape": [*self.broken.shape, *self.frame], **rows}

    def restore(self, file: Path, state: dict[str, Any]) -> None:
        """Take up what `save` returned, with the frames in `file`. BadInput if they are not of this replay."""
        shape = [*self.broken.shape, *self.frame]
        if state["shape"] != shape or not file.is_file():
            raise BadInput(f"{file} does not hold the frames of this run: they were moved, or --replay was changed")
        self.written = self.saved = int(state["written"])
        for name in ROWS:
            getattr(self, name)[:] = state[name].numpy()
        there, pixels = min(self.written, self.length), self.frame[0] * self.frame[1]
        with file.open("rb") as opened:
            for e in range(self.environments):
                opened.seek(e * self.length * pixels)
                if opened.readinto(self.ring[e, :there].numpy().data.cast("B")) < there * pixels:
                    raise BadInput(f"{file} is shorter than its checkpoint says: it was damaged; begin the run anew")
