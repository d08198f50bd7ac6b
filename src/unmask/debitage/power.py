"""How many knappers, and how many flakes: power, and whether the tests err as often as they say.

`power` draws from the model that `mixed` fits: a measure of a particle is the effect of its knapper's label, plus normal
deviations of the knapper, the assemblage and the particle. The mean of a knapper is all the test looks at, so only means are
drawn. More particles make the mean of a knapper sharper, and no mean is sharper than knappers are alike.

`calibrate` draws whole studies and runs the tests of this room on each, and beside them what is mostly done: particles
taken for replicates.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from unmask.debitage import classify, mixed, statistics
from unmask.debitage.findings import plural
from unmask.debitage.study import Study
from unmask.errors import BadInput

LEVEL = 0.05
WANTED = 0.8
"""Power that is customary to plan for (Cohen 1988)."""
Tests = Callable[[Study, int], dict[str, float]]
"""From a study and a seed to p-values by name."""


# Power


def shares_of(fitted: pd.DataFrame) -> tuple[float, float, float]:
    """Typical variance shares (knapper, assemblage, particle) of what `mixed` found: medians over measures that stand for
    themselves, made to sum to 1. BadInput where none was fitted."""
    own: Any = fitted[(fitted["stands"] == fitted["measure"]) & fitted["share_unit"].notna()]
    if own.empty:
        raise BadInput("no measure was fitted, so there are no variance shares to plan with: give them")
    medians = own[["share_unit", "share_assemblage", "share_particle"]].median().to_numpy(dtype=np.float64)
    knapper, assemblage, particle = (medians / medians.sum()).tolist()
    return knapper, assemblage, particle


def power(
    shares: Sequence[float] | pd.DataFrame,
    effects: Sequence[float] = (0.5, 1.0, 1.5),
    knappers: Sequence[int] = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64),
    particles: Sequence[int] = (10, 30, 100, 300, 1000),
    *,
    assemblages: int = 2,
    simulations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each effect, number of "knappers" (in all, half of each of two labels) and of "particles" a knapper: the
    "power" of a two-sided t-test of knappers' means at 0.05, and "low", "high", the ends of its interval (95%,
    Clopper & Pearson 1934).

    shares: variances of knapper, assemblage and particle, as they come, or the table of `mixed`. effects: differences between
    two labels in standard deviations of particles, √(sum of shares). assemblages: of each knapper.
    """
    own = shares_of(shares) if isinstance(shares, pd.DataFrame) else tuple(map(float, shares))
    if len(own) != 3 or not all(s >= 0 for s in own) or sum(own) <= 0:
        raise BadInput(f"shares are {shares}: give those of knapper, assemblage and particle, none below 0")
    if min(knappers) < 4 or min(particles) < 1 or assemblages < 1 or simulations < 1:
        raise BadInput("power needs at least 4 knappers, and one particle, assemblage and simulation")
    unit, cell, particle = (s / sum(own) for s in own)
    rng, rows = np.random.default_rng(seed), []
    for effect, K, m in itertools.product(effects, knappers, particles):
        sd = math.sqrt(unit + cell / min(assemblages, m) + particle / m)
        means = rng.normal(0, sd, (simulations, K))
        means[:, : K // 2] += effect
        tested: Any = stats.ttest_ind(means[:, : K // 2], means[:, K // 2 :], axis=1)
        hits = int(np.sum(tested.pvalue <= LEVEL))
        low, high = clopper(hits, simulations)
        row = {"effect": effect, "knappers": K, "particles": m, "power": hits / simulations, "low": low, "high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def enough(found: pd.DataFrame, effect: float = 1.0, unit: str = "knapper") -> str:
    """What `power` says of an effect, in a sentence. unit: what knappers are called."""
    there: Any = found[np.isclose(found["effect"], effect)]
    if there.empty:
        raise BadInput(
            f"no effect of {effect} was simulated; there are {', '.join(map(str, found['effect'].unique()))}"
        )
    most = there["particles"].max()
    best = there[there["particles"] == most]
    reached = best[best["power"] >= WANTED]
    what = f"a difference of {effect:g} s.d."
    if reached.empty:
        top = best.loc[best["power"].idxmax()]
        return (
            f"Even {int(top['knappers'])} {plural(unit)} with {most:,} particles each find {what} in {top['power']:.0%} of "
            f"studies only: {WANTED:.0%} power needs more {plural(unit)}."
        )
    N = int(reached["knappers"].min())
    mine = there[there["knappers"] == N].sort_values("particles")
    ceiling = float(mine["power"].max())
    M = int(mine.loc[mine["power"] >= ceiling - 0.02, "particles"].min())
    least = int(mine.loc[mine["power"] >= WANTED, "particles"].min())
    sentence = f"{WANTED:.0%} power for {what} needs {N} {plural(unit)}, with {least:,} particles each"
    return sentence + (f"; more particles than {M:,} a {unit} add nothing." if most > M else ".")


def clopper(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Ends of the interval of a share (Clopper & Pearson 1934)."""
    found = stats.binomtest(hits, n).proportion_ci(level, "exact")
    return float(found.low), float(found.high)


# Calibration


def honest(study: Study, seed: int, *, permutations: int = 199, refits: int = 19) -> dict[str, float]:
    """p-values of the tests of this room: units are the replicates. NaN of one that the study does not allow. With 19
    `refits` a test at 0.05 is exact, though weaker than with more."""
    q = study.question
    frame: Any = study.particles
    X, names, _ = statistics.features(study)
    stands = statistics.clusters(X, names)
    own = [name for name in names if stands[name] == name]
    Z = statistics.scaled(X[:, [name in own for name in names]])
    options: dict[str, Any] = {"permutations": permutations, "seed": seed}
    label, unit = frame[q.label], frame[q.unit]
    cells = unit.astype(str) + "\0" + frame["assemblage"].astype(str)
    found = {
        "PERMANOVA, label": statistics.permanova(Z, label, unit, **options).p,
        "PERMDISP, label": statistics.dispersion(Z, label, unit, within=cells, **options).p,
    }
    if q.covariate is not None:
        covariate = frame[q.covariate]
        found["PERMANOVA, covariate"] = statistics.permanova(Z, None, unit, covariate=covariate, **options).p
    table: Any = mixed.mixed(study)
    found[first := "mixed model, first measure"] = float(table["p"].iloc[0])
    found["mixed models, any measure (q)"] = float(table["q"].min())
    parts = classify.folds(study, "skill", seed=seed)
    if parts.parts:

        def refit(folds: classify.Folds) -> np.ndarray:
            return classify.classify(Z, folds, "logistic", seed)

        options = {"refit": refit, "permutations": refits, "resamples": 1, "seed": seed}
        p = classify.judge(study, "skill", refit(parts), parts, **options).p
        found["classifier, units left out"] = math.nan if p is None else p
    together = [p for name, p in found.items() if name != first]
    found["any of these (q)"] = float(np.nanmin(mixed.discovery(np.array(together))))
    return found


def naive(study: Study, seed: int, *, permutations: int = 199, trees: int = 50) -> dict[str, float]:
    """p-values of what is mostly done: particles are the replicates."""
    q = study.question
    frame: Any = study.particles
    X, _, _ = statistics.features(study)
    Z, label = statistics.scaled(X), frame[q.label]
    particle = np.arange(len(frame))
    found = {"PERMANOVA, particles": statistics.permanova(Z, label, particle, permutations=permutations, seed=seed).p}
    first = X[:, 0]
    known = np.isfinite(first) & label.notna().to_numpy()
    groups = [first[known & (label == name).to_numpy()] for name in label.dropna().unique()]
    found["ANOVA, particles, first measure"] = float(stats.f_oneway(*groups).pvalue)
    codes, classes = statistics.coded(label)
    parts = classify.folds(study, "skill", naive=True, seed=seed)
    said = classify.classify(Z, parts, "forest", seed, trees=trees).argmax(1)
    base = max(np.bincount(codes)) / len(codes)
    found["forest, by particle, against the majority"] = float(
        stats.binomtest(int(np.sum(said == codes)), len(codes), base, alternative="greater").pvalue
    )
    assert len(classes) > 1
    return found


def _one(draw: Callable[[int], Study], number: int, tests: Tests) -> dict[str, float]:
    study = draw(number)
    return tests(study, number)


def both(study: Study, seed: int) -> dict[str, float]:
    return {f"honest: {k}": v for k, v in honest(study, seed).items()} | {
        f"naive: {k}": v for k, v in naive(study, seed).items()
    }


def calibrate(draw: Callable[[int], Study], studies: int = 200, tests: Tests = both, *, jobs: int = 1) -> pd.DataFrame:
    """How often each test rejects at 0.05, over studies that `draw` makes of the numbers from 0.

    A row a test: "test", "studies" it could be made on, "rejected", "rate" and "low", "high" (95%, Clopper & Pearson 1934),
    "smallest" p that was seen, and "uniform", the p of a Kolmogorov-Smirnov test that its p-values are uniform, which they
    are where nothing is there to be found. With jobs above 1, draw and tests must be importable.
    """
    if studies < 1:
        raise BadInput(f"{studies} studies: give at least 1")
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(_one, [draw] * studies, range(studies), [tests] * studies, chunksize=4))
    else:
        found = [_one(draw, number, tests) for number in range(studies)]
    rows = []
    for name in dict.fromkeys(key for each in found for key in each):
        p = np.array([each.get(name, math.nan) for each in found], dtype=np.float64)
        p = p[np.isfinite(p)]
        hits = int(np.sum(p <= LEVEL))
        row = {"test": name, "studies": len(p), "rejected": hits, "rate": math.nan, "low": math.nan, "high": math.nan}
        if len(p):
            row |= dict(zip(("rate", "low", "high"), (hits / len(p), *clopper(hits, len(p))), strict=True))
        row |= {"smallest": float(p.min()) if len(p) else math.nan}
        row |= {"uniform": float(stats.kstest(p, "uniform").pvalue) if len(p) else math.nan}
        rows.append(row)
    return pd.DataFrame(rows)
