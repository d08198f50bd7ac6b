"""The parts vision transformers are made of: patches, positions, attention, MLP, block.

Everything here runs on any subset of patches: nothing assumes that tokens fill a grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import BadInput


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into flattened patches, row by row, each patch as (row, column, channel) as in MAE's reference code.

    images: (B, C, H, W), H and W multiples of `patch_size`. Returns (B, N, P*P*C), N = H/P * W/P, same dtype.
    """
    B, C, H, W = images.shape
    grid_of((H, W), patch_size)
    P = patch_size
    patches = images.reshape(B, C, H // P, P, W // P, P)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // P) * (W // P), P * P * C)


def unpatchify(patches: Tensor, image_size: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify`: (B, N, P*P*C) back to images (B, C, H, W)."""
    rows, columns = grid_of(image_size, patch_size)
    P = patch_size
    images = patches.reshape(patches.shape[0], rows, columns, P, P, -1)
    return images.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, rows * P, columns * P)


def grid_of(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of (height, width) pixels. BadInput unless the patch divides both."""
    height, width = image_size
    if height < patch_size or width < patch_size:
        raise BadInput(
            f"an image of {height}x{width} pixels is smaller than one {patch_size}-pixel patch: "
            "choose a larger --image-size or an encoder with smaller patches"
        )
    if height % patch_size or width % patch_size:
        near = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
        raise BadInput(
            f"patches of {patch_size} pixels do not tile an image of {height}x{width}: use --image-size {near[0]}x{near[1]}"
        )
    return height // patch_size, width // patch_size


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens (B, N, D) at indices (B, K) into (B, K, D)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed two-dimensional sine-cosine positions, (N, dim) float32: half of the dimensions tell the column, half the
    row, as in MAE's reference code (which follows MoCo v3). `dim` must be a multiple of 4."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    halves = []
    for coordinate in (columns, rows):
        angles = coordinate.reshape(-1, 1).double() * frequencies  # (N, dim/4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()


def sine_positions(dim: int, count: int) -> Tensor:
    """Fixed positions of a sequence, (count, dim) float32 (Vaswani et al. 2017, section 3.5): sines and cosines in turn, of
    frequencies that fall with the dimension; `dim` even."""
    frequencies = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(count).double()[:, None] * frequencies  # (count, dim/2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions (N, D) learnt on the grid `old`, interpolated (bicubic, antialiased) to the grid `new`."""
    if old == new:
        return positions
    grid = positions.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1).to(positions.dtype)


def resample_offsets(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table (rows, heads) of biases for the offsets on the grid `old`, see `offset_index`, interpolated to the grid `new`."""
    wide, wider = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new))
    between, special = table.split([wide[0] * wide[1], len(table) - wide[0] * wide[1]])
    return torch.cat([resample_positions(between, wide, wider), special])


@dataclass(frozen=True)
class Offsets:
    """How tokens lie to each other, for attention with relative positions."""

    grid: tuple[int, int]
    """Rows and columns of the patches of the image."""
    index: Tensor
    """Which row of a table of that grid each pair of a query and a key reads, (1, T, T) int64, or (B, T, T) where each image
    keeps patches of its own."""


def offset_index(patches: Tensor, grid: tuple[int, int], class_token: bool) -> Tensor:
    """Rows of a table of offsets (Bao et al. 2021, as timm's Beit orders them) for patches (B, K) of a grid (h, w), counted
    row by row: (B, T, T) int64 for query and key, T = K, or K + 1 with a class token in front.

    The table has (2 h - 1)(2 w - 1) rows, an offset each, and three more with a class token: from it to a patch, from a patch
    to it, and to itself.
    """
    rows, columns = grid
    row, column = patches // columns, patches % columns  # (B, K) each
    down, right = (x[:, :, None] - x[:, None, :] for x in (row, column))  # (B, K, K): query less key
    index = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    if class_token:
        last = (2 * rows - 1) * (2 * columns - 1)
        index = F.pad(index, (1, 0, 1, 0), value=last)
        index[:, 1:, 0], index[:, 0, 0] = last + 1, last + 2
    return index


@dataclass(frozen=True)
class Windows:
    """Attention within squares of `side` x `side` patches of a grid, as ViTDet has it in most blocks (Li et al. 2022, "Exploring
    Plain Vision Transformer Backbones", section 3): patches that a grid lacks to fill its last squares are zeros there."""

    grid: tuple[int, int]
    side: int

    @property
    def counts(self) -> tuple[int, int]:
        """Windows above and beside each other."""
        return -(-self.grid[0] // self.side), -(-self.grid[1] // self.side)

    def cut(self, x: Tensor) -> Tensor:
        """Patches (B, N, D) of the grid to their windows, (B * windows, side * side, D)."""
        (rows, columns), (down, right), side = self.grid, self.counts, self.side
        x = x.unflatten(1, self.grid)  # (B, h, w, D)
        x = F.pad(x, (0, 0, 0, right * side - columns, 0, down * side - rows))
        x = x.unflatten(2, (right, side)).unflatten(1, (down, side))  # (B, down, side, right, side, D)
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `cut`."""
        (rows, columns), (down, right), side = self.grid, self.counts, self.side
        x = x.view(-1, down, right, side, side, x.shape[-1]).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, :rows, :columns].flatten(1, 2)


class RelativeBias(nn.Module):
    """What attention adds to the product of a query and a key for the offset between their patches: learnt, a number a head
    (Bao et al. 2021, section 2.1, after Raffel et al. 2020), from 0 on."""

    def __init__(self, heads: int, grid: tuple[int, int], class_token: bool):
        super().__init__()
        self.grid, special = grid, 3 if class_token else 0
        self.table = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + special, heads))

    def forward(self, offsets: Offsets) -> Tensor:
        """(1 or B, heads, T, T), from the table resampled where the grid is not the one trained on."""
        table = self.table
        if offsets.grid != self.grid:
            table = resample_offsets(table, self.grid, offsets.grid)
        return F.embedding(offsets.index, table).permute(0, 3, 1, 2)


def to_compute_dtype(x: Tensor) -> Tensor:
    """Cast to the autocast dtype, when there is one: what a matrix product would do anyway, done before the layer norm,
    so that the norm reads and writes half the memory (its statistics are float32 inside the kernel all the same)."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # of meta tensors torch refuses to say
        return x
    return x.to(torch.get_autocast_dtype(device))


@torch.compiler.disable()  # it cannot follow numpy
def drop(x: Tensor, rate: float) -> Tensor:
    """Dropout, on a CPU, in half the time of torch's own or less: its random bits are made one after another, here four values
    share a number of 64 bits, and numpy makes those. A share of the values that is `rate` to 1/65536, and no less than that,
    becomes 0; the others are scaled up."""
    seed = torch.randint(2**62, ())
    if type(seed) is not Tensor:  # a step that is only played through, as `unmask plan` does, has no numbers
        return F.dropout(x, rate)
    draws = np.random.SFC64(int(seed)).random_raw(x.numel() // 4 + 1)
    bits = torch.from_numpy(draws).view(torch.int16)[: x.numel()].view(x.shape)
    least = max(1, round(rate * 2**16)) - 2**15
    kept = bits.clamp_(least - 1, least).sub_(least - 1)  # 0 or 1; a comparison is slower
    return x * kept.to(x.dtype).mul_(1 / (1 - rate))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), with queries for some of the tokens only when asked, and a bias for
    relative positions if it is given one. dropout: share of the weights that training leaves out."""

    def __init__(
        self, dim: int, heads: int, bias: RelativeBias | None = None, qkv_bias: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        if dim % heads:
            raise BadInput(f"{heads} attention heads do not divide a width of {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.projection = nn.Linear(dim, dim)
        self.bias, self.dropout = bias, dropout

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)

    def forward(self, x: Tensor, queries: slice | None = None, offsets: Offsets | None = None) -> Tensor:
        """x: (B, N, D); offsets: for the bias, of these tokens. Returns (B, Q, D), of the Q tokens at `queries` or all N."""
        if queries is None:
            q, k, v = map(self.split, self.qkv(x).chunk(3, dim=-1))
        else:
            sizes = [x.shape[-1], 2 * x.shape[-1]]
            (of_q, of_kv), biases = self.qkv.weight.split(sizes), (None, None)
            if self.qkv.bias is not None:
                biases = self.qkv.bias.split(sizes)
            q = self.split(F.linear(x[:, queries], of_q, biases[0]))
            k, v = map(self.split, F.linear(x, of_kv, biases[1]).chunk(2, dim=-1))
        # (1 or B, heads, Q, N)
        bias = None if self.bias is None else self.bias(offsets)[:, :, queries or slice(None)].to(q.dtype)
        # the CPU's flash kernel is 1.2 to 6 times as fast forwards, and slow backwards
        dropout = self.dropout if self.training else 0.0
        if x.device.type == "cpu" and q.requires_grad:
            weights = self.weights(q, k, bias)
            out = (drop(weights, dropout) if dropout else weights) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.projection(out.transpose(1, 2).flatten(2))

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, Q, N)
        return (scores if bias is None else scores + bias).softmax(dim=-1)

    def maps(self, x: Tensor, offsets: Offsets | None = None) -> Tensor:
        """The attention weights themselves, (B, heads, N, N): row i says where token i looks."""
        q, k, _ = map(self.split, self.qkv(x).chunk(3, dim=-1))
        return self.weights(q, k, None if self.bias is None else self.bias(offsets).to(q.dtype))


class SequencePool(nn.Module):
    """Tokens (B, N, D) to one vector each, (B, D): their mean, weighted by what a learnt layer makes of each (Hassani et al.
    2021, section 3.2, equation 5)."""

    def __init__(self, dim: int):
        super().__init__()
        self.attention = nn.Linear(dim, 1)

    def weights(self, tokens: Tensor) -> Tensor:
        """How much each token counts, (B, N), with sum 1."""
        return self.attention(tokens).squeeze(-1).softmax(dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.weights(tokens)[:, None] @ tokens).squeeze(1)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for whole samples, and scales up the others."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1.0 - self.rate))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)).

    layer_scale: initial factor of each residual branch, per channel (Touvron et al. 2021), or None for none.
    bias: what makes the attention know relative positions.
    compact: the block of Hassani et al. 2021's code: no bias for queries, keys and values, a tenth of the attention's weights
    left out in training, and the norm before the MLP stays: x = norm(x + attention(norm(x))), then x + MLP(x).
    """

    scale1: nn.Parameter | None
    scale2: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
        bias: RelativeBias | None = None,
        compact: bool = False,
    ):
        super().__init__()
        self.compact = compact
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, heads, bias, qkv_bias=not compact, dropout=0.1 if compact else 0.0)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        scale = (lambda: None) if layer_scale is None else (lambda: nn.Parameter(torch.full((dim,), layer_scale)))
        self.register_parameter("scale1", scale())
        self.register_parameter("scale2", scale())

    def forward(
        self, x: Tensor, queries: slice | None = None, offsets: Offsets | None = None, windows: Windows | None = None
    ) -> Tensor:
        """x: (B, N, D). With `queries`, only the tokens there come out: (B, Q, D). With `windows` each patch attends to those of
        its own window, whose `offsets` are then to be given; there is no class token then."""
        seen = self.norm1(to_compute_dtype(x))
        attended = self.attention(seen if windows is None else windows.cut(seen), queries, offsets)
        if windows is not None:
            attended = windows.join(attended)
        if queries is not None:
            x = x[:, queries]
        x = x + self.drop_path(attended if self.scale1 is None else attended * self.scale1)
        seen = self.norm2(to_compute_dtype(x))
        thought = self.mlp(seen)
        return (seen if self.compact else x) + self.drop_path(thought if self.scale2 is None else thought * self.scale2)


def initialise_compact(module: nn.Module) -> None:
    """Matrices of deviation 0.02 and zero biases, as Hassani et al. 2021's code (`module.apply(initialise_compact)`)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases, as the original ViT and MAE (`module.apply(initialise)`)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
