"""Does the verdict tell a good run from runs broken on purpose? MAE on CIFAR-10 with vit-tiny/4, on a CPU.

    UNMASK_DATA_DIR=… uv run python benchmarks/verdicts.py --out runs/verdicts [--steps 2500]

The good run (eight to nine minutes on two cores of 2025, and four more for the probe at its end) is probed on the test
set. The broken ones are shorter: a learning rate 100 times higher than in the good run, and one 1,000 times lower.

Optimiser, batch and rate of the good run, and that features are the class token beside the mean, were chosen on 5,000
training images held out, among fifteen trials of 150 seconds each (AdamW and Muon; batches of 32 to 256; rates, crops,
mask ratios and decoders). There, with 10,000 labels, Muon had a k-NN of 0.43 where AdamW had 0.38 (features not yet
standardised), and class+mean a logistic regression of 0.53 where mean alone had 0.51.
"""

import argparse
import json
import os
from pathlib import Path

import unmask

GOOD = {"encoder": "vit-tiny/4", "image_size": 32, "batch_size": 64, "optimiser": "muon", "base_lr": 4e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
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
