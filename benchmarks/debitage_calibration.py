"""Do the tests of the debitage study err as often as they say, and do they find what is there? On simulated studies.

    uv run python benchmarks/debitage_calibration.py [--of outlines|traits] [--studies 200] [--jobs 1]
        [--out benchmarks/results/debitage_calibration.json]

Designs of unmask.debitage.simulate: 12 knappers of three levels at an effect of 0 (so many studies) and of 0.5, 1 and 2 (an
eighth as many each); the design "null" of 6, of which no label can be told at 0.05 (the smallest p is 1/15); and the
published one of three knappers, each with a stone of their own, at an effect of 0. 240 particles a study, each seen once.
Measures are those of the simulated outlines, or with `--of traits` the latent traits that these are drawn from.

Expected: at an effect of 0 the interval of each honest rate holds 0.05 or lies below, for 12 knappers rates rise with the
effect, and naive rates at 0 are several times 0.05. Ten minutes on one core.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from unmask.debitage import power, simulate
from unmask.debitage.study import Study

PARTICLES = 240


def drawn(seed: int, *, design: simulate.Design, of: str) -> Study:
    """A study of this design; seed also numbers its hands, stones and days."""
    if of == "outlines":
        return simulate.study_of(simulate.particles(design, simulate.Model(frames=1), PARTICLES, seed))
    frame = simulate.traits(design, simulate.Model(), PARTICLES, seed)
    told = pd.DataFrame([simulate.about(each) for each in design.assemblages])
    frame = frame.merge(told, on="assemblage")
    frame["particle"] = frame["assemblage"] + "/" + frame["id"]
    return simulate.study_of(frame).replace(
        measures=("irregularity", *(t for t in simulate.TRAITS if t != "irregularity"))
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--of", choices=("outlines", "traits"), default="outlines")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/debitage_calibration.json"))
    asked = parser.parse_args()
    few = max(1, asked.studies // 8)
    three = replace(simulate.DESIGNS["three-knappers"], effect=0.0)
    runs = [("12 knappers, effect 0", simulate.design(12, effect=0.0), asked.studies)]
    runs += [(f"12 knappers, effect {effect:g}", simulate.design(12, effect=effect), few) for effect in (0.5, 1, 2)]
    runs += [("6 knappers, effect 0", simulate.DESIGNS["null"], few), ("three-knappers, effect 0", three, few)]
    start, result = time.perf_counter(), {"of": asked.of, "particles": PARTICLES, "designs": {}}
    for name, design, studies in runs:
        table = power.calibrate(partial(drawn, design=design, of=asked.of), studies, jobs=asked.jobs)
        rows = table.to_dict(orient="records")
        result["designs"][name] = [
            {k: (None if v != v else round(v, 4)) if isinstance(v, float) else v for k, v in row.items()}
            for row in rows
        ]
        print(f"{name}, {studies} studies, {time.perf_counter() - start:.0f} s")
        print(table[["test", "studies", "rate", "low", "high", "smallest"]].round(3).to_string(index=False), flush=True)
    result["minutes"] = math.ceil((time.perf_counter() - start) / 60)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
