"""unmask embed RUN: one vector an image, with what is known of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tyro.conf import Positional

from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate.features import extract
from unmask.screen import console
from unmask.training import engine
from unmask.training.run import whole
from unmask.verbs.load import load
from unmask.verbs.train import Unreadable


@dataclass(frozen=True)
class Embed:
    """Write the vector of each image to a table, beside its path, label, group and other columns."""

    run: Positional[str]
    """A run, or any encoder that `unmask.load` reads."""
    data: str
    """Images: a folder, a table, hf:…, wds:…, digits or photos."""
    out: Path | None = None
    """The table: .parquet (a column `embedding` of lists), .csv (a column a dimension) or .npz (`embedding`, and an
    array a column)."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes."""
    group: str = "group"
    """Column of tables with the groups."""
    strict: bool = False
    """Fail at the first unreadable image instead of leaving it out."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware."""
    workers: int = 1
    """Processes that read images."""


def embed(settings: Embed) -> pd.DataFrame:
    """The table that is written: what is known of each image, and a column `embedding` of float32 vectors (D,)."""
    kinds = (".parquet", ".csv", ".npz")
    if settings.out is not None and settings.out.suffix.lower() not in kinds:
        raise BadInput(f"--out {settings.out}: name a file that ends in .parquet, .csv or .npz")
    encoder, preprocess = load(settings.run)
    source = open_source(settings.data, image=settings.image, label=settings.label, group=settings.group)
    device = engine.choose_device(settings.device)
    precision, _ = engine.choose_precision(settings.precision, device)
    left_out = Unreadable([], settings.strict)
    vectors, index = extract(
        encoder,
        source,
        preprocess,
        encoder.image_size,
        device=device,
        precision=precision,
        workers=settings.workers,
        unreadable=left_out,
        title="embedding",
    )
    table = source.table.iloc[index.numpy()].reset_index(drop=True)
    if settings.out is not None:
        save(settings.out, table, vectors.numpy())
    where = f", into {settings.out}" if settings.out else ""
    console.print(
        f"{len(table):,} images as vectors of {vectors.shape[1]} numbers{where}; {len(left_out.reasons)} left out"
    )
    return table.assign(embedding=list(vectors.numpy()))


def save(out: Path, table: pd.DataFrame, vectors: np.ndarray) -> None:
    """Write beside, then rename: the file is whole or not there."""
    with whole(out) as beside:
        if out.suffix.lower() == ".parquet":
            table.assign(embedding=list(vectors)).to_parquet(beside, index=False)
        elif out.suffix.lower() == ".csv":
            columns = pd.DataFrame(vectors, columns=[f"e{i}" for i in range(vectors.shape[1])])
            pd.concat([table, columns], axis=1).to_csv(beside, index=False)
        else:
            numeric = {name: pd.api.types.is_numeric_dtype(table[name]) for name in table}
            arrays = {name: table[name].to_numpy(dtype=None if numeric[name] else str) for name in table}
            np.savez(beside, **{"embedding": vectors, **arrays})  # type: ignore[arg-type]
