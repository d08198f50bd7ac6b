"""The largest principal components of patches as what is to be predicted: MAE with pca as its target."""

import torch
from torch import Tensor, nn

from unmask.layers import patchify


class Components(nn.Module):
    """Patches (..., V) of V = P*P*C values in K coefficients, and back. Frozen; checkpoints hold it, so that a run goes on with
    the components it began with. To be fitted before it is used.

    He et al. 2021 do not say how their 96 coefficients were scaled. Here all are divided by one number, which makes their
    mean square 1 over what they were fitted to. So each counts by how much of the image it makes, and their error is that
    of the pixels as far as these components show them. To divide each by its own deviation would count a faint component
    as much as the brightness of a patch.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, values: int, count: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.zeros(count, values))  # (K, V), rows of length 1, the largest first
        self.register_buffer("scale", torch.zeros(()))

    @torch.no_grad()
    def fit(self, images: Tensor, patch_size: int) -> None:
        """Principal components of all patches of images (B, C, H, W)."""
        patches = patchify(images, patch_size).flatten(0, 1).double()  # (B * N, V)
        self.mean.copy_(patches.mean(dim=0))
        variances, vectors = torch.linalg.eigh(patches.T.cov(correction=0))  # ascending; columns
        count = len(self.basis)
        self.basis.copy_(vectors.flip(1)[:, :count].T)
        self.scale.copy_(variances.flip(0)[:count].mean().clamp(min=1e-12).sqrt())

    def forward(self, patches: Tensor) -> Tensor:
        """Coefficients (..., K), in float32 as the pixels that they stand for."""
        with torch.autocast(patches.device.type, enabled=False):
            return (patches.float() - self.mean) @ self.basis.T / self.scale

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The patches (..., V) that these components make up; what the others would add is the mean's."""
        return coefficients * self.scale @ self.basis + self.mean
