"""Objects found and pixels named from few images, on a processor, in minutes: what the README and docs/transfer.md quote.

    UNMASK_DATA_DIR=… uv run python benchmarks/dense.py --out runs/dense --phases pretrain detect segment table

Every run is one of `unmask`, as a user types it; a run that is there is not made again. Two processes of one thread each,
started side by side with --only, use two cores best: OMP_NUM_THREADS=1.

- pretrain: MAE on the training images alone, no labels: BCCD's 205 blood smears, CamVid's 367 frames of a drive.
- detect: Faster R-CNN on BCCD's boxes, judged on its test images: on that encoder, on the same from random weights, and on a
  ResNet-18 with an FPN from random weights; the same steps, batches and crops for all three. And on that encoder with ViTDet's
  layer decay.
- segment: UPerNet on CamVid, judged on its test frames: the same three.
- table: all of it into --results; the drawn boxes and pixels into docs/.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
ENCODER = "vit-tiny/16"
SIZES = {"bccd": "256x320", "camvid": "240x320"}


class Benchmark:
    def __init__(self, settings: argparse.Namespace):
        self.settings, self.out = settings, settings.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.data = Path(os.environ["UNMASK_DATA_DIR"])

    def run(self, name: str, *arguments: object) -> None:
        """`unmask …` into a folder of this name, gone on with if it was stopped."""
        out, only = self.out / name, self.settings.only
        if (not only or any(part in name for part in only)) and not (out / "result.json").is_file():
            told = map(str, (*arguments, "--out", out, "--resume"))
            subprocess.run([sys.executable, "-m", "unmask", *told], check=True)

    def images(self, name: str) -> Path:
        """The training images of a collection, as a table: nothing else may be pre-trained on."""
        table = self.out / f"{name}-train.csv"
        if name == "bccd":
            folder = self.data / "bccd" / "BCCD"
            listed = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()
            paths = [folder / "JPEGImages" / f"{stem}.jpg" for stem in listed]
        else:
            paths = sorted((self.data / "camvid" / "images" / "train").iterdir())
        table.write_text("\n".join(["image", *(str(path.resolve()) for path in paths)]) + "\n")
        return table

    def pretrain(self) -> None:
        for name, size in SIZES.items():
            told = ("--encoder", ENCODER, "--image-size", size, "--optimiser", "muon")
            steps = ("--steps", self.settings.mae_steps)
            self.run(f"{name}-mae", "pretrain", "mae", "--data", self.images(name), *told, *steps)

    def three(self, name: str, *told: object) -> None:
        starts = {
            "mae": (self.out / f"{name}-mae",),
            "random": ("--encoder", ENCODER),
            "resnet": ("--encoder", "resnet18"),
        }
        for start, encoder in starts.items():
            self.run(f"{name}-{start}-{told[0]}", told[0], *encoder, *told[1:], "--image-size", SIZES[name])

    def detect(self) -> None:
        folder = self.data / "bccd" / "BCCD"
        # the same optimiser for all: AdamW, at the rate that is chosen for a ViT
        rate = ("--optimiser", "adamw", "--base-lr", 0.0045, "--weight-decay", 0.05)
        alike = ("--steps", self.settings.steps, "--batch-size", 8, *rate)
        data = ("--data", f"{folder}:train", "--test", f"{folder}:test")
        self.three("bccd", "detect", *data, *alike)
        decayed = (self.out / "bccd-mae", *data, *alike, "--layer-decay", 0.7, "--image-size", SIZES["bccd"])
        self.run("bccd-mae-detect-decay", "detect", *decayed)

    def segment(self) -> None:
        folder = self.data / "camvid"
        data = ("--data", folder / "images" / "train", "--test", folder / "images" / "test", "--ignore", 11)
        self.three("camvid", "segment", *data, "--steps", self.settings.segment_steps, "--map-channels", 64)

    def table(self) -> None:
        found: dict[str, dict] = {}
        for path in sorted(self.out.glob("*/test.json")):
            test, result = json.loads(path.read_text()), json.loads((path.parent / "result.json").read_text())
            keep = {key: value for key, value in test.items() if key not in ("data", "remarks")}
            found[path.parent.name] = keep | {key: result[key] for key in ("steps", "seconds", "images", "parameters")}
        for name in SIZES:
            result = json.loads((self.out / f"{name}-mae" / "result.json").read_text())
            found[f"{name}-mae"] = {
                key: result[key] for key in ("loss", "uninformed_loss", "steps", "seconds", "images")
            }
        self.settings.results.write_text(json.dumps(found, indent=2) + "\n")
        for run, figure in (("bccd-mae-detect", "found"), ("camvid-mae-segment", "segments")):
            picture = Image.open(self.out / run / "figures" / f"{figure}.png").convert("RGB").reduce(2)
            picture.save(HERE.parent / "docs" / f"{figure}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    phases = ("pretrain", "detect", "segment", "table")
    parser.add_argument("--phases", nargs="+", choices=phases, default=phases)
    parser.add_argument("--only", nargs="*", help="only runs whose names have one of these in them")
    parser.add_argument("--mae-steps", type=int, default=2000, help="of the pre-training, 16 images each")
    parser.add_argument("--steps", type=int, default=600, help="of each detector, 8 images each")
    parser.add_argument("--segment-steps", type=int, default=200, help="of each segmenter, 16 images each")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "dense.json")
    settings = parser.parse_args()
    benchmark = Benchmark(settings)
    for phase in settings.phases:
        getattr(benchmark, phase)()


if __name__ == "__main__":
    main()
