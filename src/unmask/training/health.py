"""Is it working? What is measured while a run trains, and the verdict in words."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unmask.training import distributed


class Diverged(Exception):
    """A loss, a gradient or a weight is NaN or infinite. The message says which, and at which step."""


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, equation 1): exp of the entropy of the normalised singular values of (N, D) features.

    Between 1 (all features on one line: collapse) and min(N, D).
    """
    singular = torch.linalg.svdvals(features.double().cpu())
    p = singular / singular.sum().clamp(min=1e-12) + 1e-7
    return float((-(p * p.log()).sum()).exp())


def features(vectors: Tensor) -> dict[str, float]:
    """How spread out the vectors (N, D) of N images are: `feature_std`, the deviation of a dimension over the images
    relative to the size of a vector's entries (0 is collapse), and `rank`, RankMe of the centred vectors."""
    centred = vectors - vectors.mean(dim=0)
    size = vectors.square().mean().sqrt().clamp(min=1e-12)
    return {"feature_std": float(centred.square().mean().sqrt() / size), "rank": effective_rank(centred)}


def snapshot(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters() if p.requires_grad and p.ndim >= 2]


def update_ratio(module: nn.Module, before: list[Tensor]) -> float:
    """Norm of the last step over the norm of the weights, over all matrices: about 1e-3 is healthy."""
    after = [p.detach() for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    change = nn.utils.get_total_norm([now - then for now, then in zip(after, before, strict=True)])
    return float(distributed.whole(change) / distributed.whole(nn.utils.get_total_norm(before)).clamp(min=1e-12))


def check(module: nn.Module, batch: Any, values: dict[str, Tensor], step: int) -> None:
    """Raise Diverged, naming the first place where a number is NaN or infinite: input, loss, gradient, then weight."""
    norm = distributed.whole(nn.utils.get_total_norm(list(module.parameters())))
    if math.isfinite(distributed.mean(values["loss"]).item()) and math.isfinite(norm.item()):
        return
    places = [(f"view {i} of the input", view) for i, view in enumerate(getattr(batch, "views", ()))]
    places += [(f"the {name}", value) for name, value in values.items()]
    places += [(f"the gradient of {name}", p.grad) for name, p in module.named_parameters() if p.grad is not None]
    places += [(f"the weight {name}", p) for name, p in module.named_parameters()]
    where = next((place for place, tensor in places if not torch.isfinite(tensor).all()), "the sum of the weights")
    raise Diverged(f"{where} is NaN or infinite at step {step}")


@dataclass(frozen=True)
class Verdict:
    """What a run amounts to, in words."""

    word: str
    """learning, no better than uninformed, collapsed, diverged, or starved by the loader."""
    sentence: str
    """What was seen that says so."""
    advice: tuple[str, ...] = ()
    """What to change, the most promising first."""


# Where words change: set by hand. benchmarks/verdicts.py tries BETTER and the distance from the recipe's rate on runs good
# and broken on purpose; in its run with a rate 100 times too high a step was 0.8%, so LARGE_STEP did not speak.
BETTER = 0.97
"""Loss over uninformed loss above which nothing was learnt."""
COLLAPSED_STD, COLLAPSED_RANK = 1e-3, 1.5
"""Relative deviation of features, or RankMe, below which all images look alike to the encoder."""
COLLAPSED_TARGETS = 0.4
"""Deviation of what is to be predicted (a method's "target_std", from 0 to 1) below which it is nearly the same for all
images. Where BYOL learns it was 0.82 (digits), 0.84 (photographs) and 0.91 (a ResNet-18) at the end; without its predictor 0.12,
0.23 and 0.15, and without stop-gradient less."""
TEACHER = ("teacher_entropy", "kl", "information", "uninformed")
"""What is logged of a teacher's outputs: their entropy, the divergence of the student from them, and what they tell of
which image is seen (mutual information), beside the largest entropy they could have; all in nats."""
TOLD_APART = 0.08
"""Information below which the teacher says nearly the same of every image. In good runs it was never below 0.13 (100 steps on
photographs) and 0.39 (CIFAR-10); without sharpening it went to 0.014 and 0.05, without centring to 0.000 on photographs."""
FEW_OUTPUTS = 4.0
"""Perplexity of the teacher's outputs over all images, below which they are too few to sort images by. On CIFAR-10 it stayed
above 1,300 of 2,048 in a good run, and went from 1,200 to 2.3 in 309 steps without centring."""
FEW_TOKENS, SAYS_LITTLE = 2.0, 0.1
"""Perplexity of a codebook's use, or nats by which a place's distribution over tokens differs from the prior, below which
tokens say next to nothing."""
STARVED, WAITING = 0.5, 0.2
"""Share of the time spent waiting for the loader: more waiting than training; worth a hint."""
LARGE_STEP, SMALL_STEP = 3e-2, 2e-5
"""Median relative size of a step (update_ratio) above which weights are shaken, or below which they stand still."""


def judge(
    history: list[dict[str, Any]],
    lr: float,
    usual_lr: float,
    failure: str | None = None,
    probe: dict[str, Any] | None = None,
) -> Verdict:
    """The verdict on a run from its log. `usual_lr` is what the recipe would have taken; `failure` what Diverged said;
    `probe` what probe.json says, if there are labels: a loss can fall while the features get worse."""
    step_size = median([line["update_ratio"] for line in history])
    rate = f"{lr:.2g}"
    if usual_lr and not 0.2 < lr / usual_lr < 5:
        many = f"{lr / usual_lr:,.0f} times" if lr > usual_lr else f"1/{usual_lr / lr:,.0f} of"
        rate += f", {many} the recipe's {usual_lr:.2g}"
    too_large = step_size > LARGE_STEP or lr > 5 * usual_lr
    too_small = not too_large and (step_size < SMALL_STEP or lr < usual_lr / 5)
    slower = f"lower the learning rate ({rate}): a step changes the weights by {step_size:.1%}, where 0.1% is usual"
    faster = f"raise the learning rate ({rate}): a step changes the weights by {step_size:.4%}, where 0.1% is usual"
    if failure or not history:
        advice = [slower] if too_large else [f"lower the learning rate tenfold ({rate})", "clip the gradient: --clip 1"]
        return Verdict("diverged", failure or "the run ended before it logged anything", tuple(advice))

    # Over ranges of at least five lines: a small batch of blank images can have hardly any uninformed loss
    width = min(len(history), max(5, len(history) // 10))
    ratios = [ratio(history[i : i + width]) for i in range(len(history) - width + 1)]
    last, best = ratios[-1], min(ratios)
    spread = [line for line in history if "rank" in line]
    waited = median([line["loader_wait"] for line in history])
    seen = f"the loss is {last:.0%} of what a model that learnt nothing gets"
    waits = (
        f"the loader kept the model waiting {waited:.0%} of the time: more --workers, smaller files, or a faster disk"
    )

    teacher = {}
    if "information" in history[-1]:
        teacher = {name: mean([line[name] for line in history[-width:]]) for name in TEACHER}
        seen = f"the student is {teacher['kl']:.2f} nats from what its teacher says of other crops of an image, where always "
        seen += f"saying the average would be {teacher['information']:.2f}"
        used = math.exp(teacher["teacher_entropy"] + teacher["information"])
        if teacher["information"] < TOLD_APART or used < FEW_OUTPUTS:
            return one_answer(used, **teacher)
    if last > 1.1 and last > 1.2 * best:
        return Verdict("diverged", f"{seen}, and was {best:.0%} at its best", (slower, "clip the gradient: --clip 1"))
    if spread and (spread[-1]["feature_std"] < COLLAPSED_STD or spread[-1]["rank"] < COLLAPSED_RANK):
        sentence = (
            f"all images look alike to the encoder (effective rank {spread[-1]['rank']:.1f}, relative deviation "
            f"{spread[-1]['feature_std']:.1%}), and {seen}"
        )
        advice = slower if too_large else faster if too_small else f"change the learning rate ({rate}), both ways"
        return Verdict("collapsed", sentence, (advice,))
    if (targets := history[-1].get("target_std", 1.0)) < COLLAPSED_TARGETS:
        sentence = f"what is to be predicted is nearly the same for all images (deviation {targets:.1%}), so {seen}"
        advice = f"raise --momentum, so that targets move slower, or change the learning rate ({rate}), both ways"
        return Verdict("collapsed", sentence, (advice,))
    # of a discrete VAE, whose tokens are what counts, and not its features
    coded = [line for line in history[-width:] if "perplexity" in line]
    used, said = (mean([line[name] for line in coded]) if coded else math.inf for name in ("perplexity", "token_kl"))
    if used < FEW_TOKENS or said < SAYS_LITTLE:
        sentence = (
            f"the tokens say next to nothing of an image ({said:.2f} nats each, used as if there were {used:.1f} of them), "
            f"and {seen}"
        )
        advice = slower if too_large else faster if too_small else f"change the learning rate ({rate}), both ways"
        return Verdict("collapsed", sentence, ("a smaller --kl-weight, or more --epochs", advice))
    settled = history[len(history) // 10 :]
    stuck = sum(line["ratio"] > BETTER for line in settled) / len(settled)
    judged = {} if coded or probe is None else probe
    spoilt = [f"{name} {trained:.3f} against {untrained:.3f}" for name, trained, untrained in worse(judged)]
    # the loss beside a teacher of one's own falls and rises with what that says: whether it is foretold counts
    idle = teacher["kl"] > teacher["information"] if teacher else last > BETTER or stuck > 0.5
    if idle or spoilt:
        if spoilt:
            seen += (
                f", but its features tell classes apart worse than those of the untrained encoder ({', '.join(spoilt)})"
            )
        elif not teacher and last <= BETTER:
            seen += f", and for {stuck:.0%} of the run it was no better than that model's"
        advice = [slower] if too_large else [faster] if too_small else []
        if not advice:
            advice = [
                "train longer: " + f"only {history[-1]['step']:,} steps of {history[-1]['epoch']:.1f} epochs were made",
                f"try three times and a third of the learning rate ({rate})",
            ]
        advice.append(
            "look at `unmask inspect` and at the pictures: a patch should show a part of an object, not a pixel and not all of it"
        )
        return Verdict("no better than uninformed", seen, tuple(advice))
    if waited > STARVED:
        return Verdict("starved by the loader", f"it learns ({seen}), but slowly: {waits.split(':')[0]}", (waits,))

    advice = []
    if too_small or too_large:
        advice.append(f"it learns far less than it could: {faster if too_small else slower}")
    if waited > WAITING:
        advice.append(waits)
    if ratios[len(ratios) // 2] - last > 0.02:
        advice.append("the loss was still falling: more --epochs will give better features")
    return Verdict("learning", seen, tuple(advice))


def one_answer(used: float, teacher_entropy: float, kl: float, information: float, uninformed: float) -> Verdict:
    """The verdict on a teacher that says the same, or nearly, of every image: in which of the two ways (Caron et al. 2021,
    section 5.3, figure 7). used: the perplexity of its outputs over all images; the others in nats."""
    found = f"its entropy is {teacher_entropy / uninformed:.0%} of the largest, it tells {information:.3f} nats of an image, "
    found += f"and the student differs from it by {kl:.3f}"
    if teacher_entropy < uninformed / 2:
        which = "one output dominates" if used < 1.5 else "few outputs dominate"
        sentence = (
            f"{which}: the teacher uses them as if there were {used:.1f} of {math.exp(uninformed):,.0f} ({found})"
        )
        advice = ("keep --centring, with a lower --centre-momentum", "raise --teacher-temperature a little")
    else:
        sentence = f"all outputs are alike: the teacher gives every image the same share of each ({found})"
        advice = (
            "sharpen: lower --teacher-temperature (0.04 is usual, 0.02 for images that resemble each other)",
            "let crops share more of the image: --local-scale 0.2 0.6",
        )
    return Verdict("collapsed", sentence, advice)


def worse(probe: dict[str, Any]) -> list[tuple[str, float, float]]:
    """The probes (of probe.json) in which the trained encoder is clearly below the untrained one, intervals apart."""
    names = {"knn": "k-NN", "linear": "linear"}
    pairs = [(name, probe[test]["trained"], probe[test]["untrained"]) for test, name in names.items() if test in probe]
    return [(name, a["accuracy"], b["accuracy"]) for name, a, b in pairs if a["high"] < b["low"]]


def ratio(lines: list[dict[str, Any]]) -> float:
    """Loss over uninformed loss, in all of these lines of the log together."""
    return sum(line["loss"] for line in lines) / max(sum(line["uninformed"] for line in lines), 1e-12)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0
