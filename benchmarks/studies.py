"""The studies of docs/debitage.md, from end to end: two simulated designs, the analyser's real table in halves, and the real
silhouettes of late Palaeolithic tools.

    UNMASK_DATA_DIR=… python benchmarks/studies.py balanced three-knappers random-halves size-halves taxa tools --out runs/studies

Each is `unmask study run` with its defaults; what came out is put into results/studies.json. On one processor core
tools takes 70 minutes, balanced a dozen on two, the others two to six on one. A study that was stopped goes on.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import unmask
from unmask.debitage import tables

RESULTS = Path(__file__).parent / "results" / "studies.json"
STONES = {"image": "image", "assemblage": "source_image", "scale": "scale_cm_per_pixel", "scale_in": "cm"}
NAMES = ("balanced", "three-knappers", "random-halves", "size-halves", "taxa", "tools")


def data() -> Path:
    return Path(os.environ["UNMASK_DATA_DIR"]).resolve()


def simulated(name: str, out: Path) -> Path:
    path = out / name / "study.yaml"
    return path if path.is_file() else unmask.simulate(out / name, design=name, particles=900)


def halves(name: str, out: Path) -> Path:
    """The real table in two halves, at random or the small and the large, each dealt out to four makers who never were."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    frame = tables.read(data() / "debitage" / "LithicExperimentalData.csv").frame
    random, n = np.random.default_rng(0), len(frame)
    rank = frame["da"].rank(method="first") if name == "size-halves" else pd.Series(random.permutation(n))
    half, maker = (rank.to_numpy() > n / 2).astype(int), random.integers(0, 4, n)
    assemblages = []
    for k in range(8):
        label = f"{'ab'[k // 4]}{k % 4 + 1}"
        tables.write(folder / f"{label}.csv", frame[(half == k // 4) & (maker == k % 4)])
        assemblages.append({"name": label, "knapper": label, "skill": f"half {label[0]}", "table": f"{label}.csv"})
    (folder / "study.yaml").write_text(yaml.safe_dump({"title": name.replace("-", " "), "assemblages": assemblages}))
    return folder / "study.yaml"


def stones(name: str, out: Path) -> Path:
    """Tool class by site; or, of armatures alone, the taxon by site within region."""
    table = data() / "stone-tools" / "artefacts.csv"
    if name == "tools":
        question: dict[str, Any] = {"label": "label", "nuisances": ["region", "source_image", "taxon", "timeslice"]}
    else:
        question = {"label": "taxon", "nuisances": ["region", "source_image", "timeslice"], "strata": "region"}
        frame = pd.read_csv(table)
        frame["image"] = [str(table.parent / path) for path in frame["image"]]
        table = out / "armatures.csv"
        frame[frame["label"] == "armature"].to_csv(table, index=False)
    question["unit"] = "group"
    told = {
        "title": f"Late Palaeolithic artefacts: {name}",
        "particles": {"table": str(table), **STONES},
        "question": question,
    }
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    return path


def entry(folder: Path) -> dict[str, Any]:
    """What a finished study found, in short."""
    result = json.loads((folder / "result.json").read_text())
    for key in ("classification", "side-by-side"):
        table = folder / "tables" / f"{key}.csv"
        if table.is_file():
            kept = pd.read_csv(table)
            kept = kept.drop(columns=[column for column in ("sentence",) if column in kept])
            result[key.replace("-", "_")] = json.loads(kept.to_json(orient="records", double_precision=4))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=NAMES)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in asked.names:
        write = simulated if name in ("balanced", "three-knappers") else stones if name in ("tools", "taxa") else halves
        path = write(name, asked.out)
        settings = {"tools": {"beside": ("source_image",)}, "taxa": {"quick": True}}.get(name, {})
        folder = asked.out / f"{name}-results"
        unmask.study(path, out=folder, **settings)
        found[name] = entry(folder)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
