"""Learning from labels on CIFAR-10, on a processor, in minutes: what the README and docs/labels.md quote.

    UNMASK_DATA_DIR=… uv run python benchmarks/labels.py --out runs/labels --phases scratch partial distill table

Every run is one of `unmask`, as a user types it, and is judged on the 10,000 test images; a run that is there is not made again.
Two processes of one thread each, started side by side with --only, use two cores best: OMP_NUM_THREADS=1.

- scratch: CCT-2/3x2, CVT-2/4 and ViT-Lite-2/4 for so many --seconds each (by their own rate, measured before), three seeds,
  the recipe that `unmask finetune` chooses.
- partial: figure 9 of He et al. 2022 from one run of MAE (--mae, or one of so many seconds that is made first): 0 (linear), 0.5,
  1, 2, 4 and all blocks, for so many --steps of 64 images each; and all of the same encoder from scratch.
- distill: CCT-2/3x2 with a tenth and with a hundredth of the labels teaches another one on all images, labels unseen; beside it
  CCT-2/3x2 trained on those labels alone, for as many steps as the student, and for as many as teacher and student together.
- gpu: for a GPU, not run yet: CCT-7/3x1 by the paper's 200 epochs (94.78 percent published, on lossless files), images and
  augmentation on the device; then ViT-Lite-7/4 that MAE trained first, fine-tuned beside the same from scratch (91.38 published)
  with all, a tenth and a hundredth of the labels.
- table: all of it into --results, and the figure of partial fine-tuning.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from unmask import figures
from unmask.evaluate import metrics

SCRATCH = ("cct-2/3x2", "cvt-2/4", "vit-lite-2/4")
SHARES = 10, 1
"""Percent of the labels."""
BLOCKS = ("0", "0.5", "1", "2", "4", "all")
HERE = Path(__file__).parent


def unmask(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "unmask", *map(str, arguments)], check=True)


def read(run: Path, name: str) -> dict:
    path = run / name
    return json.loads(path.read_text()) if path.is_file() else {}


class Benchmark:
    def __init__(self, settings: argparse.Namespace):
        self.settings, self.out = settings, settings.out
        data = Path(os.environ["UNMASK_DATA_DIR"]) / "cifar10"
        self.train, self.test = data / "train.parquet", data / "test.parquet"
        self.mae = settings.mae or settings.out / "mae"

    def wanted(self, name: str) -> bool:
        return not self.settings.only or any(part in name for part in self.settings.only)

    def run(self, name: str, *arguments: object) -> Path:
        """`unmask …` into a folder of this name, gone on with if it was stopped."""
        out = self.out / name
        if self.wanted(name) and not (out / "result.json").is_file():
            unmask(*arguments, "--out", out, "--resume")
        return out

    def labelled(self, name: str, *arguments: object) -> Path:
        return self.run(name, "finetune", *arguments, "--data", self.train, "--test", self.test)

    def steps(self, encoder: str) -> int:
        """How many of an encoder's steps make so many seconds, by the second half of a short run."""
        kept = self.out / f"steps-{encoder.replace('/', '-')}.json"
        if not kept.is_file():
            trial = self.out / f"trial-{encoder.replace('/', '-')}"
            shutil.rmtree(trial, ignore_errors=True)
            unmask(
                "finetune", "--encoder", encoder, "--data", self.train, "--labels", 2000, "--steps", 250, "--out", trial
            )
            lines = [json.loads(line) for line in (trial / "timing.jsonl").read_text().splitlines()]
            rates = sorted(line["images_per_second"] for line in lines[len(lines) // 2 :])
            rate = rates[len(rates) // 2]
            steps = round(self.settings.seconds * rate / 128)  # the batch that is chosen
            kept.write_text(json.dumps({"images_per_second": rate, "steps": steps}))
        return json.loads(kept.read_text())["steps"]

    def scratch(self) -> None:
        for seed in range(3):
            for encoder in SCRATCH:
                name = f"{encoder.replace('/', '-')}-seed-{seed}"
                if self.wanted(name):
                    self.labelled(name, "--encoder", encoder, "--steps", self.steps(encoder), "--seed", seed)

    def pretrained(self) -> Path:
        if not (self.mae / "result.json").is_file():
            arguments = ("--encoder", "vit-tiny/8", "--steps", self.settings.mae_steps)
            unmask("pretrain", "mae", "--data", self.train, *arguments, "--out", self.mae, "--resume")
        return self.mae

    def partial(self) -> None:
        for blocks in BLOCKS:
            told = ("--batch-size", 64, *(() if blocks == "all" else ("--blocks", blocks)))
            self.labelled(f"blocks-{blocks}", self.pretrained(), "--steps", self.settings.steps, *told)
        same = ("--steps", self.settings.steps, "--batch-size", 64)
        self.labelled("blocks-scratch", "--encoder", "vit-tiny/8", *same)

    def distill(self) -> None:
        encoder, steps = ("--encoder", "cct-2/3x2"), self.settings.distill_steps
        for share in SHARES:
            few = (*encoder, "--labels", f"{share}%")
            for name, times in (("alone", 1), ("teacher", 2), ("longer", 3)):
                self.labelled(f"{name}-{share}", *few, "--steps", times * steps)
            if (self.out / f"teacher-{share}" / "result.json").is_file():
                told = ("--steps", steps, "--data", self.train, "--test", self.test)
                self.run(f"student-{share}", "distill", self.out / f"teacher-{share}", *told)

    def gpu(self) -> None:
        fast = ("--device", "cuda", "--hold", "--compile", "--batch-size", 1024)
        paper = ("--augment", "auto", "--shift", 4, "--crop-scale", 1, 1, "--mixup", 0, "--cutmix", 0, "--erasing", 0)
        paper += ("--epochs", 200, "--weight-decay", 0.03, "--base-lr", 5e-4 * 2 / 8**0.5)  # root of the batch: 8 x 128
        self.labelled("gpu-cct-7-3x1", "--encoder", "cct-7/3x1", *paper, *fast)
        mae = self.out / "gpu-mae"
        if self.wanted("gpu-mae"):
            lite = ("--encoder", "vit-lite-7/4", "--epochs", 800, "--data", self.train)
            self.run("gpu-mae", "pretrain", "mae", *lite, *fast)
        for share, epochs in (("100%", 100), ("10%", 300), ("1%", 1000)):
            batch = ("--device", "cuda", "--hold", "--compile", "--batch-size", {"1%": 128}.get(share, 512))
            for name, start in (("mae", (mae,)), ("scratch", ("--encoder", "vit-lite-7/4"))):
                told = (*start, "--labels", share, "--epochs", 2 * epochs if name == "scratch" else epochs, *batch)
                self.labelled(f"gpu-{name}-{share.rstrip('%')}", *told)

    def table(self) -> None:
        def score(name: str) -> dict:
            test, result = read(self.out / name, "test.json"), read(self.out / name, "result.json")
            kept = {key: test[key] for key in ("accuracy", "low", "high", "balanced")} | {
                "ece": test["calibration"]["ece"]
            }
            return kept | {key: result[key] for key in ("steps", "seconds", "images")}

        found: dict = {"scratch": {}, "partial": [], "distill": {}}
        for encoder in SCRATCH:
            names = [f"{encoder.replace('/', '-')}-seed-{seed}" for seed in range(3)]
            names = [name for name in names if (self.out / name / "test.json").is_file()]
            if names:
                reports = [read(self.out / name, "test.json") for name in names]
                found["scratch"][encoder] = {"runs": [score(name) for name in names], "seeds": metrics.seeds(reports)}
        for blocks in BLOCKS:
            if (self.out / f"blocks-{blocks}" / "test.json").is_file():
                count = {"all": "all", "0.5": 0.5}.get(blocks) or int(blocks)
                found["partial"].append({"blocks": count, **score(f"blocks-{blocks}")})
        if (self.out / "blocks-scratch" / "test.json").is_file():
            found["from scratch"] = score("blocks-scratch")
        for share in SHARES:
            names = [
                name
                for name in ("alone", "student", "teacher", "longer")
                if (self.out / f"{name}-{share}/test.json").is_file()
            ]
            found["distill"][f"{share}%"] = {name: score(f"{name}-{share}") for name in names}
        for run in sorted(self.out.glob("gpu-*/test.json")):
            found.setdefault("gpu", {})[run.parent.name] = score(run.parent.name)
        print(json.dumps(found, indent=2))
        if self.settings.results:
            self.settings.results.write_text(json.dumps(found, indent=2) + "\n")
        if found["partial"] and self.settings.figure:
            self.settings.figure.write_bytes(figures.partial({"MAE, ViT-Ti/8": found["partial"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    phases = ("scratch", "partial", "distill", "table")
    parser.add_argument("--phases", nargs="+", choices=(*phases, "gpu"), default=phases)
    parser.add_argument("--only", nargs="*", help="only runs whose names have one of these in them")
    parser.add_argument("--seconds", type=float, default=300, help="of each run from scratch")
    parser.add_argument("--steps", type=int, default=2000, help="of each fine-tuning")
    parser.add_argument("--distill-steps", type=int, default=3000, help="of a student; its teacher has twice as many")
    parser.add_argument("--mae", type=Path, help="a run of MAE to go on from")
    parser.add_argument("--mae-steps", type=int, default=6000, help="of the run of MAE that is made without --mae")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "labels.json")
    parser.add_argument("--figure", type=Path, default=HERE.parent / "docs" / "partial.png")
    settings = parser.parse_args()
    benchmark = Benchmark(settings)
    for phase in settings.phases:
        getattr(benchmark, phase)()


if __name__ == "__main__":
    main()
