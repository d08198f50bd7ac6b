"""What `unmask plan` says before a run beside what the run then took.

    UNMASK_DATA_DIR=… uv run python benchmarks/plan.py [--steps 20] [--out benchmarks/results/plan.json]

Each row is planned, and then trained for some steps on the photographs in UNMASK_DATA_DIR/imagenet-samples by the same
command that a user types, on this machine. Speed is the median over the lines of the run's log, the first third left out, in
which the images are decoded. Memory is the most that training held above what the process held before it, and its weights.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from unmask.verbs.plan import Plan, plan

ROWS = (("vit-tiny/16", 64), ("vit-tiny/8", 16), ("vit-small/32", 128), ("vit-small/16", 32), ("vit-base/16", 16))
CHILD = """
import pathlib, re, sys
from unmask.cli import main
from unmask.training import engine

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

def watched(*args, fit=engine.fit, **options):
    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the most so far, begins anew
    history = fit(*args, **options)
    print("TRAINING", memory("VmHWM") - before)
    return history

engine.fit = watched
try:
    main(sys.argv[1:])
finally:
    print("PROCESS", memory("VmHWM"))
"""


def trained(encoder: str, batch_size: int, steps: int, folder: Path) -> tuple[float, float, float]:
    """Of a real run: images a second, the loader's waits included (the median of its log, without the first lines, in which the
    images are decoded), and the most memory above what was there before training, and of the whole process, GiB."""
    run = folder / f"{encoder}-{batch_size}".replace("/", "-")
    data = Path(os.environ["UNMASK_DATA_DIR"], "imagenet-samples")
    options = {
        "data": data,
        "out": run,
        "encoder": encoder,
        "image-size": 224,
        "batch-size": batch_size,
        "steps": steps,
    }
    command = [sys.executable, "-c", CHILD, "pretrain", "mae"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    rates = [json.loads(line)["images_per_second"] for line in (run / "timing.jsonl").read_text().splitlines()]
    training, process = (int(re.search(rf"{name} (\d+)", said)[1]) / 2**20 for name in ("TRAINING", "PROCESS"))  # type: ignore[index]
    return statistics.median(rates[len(rates) // 3 :]), training, process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--machine", default="", help="what to call this machine in the results")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    results: dict = {"machine": settings.machine, "steps": settings.steps, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        for encoder, batch_size in ROWS:
            said = plan(Plan(encoder=encoder, image_size="224", batch_size=batch_size))
            speed, training, process = trained(encoder, batch_size, settings.steps, Path(name))
            row = {
                "encoder": encoder,
                "batch_size": batch_size,
                "parameters": said["parameters"],
                "gflop_an_image": said["flops"] / 1e9,
                "tensors_gib": said["tensors"] / 2**30,
                "planned_gib": said["peak"] / 2**30,
                "measured_gib": training + said["weights"] / 2**30,  # they were there before
                "process_gib": process,
                "planned_images_per_second": said["images_per_second"],
                "measured_images_per_second": speed,
            }
            results["rows"].append(row)
            print(json.dumps(row), flush=True)
    if settings.out:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
