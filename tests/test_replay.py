"""The replay holds what a list of whole transitions would, in a quarter of the room, and again after the process was killed."""

from collections import Counter, deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from unmask.errors import BadInput
from unmask.rl.replay import Replay

FRAME = (3, 2)


@dataclass
class Played:
    """T steps of E environments, made up."""

    frames: np.ndarray  # (T, E, 3, 2) uint8
    actions: np.ndarray  # (T, E)
    rewards: np.ndarray  # (T, E) float32
    terminal: np.ndarray  # (T, E) bool
    cut: np.ndarray  # (T, E) bool


def played(steps: int, environments: int, seed: int, ends: float) -> Played:
    """ends: the share of steps behind which an episode ends, half of them broken off."""
    draw, shape = np.random.default_rng(seed), (steps, environments)
    how = draw.random(shape)
    frames = draw.integers(1, 256, (*shape, *FRAME), dtype=np.uint8)  # never black
    actions, rewards = draw.integers(0, 18, shape), draw.standard_normal(shape).astype(np.float32)
    return Played(frames, actions, rewards, how < ends / 2, (how >= ends / 2) & (how < ends))


def write(replay: Replay, game: Played, first: int, last: int) -> None:
    for t in range(first, last):
        replay.add(torch.from_numpy(game.frames[t]), game.actions[t], game.rewards[t], game.terminal[t], game.cut[t])


def naive(game: Played, e: int, history: int, n_step: int, discount: float) -> dict[int, SimpleNamespace]:
    """Every whole transition of an environment, by the frame it began with; those that were broken off are left out."""
    stacks, stack = [], deque(maxlen=history)
    for t, frame in enumerate(game.frames[:, e]):
        if t == 0 or game.terminal[t - 1, e] or game.cut[t - 1, e]:
            stack.extend([np.zeros(FRAME, np.uint8)] * history)
        stack.append(frame)
        stacks.append(np.stack(stack))
    whole = {}
    for t in range(len(stacks) - n_step):
        reward, over, broken = 0.0, False, False
        for i in range(n_step):
            reward += discount**i * float(game.rewards[t + i, e])
            over, broken = bool(game.terminal[t + i, e]), bool(game.cut[t + i, e])
            if over or broken:
                break
        if not broken:
            worth = 0.0 if over else discount**n_step
            whole[t] = SimpleNamespace(
                state=stacks[t], action=game.actions[t, e], reward=reward, next=stacks[t + n_step], discount=worth
            )
    return whole


@settings(max_examples=80, deadline=None)
@given(
    history=st.integers(1, 4),
    n_step=st.integers(1, 3),
    environments=st.integers(1, 3),
    capacity=st.integers(1, 40),
    spare=st.integers(0, 12),
    steps=st.integers(1, 130),
    ends=st.sampled_from([0.0, 0.1, 0.3, 0.8]),
    seed=st.integers(0, 10**6),
)
def test_it_holds_what_a_list_of_whole_transitions_holds(
    history, n_step, environments, capacity, spare, steps, ends, seed
):
    game = played(steps, environments, seed, ends)
    replay = Replay(capacity, environments, FRAME, history, n_step, 0.9, spare)
    write(replay, game, 0, steps)
    low, high = replay._oldest, replay._newest
    assert high == max(0, steps - n_step)  # nothing that could be known is missing
    assert low == (steps - replay.capacity + history - 1 if steps > replay.capacity else 0)
    assert len(replay) == environments * max(0, high - low)
    for e in range(environments):
        expected = naive(game, e, history, n_step, 0.9)
        t = np.arange(low, max(low, high))
        t = t[~replay.broken[t % replay.length, e]]
        assert set(t.tolist()) == {each for each in expected if each >= low}
        got = replay.at(t % replay.length * environments + e)
        assert got.states.shape == got.successors.shape == (len(t), history, *FRAME)
        assert got.states.dtype == got.successors.dtype == torch.uint8 and got.actions.dtype == torch.int64
        for row, each in enumerate(t.tolist()):
            want = expected[each]
            assert np.array_equal(got.states[row].numpy(), want.state)
            assert got.actions[row] == want.action
            assert float(got.rewards[row]) == pytest.approx(want.reward, abs=1e-5)
            assert float(got.discounts[row]) == pytest.approx(want.discount)
            if want.discount:
                assert np.array_equal(got.successors[row].numpy(), want.next)


def marked(steps: int, environments: int, ends: float = 0.2) -> Played:
    """Frames that say which they are: environment and time."""
    game = played(steps, environments, 5, ends)
    game.frames[..., 0, 0], game.frames[..., 0, 1] = np.arange(environments), np.arange(steps)[:, None]
    return game


def test_every_transition_is_as_likely_as_any_other_and_those_broken_off_never_come():
    game = marked(150, 3)
    replay = Replay(180, 3, FRAME, 2, 2, 0.9)  # of 60 frames each: the ring has wrapped round twice
    write(replay, game, 0, 150)
    got = replay.sample(40_000, np.random.default_rng(0))
    assert len(got.states) == 40_000
    counts = Counter(zip(*(got.states[:, -1, 0, i].tolist() for i in (0, 1)), strict=True))
    valid = {(e, t) for e in range(3) for t in naive(game, e, 2, 2, 0.9) if t >= 150 - 60 + 1}
    assert set(counts) == valid and 0 < len(valid) < len(replay)  # some were broken off
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_an_empty_replay_says_so():
    replay = Replay(10, 1, FRAME, 2, 3)
    write(replay, played(3, 1, 0, 0.0), 0, 3)  # the third's successor is not there yet
    assert len(replay) == 0
    with pytest.raises(ValueError, match="empty"):
        replay.sample(1, np.random.default_rng(0))


# On disk

SPARE = 21
"""In three environments: seven frames of each between two checkpoints."""


def replay_of(spare: int = SPARE) -> Replay:
    return Replay(60, 3, FRAME, 3, 2, 0.9, spare)


def drawn(replay: Replay) -> list[torch.Tensor]:
    batch = replay.sample(500, np.random.default_rng(3))
    return [batch.frames, batch.told]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("at", [9, 20, 34, 35, 61, 70, 100])  # before the ring (of 34 frames) is full, and far behind
@pytest.mark.parametrize("further", [0, 7])
def test_what_was_saved_comes_back_though_the_run_went_on_and_was_saved_again(tmp_path, at, further):
    """Two checkpoints are kept. The newer may be torn when the next one's frames are on the disk: then the older is asked for."""
    game, first, file = played(at + 2 * 7, 3, 1, 0.1), replay_of(), tmp_path / "replay.bin"
    assert first.length == 34
    for written in range(at % 7, at, 7):  # as a run would have: every seven frames
        write(first, game, first.written, written)
        first.save(file)
    write(first, game, first.written, at)
    state, expected = first.save(file), drawn(first)
    write(first, game, at, at + 7)
    newer, later = first.save(file), drawn(first)
    write(first, game, at + 7, at + 7 + further)
    if further:
        first.save(file)  # the third's checkpoint was not written any more
    assert not same(expected, later)
    for told, wanted, there in ((state, expected, at), (newer, later, at + 7)):
        again = replay_of()
        again.restore(file, told)
        assert again.written == there and same(drawn(again), wanted)
    write(again, game, at + 7, at + 14)  # and it goes on from there as the first did
    write(first, game, first.written, at + 14)
    assert same(drawn(again), drawn(first))
    again.save(file)
    once_more = replay_of()
    once_more.restore(file, again.save(file))
    assert same(drawn(once_more), drawn(again))


def test_frames_that_are_missing_short_or_of_another_run_are_refused_in_one_line(tmp_path):
    replay, file = replay_of(), tmp_path / "replay.bin"
    write(replay, played(50, 3, 1, 0.1), 0, 50)
    state = replay.save(file)
    with pytest.raises(BadInput, match="--replay was changed") as refused:
        Replay(90, 3, FRAME, 3, 2, 0.9, SPARE).restore(file, state)
    assert "\n" not in str(refused.value) and str(file) in str(refused.value)
    with pytest.raises(BadInput, match="moved"):
        replay_of().restore(tmp_path / "elsewhere.bin", state)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadInput, match="damaged") as refused:
        replay_of().restore(file, state)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("capacity", [10**13, 10**16])
def test_a_replay_that_does_not_fit_says_how_much_it_needs(capacity):
    with pytest.raises(BadInput, match=rf"of {capacity:,} transitions needs [\d.]+ GiB: lower --replay"):
        Replay(capacity)


def test_it_takes_less_than_a_third_of_the_room_of_stable_baselines3():
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    spaces = pytest.importorskip("gymnasium.spaces")
    ours = Replay(10_000)
    size = sum(each.nbytes for each in vars(ours).values() if isinstance(each, np.ndarray | torch.Tensor))
    assert size == pytest.approx(Replay.bytes_for(10_000), rel=1e-3)
    sizes = []
    for options in ({"optimize_memory_usage": True, "handle_timeout_termination": False}, {}):
        box = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        theirs = buffers.ReplayBuffer(10_000, box, spaces.Discrete(6), "cpu", **options)
        sizes.append(sum(each.nbytes for each in vars(theirs).values() if isinstance(each, np.ndarray)))
    assert 3 * size < sizes[0] < sizes[1] and 6 * size < sizes[1]
