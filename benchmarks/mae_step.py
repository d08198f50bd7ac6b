"""A training step of MAE beside lightly's and Hugging Face's, in one process, in turns.

    uv run python benchmarks/mae_step.py [--encoders vit-base/16 vit-small/16] [--batch-size 16] [--rounds 4]

Each step is forward, backward, optimiser, on the same images: 224 px, ratio 0.75, decoder 512 x 8 for all three. Three
comparisons: at equal bf16 (autocast for all), the same with all three through torch.compile, and out of the box (each at
its own defaults: ours takes bf16 where the processor has it and the fused AdamW; theirs run float32 and torch's default
AdamW). In each round every contestant makes
two steps, so that a machine that slows down slows all of them down; ratios are taken round by round, and their median is
quoted. All of them run with the same setting of the memory allocator, and masks are drawn inside the step.

FLOPs are counted by torch (matrix products of one step of ours, forwards and backwards, two for each multiplication and
addition). The peak is the fastest of several products of square bf16 matrices, each round before the contestants.
"""

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path

import timm
import torch
import transformers
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from unmask import models
from unmask.methods.mae import MAE, Settings
from unmask.training import engine
from unmask.training.optim import Recipe, optimisers_for


class Ours(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.mae = MAE(models.build(name, positions="sincos"), Settings(decoder_width=512, decoder_depth=8))

    def forward(self, images):
        seeds = torch.randint(2**62, (len(images),), device=images.device)  # the loader's, elsewhere
        return self.mae.loss(images, *self.mae.sample(seeds, self.mae.encoder.grid))["loss"]


class Lightly(nn.Module):
    """As in lightly's documentation of MAE, with the paper's decoder."""

    def __init__(self, name: str):
        super().__init__()
        vit = timm.create_model(name.replace("-", "_").replace("/", "_patch") + "_224", pretrained=False)
        self.patch_size = vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.length = self.backbone.sequence_length
        self.decoder = MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            patch_size=self.patch_size,
            embed_dim=vit.embed_dim,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        )

    def forward(self, images):
        B = len(images)
        keep, masked = utils.random_token_mask((B, self.length), mask_ratio=0.75, device=images.device)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (B, self.length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), masked - 1)
        return nn.functional.mse_loss(predicted, utils.normalize_mean_var(target, dim=-1))


class HuggingFace(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        width, depth, heads = models.SIZES[name.split("/")[0]]
        self.mae = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                patch_size=int(name.split("/")[1]),
                norm_pix_loss=True,
            )
        )

    def forward(self, images):
        return self.mae(pixel_values=images).loss


def contestant(model: nn.Module, device: torch.device, bf16: bool, fused: bool, compiled: bool):
    """A function that makes one step."""
    model.to(device).train()
    forward = torch.compile(model) if compiled else model
    if fused:
        (optimiser,) = optimisers_for(model, Recipe(100, 1e-4))
    else:
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    context = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def step(images):
        with context:
            loss = forward(images)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def peak(device: torch.device) -> float:
    """Matrix products in bf16, operations a second."""
    best = 0.0
    for size in (1024, 2048, 4096, *([8192, 16384] if device.type == "cuda" else [])):
        a = torch.randn(size, size, device=device).bfloat16()
        for repeat in range(4):
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def operations(step, images) -> float:
    """Of one step, an image."""
    with FlopCounterMode(display=False) as counter:
        step(images)
    return counter.get_total_flops() / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["vit-base/16", "vit-small/16"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--comparisons", nargs="+", default=["equal bf16", "equal bf16, compiled", "out of the box"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    device = engine.choose_device(settings.device)
    fast = engine.choose_precision("auto", device)[0] == "bf16"
    engine.keep_memory()
    results = {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "batch_size": settings.batch_size,
    }
    for name in settings.encoders:
        images = torch.randn(settings.batch_size, 3, 224, 224, device=device)
        for comparison in settings.comparisons:
            theirs, compiled = comparison != "out of the box", comparison == "equal bf16, compiled"
            steps = {
                "unmask": contestant(Ours(name), device, bf16=fast or theirs, fused=True, compiled=compiled),
                "lightly": contestant(Lightly(name), device, bf16=theirs, fused=False, compiled=compiled),
                "Hugging Face": contestant(HuggingFace(name), device, bf16=theirs, fused=False, compiled=compiled),
            }
            rates: dict[str, list[float]] = {who: [] for who in steps}
            flops, peaks = operations(contestant(Ours(name), device, theirs, True, False), images), []
            for round_number in range(settings.rounds + 1):
                peaks.append(peak(device))
                for who, step in steps.items():
                    began = time.perf_counter()
                    for _ in range(settings.steps):
                        step(images)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    if round_number:  # the first one warms up
                        rates[who].append(settings.batch_size * settings.steps / (time.perf_counter() - began))
            line = {who: statistics.median(values) for who, values in rates.items()}
            ratios = {
                f"unmask / {who}": statistics.median(a / b for a, b in zip(rates["unmask"], rates[who], strict=True))
                for who in ("lightly", "Hugging Face")
            }
            share = statistics.median(rate * flops / top for rate, top in zip(rates["unmask"], peaks[1:], strict=True))
            results[f"{name}, {comparison}"] = {
                "images_per_second": line,
                "ratios": ratios,
                "gflop_an_image": flops / 1e9,
                "peak_gflop_per_second": statistics.median(peaks) / 1e9,
                "share_of_peak": share,
            }
            print(f"{name}, {comparison}:", ", ".join(f"{who} {value:.2f} images/s" for who, value in line.items()))
            print("   ", ", ".join(f"{who} {value:.2f}" for who, value in ratios.items()))
            print(
                f"    {flops / 1e9:.1f} GFLOP an image, {share:.0%} of {statistics.median(peaks) / 1e9:,.0f} GFLOP/s",
                flush=True,
            )
            del steps
            torch.compiler.reset()
    if settings.out:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
