"""CIFAR-10, MAE, vit-tiny/4: images a second of loader and step together, ours beside lightly's and Hugging Face's.

    UNMASK_DATA_DIR=… uv run python benchmarks/in_memory.py [--batch-size 64] [--steps 20] [--rounds 5]

Ours is what `unmask pretrain` does: on a GPU the images are held there as bytes and cropped in whole batches, on a CPU they
are kept in memory and cropped one by one, both without workers; bf16 where the hardware has it; fused AdamW. Theirs is what
their documentation does: the images in memory as bytes (as torchvision's CIFAR10 has them), torchvision's
RandomResizedCrop(32, (0.2, 1), bicubic), flip, ToTensor and Normalize in the workers of a DataLoader (one a core), float32,
torch's AdamW. Ours is there twice, as it is and with --compile. Encoder, decoder (128 x 2), mask ratio and batch are the
same. All in one process, in turns: in each round every contestant trains on so many batches from its own running stream;
the median over the rounds of the ratio is quoted.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import lightly
import numpy as np
import torch
import transformers
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.methods.mae import MAE
from unmask.training import engine
from unmask.training.engine import Clock
from unmask.training.optim import Recipe, optimisers_for

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Bytes(Dataset):
    """Images in memory through the transforms of the documentation."""

    def __init__(self, source: Source):
        self.images = np.stack([source.image(i).permute(1, 2, 0).numpy() for i in range(len(source))])
        crop = v2.RandomResizedCrop(32, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
        tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(), *tensor])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[i]))


class Lightly(nn.Module):
    def __init__(self, patch: int = 4):
        super().__init__()
        self.patch = patch
        vit = VisionTransformer(img_size=32, patch_size=patch, embed_dim=192, depth=12, num_heads=3, num_classes=0)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.length = self.backbone.sequence_length
        self.decoder = MAEDecoderTIMM(
            num_patches=(32 // patch) ** 2,
            patch_size=patch,
            embed_dim=192,
            decoder_embed_dim=128,
            decoder_depth=2,
            decoder_num_heads=4,
        )

    def forward(self, images: Tensor) -> Tensor:
        B = len(images)
        keep, masked = utils.random_token_mask((B, self.length), mask_ratio=0.75, device=images.device)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (B, self.length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, self.patch), masked - 1)
        return nn.functional.mse_loss(predicted, utils.normalize_mean_var(target, dim=-1))


class HuggingFace(nn.Module):
    def __init__(self):
        super().__init__()
        config = ViTMAEConfig(
            hidden_size=192,
            num_hidden_layers=12,
            num_attention_heads=3,
            intermediate_size=768,
            image_size=32,
            patch_size=4,
            decoder_hidden_size=128,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=512,
            norm_pix_loss=True,
        )
        self.mae = ViTMAEForPreTraining(config)

    def forward(self, images: Tensor) -> Tensor:
        return self.mae(pixel_values=images).loss


def theirs(model: nn.Module, images: Bytes, batch_size: int, device: torch.device) -> Iterator[None]:
    """One step at each `next`."""
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    workers = os.cpu_count() or 1
    pin = device.type == "cuda"
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True, pin_memory=pin)
    while True:
        for batch in loader:
            loss = model(batch.to(device, non_blocking=True))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            yield


def ours(source: Source, batch_size: int, device: torch.device, compiled: bool = False) -> Iterator[None]:
    method = MAE(models.build("vit-tiny/4", image_size=(32, 32), **MAE.ENCODER)).to(device).train()
    (optimiser,) = optimisers_for(method, Recipe(100, 1e-4))
    precision, _ = engine.choose_precision("auto", device)
    held, forward = device.type == "cuda", torch.compile(method) if compiled else method
    loader = Loader(source, Preprocess(3, MEAN, STD), method.views, batch_size, device=device, hold=held)
    for batch in loader():
        with engine.autocast(device, precision):
            loss = forward(batch, Clock(0, 1, 0.0))["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    device = engine.choose_device(settings.device)
    engine.keep_memory()
    source = open_source(Path(os.environ["UNMASK_DATA_DIR"]) / "cifar10" / "train.parquet")
    images = Bytes(source)
    contestants = {
        "unmask": ours(source, settings.batch_size, device),
        "unmask --compile": ours(source, settings.batch_size, device, compiled=True),
        "lightly": theirs(Lightly(), images, settings.batch_size, device),
        "Hugging Face": theirs(HuggingFace(), images, settings.batch_size, device),
    }
    rates: dict[str, list[float]] = {who: [] for who in contestants}
    for round_number in range(settings.rounds + 1):
        for who, steps in contestants.items():
            time.sleep(1)  # while the workers of the one before fill their queues and rest
            for _ in range(1 + 2 * (os.cpu_count() or 1)):
                next(steps)  # what its workers prepared meanwhile
            began = time.perf_counter()
            for _ in range(settings.steps):
                next(steps)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first one warms up
                rates[who].append(settings.batch_size * settings.steps / (time.perf_counter() - began))
    result = {
        "torch": str(torch.__version__),
        "lightly": lightly.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "batch_size": settings.batch_size,
        "images_per_second": {who: statistics.median(values) for who, values in rates.items()},
        "ratios": {
            f"{mine} / {who}": statistics.median(a / b for a, b in zip(rates[mine], rates[who], strict=True))
            for mine in ("unmask", "unmask --compile")
            for who in ("lightly", "Hugging Face")
        },
    }
    print(json.dumps(result, indent=2))
    if settings.out:
        settings.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
