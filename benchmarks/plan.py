"""What `unmask plan` says before a run beside what the run then took.

    UNMASK_DATA_DIR=… uv run python benchmarks/plan.py [--steps 20] [--out benchmarks/results/plan.json]

Each row is planned, and then trained for some steps on the photographs in UNMASK_DATA_DIR/imagenet-samples by the same
command that a user types, on this machine. Speed is the median over the lines of the run's log. Memory is the most that the
process held at any time, less what a run of the smallest encoder on the same images held: Python, torch and the loader.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from unmask.verbs.plan import Plan, plan

ROWS = (("vit-tiny/16", 64), ("vit-small/16", 32), ("vit-base/16", 16))
SMALLEST = ("vit-tiny/32", 1)

CHILD = """
import pathlib, sys
from unmask.cli import main
try:
    main(sys.argv[1:])
finally:
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    print("VmHWM", next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


def trained(encoder: str, batch_size: int, steps: int, folder: Path) -> tuple[float, float]:
    """Images a second and the process's peak in GiB, of a real run."""
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
    result = json.loads((run / "result.json").read_text())
    return result["images_per_second"], int(said.rsplit("VmHWM", 1)[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--machine", default="", help="what to call this machine in the results")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    results: dict = {"machine": settings.machine, "steps": settings.steps, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        _, ground = trained(*SMALLEST, 2, Path(name))
        for encoder, batch_size in ROWS:
            said = plan(Plan(encoder=encoder, image_size="224", batch_size=batch_size))
            speed, most = trained(encoder, batch_size, settings.steps, Path(name))
            row = {
                "encoder": encoder,
                "batch_size": batch_size,
                "parameters": said["parameters"],
                "gflop_an_image": said["flops"] / 1e9,
                "planned_gib": said["peak"] / 2**30,
                "measured_gib": most - ground,
                "planned_images_per_second": said["images_per_second"],
                "measured_images_per_second": speed,
            }
            results["rows"].append(row)
            print(json.dumps(row), flush=True)
    if settings.out:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
