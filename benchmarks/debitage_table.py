"""Does the analyser's table agree with itself? Measures recomputed from their definitions, beside those it exported.

    UNMASK_DATA_DIR=… uv run python benchmarks/debitage_table.py [--out benchmarks/results/debitage_table.json]

Takes 10 seconds. LithicExperimentalData.csv, 5,299 particles, three decimals: an exported value agrees if it lies within what
its definition allows when every number is moved by half its last digit. Expected:

- 22 of the 23 measures that other columns define agree in all 5,299 rows. Where areas of one or two digits leave the check
  blunt (`sharpness`), an equal definition from sharper columns (circularity = (Da/Dp)², say) agrees in all of them as well,
  and rival definitions do not.
- Fibre width is area over fibre length in each of 2,861 particles that were seen on one frame, looked into and given a
  ribbon. The 1,060 rows that disagree are all of the other kinds: 766 particles tracked over several frames, whose length
  and width come from different ones, and 294 of a few pixels that the analyser did not look into (transparency, angularity
  and curvature are 0); there the two are no measurement: rows that agree in all else differ in them.
- Fibre length is near the longer side of the rectangle of the particle's area and perimeter, but not within rounding: the
  perimeter that it is made from is another estimate, which the table does not hold.
- Curvature, angularity, transparency and Krumbein's roundness need the picture. hash and the filters are constant.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from unmask.debitage import tables
from unmask.debitage.tables import MEASURES

SHARPER = {
    "roundness": lambda da, feret_length: (da / feret_length) ** 2,
    "circularity": lambda da, dp: (da / dp) ** 2,
    "solidity": lambda surface_area, hull_surface_area: surface_area / hull_surface_area,
    "concavity": lambda solidity: 1 - solidity,
    "extent": lambda da, feret_length, feret_thickness: np.pi / 4 * da**2 / (feret_length * feret_thickness),
    "surface_area": lambda da: np.pi * da**2,
    "volume": lambda feret_length, feret_width, feret_thickness: (
        np.pi / 6 * feret_length * feret_width * feret_thickness
    ),
}
"""The same definitions from columns with more digits."""
RIVALS = {
    "volume, of the sphere of Da": ("volume", lambda da: np.pi / 6 * da**3),
    "volume, of the Legendre ellipses": (
        "volume",
        lambda ellipse_length, ellipse_width, ellipse_thickness: (
            np.pi / 6 * ellipse_length * ellipse_width * ellipse_thickness
        ),
    ),
    "extent, in Feret length times width": (
        "extent",
        lambda da, feret_length, feret_width: np.pi / 4 * da**2 / (feret_length * feret_width),
    ),
    "sieve, the width alone": ("sieve", lambda feret_width: feret_width),
    "sphericity, squared": ("sphericity", lambda da, dp: (da / dp) ** 2),
    "ellipse ratio, by the width": (
        "ellipse_ratio",
        lambda ellipse_width, ellipse_length: ellipse_width / ellipse_length,
    ),
    "compactness, by the width": ("compactness", lambda da, feret_width: da / feret_width),
    "fibre length, of the rectangle of area and perimeter": (
        "fiber_length",
        lambda perimeter, area: (perimeter + np.sqrt(np.maximum(perimeter**2 - 16 * area, 0))) / 4,
    ),
}


def share(export: tables.Export, name: str, formula) -> dict:
    """How often a measure agrees with another formula."""
    kept = MEASURES[name]
    MEASURES[name] = dataclasses.replace(kept, formula=formula)
    try:
        rows = tables.bounds(export, name)
    finally:
        MEASURES[name] = kept
    within = int(((rows["exported"] >= rows["low"]) & (rows["exported"] <= rows["high"])).sum())
    return {"n": len(rows), "within": within, "share": round(within / len(rows), 4)}


def quantiles(values: pd.Series) -> list[float]:
    return [round(float(each), 4) for each in values.quantile([0.05, 0.5, 0.95])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "debitage_table.json")
    out = parser.parse_args().out
    export = tables.read(Path(os.environ["UNMASK_DATA_DIR"]) / "debitage" / "LithicExperimentalData.csv")
    frame = export.frame

    several, blind = frame["width_thickness"] > 1, frame["transparency"] == 0
    kinds = {
        "tracked over several frames": several & ~blind,
        "not looked into": blind,
        "one frame, looked into": ~several & ~blind,
    }
    assert sum(int(of.sum()) for of in kinds.values()) == len(frame)
    off = tables.check(export)
    assert set(off["measure"]) <= {"fiber_width"}, "a measure disagrees for which no reason is known"
    strays = set(off["id"])
    fiber, listed = {}, {}
    for kind, of in kinds.items():
        rows = frame[of]
        ribbon = rows[rows["fiber_length"] > 0]
        around = 2 * (ribbon["fiber_length"] + ribbon["fiber_width"])
        disagree = ribbon[ribbon["id"].isin(strays)]
        fiber[kind] = {
            "particles": len(rows),
            "with a fibre length above 0": len(ribbon),
            "width is area over length": len(ribbon) - len(disagree),
            "width is something else": len(disagree),
            "their own perimeter over the exported one, 5%, 50%, 95%": quantiles(around / ribbon["perimeter"]),
            "circularity where the fibre length is 0, 5%, 50%, 95%": quantiles(
                rows.loc[rows["fiber_length"] == 0, "circularity"]
            ),
        }
        listed[kind] = ",".join(disagree["id"])

    rest = [name for name in frame if name not in ("id", "image_id", "fiber_length", "fiber_width")]
    equal = frame.groupby(rest, sort=False)
    alike = equal.size()[lambda sizes: sizes > 1]
    again = frame[frame.duplicated(rest, keep=False)]
    wholly = frame.duplicated([*rest, "fiber_length", "fiber_width"])
    result = {
        "particles": len(frame),
        "images": int(frame["image_id"].nunique()),
        "measures": len(MEASURES),
        "missing": list(export.missing),
        "constant": list(export.constant),
        "units as written": export.units,
        "notes": list(export.notes),
        "agreement": {
            row["measure"]: {
                "n": row["n"],
                "within": row["within"],
                "share": round(row["share"], 4),
                "sharpness": round(row["sharpness"], 4),
            }
            for row in tables.agreement(export).to_dict("records")
        },
        "agreement from sharper columns": {name: share(export, name, formula) for name, formula in SHARPER.items()},
        "rival definitions": {title: share(export, name, formula) for title, (name, formula) in RIVALS.items()},
        "from the picture alone": ["curvature", "transparency", "angularity", "krumbein_roundness"],
        "tracked over several frames": {
            "particles": int(several.sum()),
            "extent above 1": int((frame.loc[several, "extent"] > 1).sum()),
            "extent above 1, of one frame": int((frame.loc[~several, "extent"] > 1).sum()),
            "area over Feret length times width, 5%, 50%, 95%": quantiles(
                (frame["area"] / frame["feret_length"] / frame["feret_width"])[several]
            ),
            "area over Feret length times sieve, 5%, 50%, 95%": quantiles(
                (frame["area"] / frame["feret_length"] / frame["sieve"])[several]
            ),
            "the same, of one frame": quantiles(
                (frame["area"] / frame["feret_length"] / frame["sieve"])[~several & (frame["da"] > 0.2)]
            ),
        },
        "fibre": fiber,
        "volume of 0.000": {
            "particles": int((frame["volume"] == 0).sum()),
            "largest of them by its Feret diameters, mm³": round(
                float(
                    (np.pi / 6 * frame["feret_length"] * frame["feret_width"] * frame["feret_thickness"])[
                        frame["volume"] == 0
                    ].max()
                ),
                6,
            ),
        },
        "alike": {
            "rows equal to an earlier one but for the ids": int(wholly.sum()),
            "rows equal to another but for ids and fibre": len(again),
            "groups of them": len(alike),
            "of these rows, not looked into": int(blind[again.index].sum()),
            "fibre lengths in the largest group": int(equal.get_group(alike.idxmax())["fiber_length"].nunique()),
            "rows in the largest group": int(alike.max()),
        },
        "ids of rows whose fibre width is not area over length": {kind: ids for kind, ids in listed.items() if ids},
    }
    out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {key: value for key, value in result.items() if not key.startswith("ids")}, indent=2, ensure_ascii=False
        )
    )


if __name__ == "__main__":
    main()
