"""What it saves to leave mask tokens out of the encoder, and to take a light decoder: MAE's table 2, measured here.

    uv run python benchmarks/wall_clock.py [--encoders vit-base/16 vit-large/16] [--rounds 4] [--batch-size 8] [--device cuda]

Whole training steps (forward, backward, AdamW) on the same images, 224 px, ratio 0.75, decoder 512 wide: mask tokens seen by
the encoder, 8 blocks of decoder; not seen by it, 8 blocks; not seen, 1 block. All in one process, in turns: each makes --steps
steps a round, so that a machine that slows down slows all of them down. Speed-ups are taken round by round; their median is
quoted, with the smallest and the largest. In bf16 where the device multiplies it in hardware, as `unmask pretrain` does.

Masks are drawn inside the step; images lie on the device, so that nothing is loaded. FLOPs are counted by torch (matrix
products, forwards and backwards, two for each multiplication and addition): what the saving would be if all operations took
alike long.

Published (He et al. 2022, table 2): hours of 800 epochs on 128 cores of TPU-v3, from storage; the first row of ViT-H was
estimated there.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from unmask import models
from unmask.methods.mae import MAE, Settings
from unmask.training import engine
from unmask.training.optim import Recipe, optimisers_for
from unmask.verbs.plan import needs

CASES = {
    "mask tokens, 8 blocks": Settings(mask_token_in_encoder=True, decoder_width=512, decoder_depth=8),
    "none, 8 blocks": Settings(decoder_width=512, decoder_depth=8),
    "none, 1 block": Settings(decoder_width=512, decoder_depth=1),
}
PUBLISHED = {
    "ViT-L": {"mask tokens, 8 blocks": 42.4, "none, 8 blocks": 15.4, "none, 1 block": 11.6},
    "ViT-H": {"mask tokens, 8 blocks": 119.6, "none, 8 blocks": 34.5, "none, 1 block": 29.3},
}
"""Hours."""
RESULTS = Path(__file__).parent / "results" / "wall_clock.json"


def mae(name: str, settings: Settings) -> MAE:
    return MAE(models.build(name, image_size=(224, 224), channels=3, **MAE.ENCODER), settings)


class Step(nn.Module):
    def __init__(self, name: str, settings: Settings):
        super().__init__()
        self.mae = mae(name, settings)

    def forward(self, images):
        seeds = torch.randint(2**62, (len(images),), device=images.device)  # the loader's, elsewhere
        return self.mae.loss(images, *self.mae.sample(seeds, self.mae.encoder.grid))["loss"]


def contestant(name: str, settings: Settings, device: torch.device, precision: str, compiled: bool):
    """A function that makes one step."""
    model = Step(name, settings).to(device).train()
    forward = torch.compile(model) if compiled else model
    (optimiser,) = optimisers_for(model, Recipe(100, 1e-4))

    def step(images):
        with engine.autocast(device, precision):
            loss = forward(images)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def operations(name: str, settings: Settings) -> int:
    """Of one step, an image; played through without computing it."""
    return needs(lambda: mae(name, settings), 1, "float32", "adamw").flops


def timed(step, images, steps: int) -> float:
    """Seconds a step."""
    began = time.perf_counter()
    for _ in range(steps):
        step(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["vit-base/16", "vit-large/16"])
    parser.add_argument("--batch-size", type=int, help="default: 8 on a CPU, 128 on a GPU")
    parser.add_argument("--rounds", type=int, default=4, help="after one that warms up")
    parser.add_argument("--steps", type=int, help="steps a round; default: 1 on a CPU, 10 on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    device = engine.choose_device(settings.device)
    precision, why = engine.choose_precision(settings.precision, device)
    gpu = device.type == "cuda"
    batch, steps = settings.batch_size or (128 if gpu else 8), settings.steps or (10 if gpu else 1)
    if not gpu:
        engine.keep_memory()
    where = torch.cuda.get_device_name() if gpu else f"CPU {torch.backends.cpu.get_cpu_capability()}"
    print(f"{where}, {torch.get_num_threads()} threads, {precision} ({why}), {batch} images a step", flush=True)

    results: dict = {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "batch_size": batch,
        "compiled": settings.compile,
        "rounds": settings.rounds,
        "steps_a_round": steps,
        "published_hours": PUBLISHED,
    }
    for name in settings.encoders:
        images = torch.randn(batch, 3, 224, 224, device=device)
        flops = {case: operations(name, own) for case, own in CASES.items()}
        contestants = {case: contestant(name, own, device, precision, settings.compile) for case, own in CASES.items()}
        seconds: dict[str, list[float]] = {case: [] for case in CASES}
        for number in range(settings.rounds + 1):
            for case, step in contestants.items():
                taken = timed(step, images, steps)
                if number:  # the first one warms up
                    seconds[case].append(taken)
        results[name] = {case: line(case, seconds, flops, batch) for case in CASES}
        show(name, results[name])
        del contestants
        torch.compiler.reset()
    known = json.loads(settings.out.read_text()) if settings.out.is_file() else {}
    settings.out.write_text(json.dumps(known | {where: results}, indent=2) + "\n")


def line(case: str, seconds: dict[str, list[float]], flops: dict[str, int], batch: int) -> dict:
    """What was found of one case: its speed-up over the first, round by round."""
    slowest = next(iter(CASES))
    ratios = [before / after for before, after in zip(seconds[slowest], seconds[case], strict=True)]
    return {
        "images_per_second": batch / statistics.median(seconds[case]),
        "speed_up": statistics.median(ratios),
        "speed_up_range": [min(ratios), max(ratios)],
        "gflop_an_image": flops[case] / 1e9,
        "fewer_operations": flops[slowest] / flops[case],
    }


def show(name: str, found: dict) -> None:
    """A table, beside the published one."""
    print(f"\n{name:24}{'images/s':>10}{'speed-up':>22}{'GFLOP':>9}{'fewer':>8}   published: ViT-L, ViT-H")
    for case, row in found.items():
        low, high = row["speed_up_range"]
        theirs = ", ".join(
            f"{hours[case]:.1f} h ({next(iter(hours.values())) / hours[case]:.1f}x)" for hours in PUBLISHED.values()
        )
        print(
            f"{case:24}{row['images_per_second']:10.2f}{row['speed_up']:8.2f} [{low:.2f}, {high:.2f}]"
            f"{row['gflop_an_image']:9.1f}{row['fewer_operations']:7.2f}x   {theirs}",
            flush=True,
        )


if __name__ == "__main__":
    main()
