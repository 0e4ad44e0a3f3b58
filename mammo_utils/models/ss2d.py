"""The 2D selective scan (SS2D) of VMamba (Liu et al. 2024) in MedMamba's SS-Conv-SSM block (Yue and Li 2024).

This is Figure 2 of the paper. Images are channels-last, (batch, H, W, C), of any height and width. Shapes and
initialisation are those of MedMamba's published code, but for the deviations that each class lists.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mammo_utils.models.selective_scan import scan_paths

PATHS = ("rows", "columns", "rows reversed", "columns reversed")


def four_paths(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the pixels that the four paths visit.

    Args:
        height: Rows of the image, H.
        width: Columns, W.
        device: Where the tensor lies.

    Returns:
        (4, H*W) int64: row * W + column at each step of each path of `PATHS`.
    """
    rows = torch.arange(height * width, device=device)
    columns = rows.view(height, width).t().reshape(-1)  # (H, W) -> (W, H) -> (H*W,)
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])  # (4, H*W)


def _make_paths(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `four_paths` and the step (4, H*W) at which each path visits each pixel."""
    rows, columns = four_paths(width, height, device)[:2]  # the columns of the transposed image
    last = height * width - 1
    return four_paths(height, width, device), torch.stack([rows, columns, last - rows, last - columns])


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # autograd cannot save tensors that are made in inference mode
def _shared_paths(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return _make_paths(height, width, device)


class SS2D(nn.Module):
    """Four selective scans over one image, added up: the first version of VMamba's SS2D, as MedMamba uses it.

    A linear map to x and z of E = expand * C channels each; x through a depthwise 3x3 convolution and SiLU; the paper's
    delta, B and C of each path by a linear map of x; the four scans; LayerNorm; times SiLU(z); a linear map back.

    Deviations from MedMamba: the depthwise convolution is initialised by its true fan-out, 9; theirs uses 9E, so its
    weights are too small by sqrt(E), 10 to 28 times in the VSSM. A_log and D are marked `_no_weight_decay`, and our
    optimiser obeys the mark; theirs ignores it.

    Args:
        channels: C.
        states: N, the states of each channel.
        expand: E / C.
        backend: See `selective_scan`.
    """

    def __init__(self, channels: int, states: int = 16, expand: int = 2, backend: str = "auto"):
        super().__init__()
        inner, self.rank, self.states, self.backend = expand * channels, math.ceil(channels / 16), states, backend
        K = len(PATHS)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(K, self.rank + 2 * states, inner))
        self.dt_weight = nn.Parameter(torch.empty(K, inner, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(K, inner))
        self.A_log = nn.Parameter(torch.empty(K, inner, states))
        self.D = nn.Parameter(torch.ones(K, inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.A_log._no_weight_decay = self.D._no_weight_decay = True
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from torch's global generator."""
        nn.init.trunc_normal_(self.in_proj.weight, std=0.02)
        nn.init.trunc_normal_(self.out_proj.weight, std=0.02)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / 9))
        nn.init.zeros_(self.conv.bias)
        nn.init.uniform_(self.x_proj, -(self.x_proj.shape[2] ** -0.5), self.x_proj.shape[2] ** -0.5)
        nn.init.uniform_(self.dt_weight, -(self.rank**-0.5), self.rank**-0.5)
        # softplus(dt_bias) is log-uniform in 0.001..0.1, as in Mamba; the inverse of softplus is x + log(1 - e^-x)
        dt = torch.exp(torch.empty_like(self.dt_bias).uniform_(math.log(0.001), math.log(0.1)))
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.A_log.copy_(torch.log(torch.arange(1, self.states + 1)).expand_as(self.A_log))  # A = -1..-N (S4D-real)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, H, W, C) -> (batch, H, W, C)."""
        batch, height, width, _ = x.shape
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (batch, H, W, 2E) -> (batch, H, W, E) each
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)  # -> (batch, E, H, W) -> (batch, H, W, E)
        x = x.reshape(batch, height * width, -1)  # (batch, L, E) with L = H * W
        y = self.scan(x, height, width).view(batch, height, width, -1)  # (batch, H, W, E)
        return self.out_proj(self.out_norm(y.to(z.dtype)) * F.silu(z))

    def scan(self, x: Tensor, height: int, width: int) -> Tensor:
        """Scan an image along each of the K paths and add up.

        delta, B and C depend on the pixel alone. They are computed once per pixel, for all paths in one matrix
        product, and the scan reads them in the order of each path: with `cpu` and `triton` the image is
        never copied in another order.

        Args:
            x: (batch, H*W, E).
            height: H.
            width: W.

        Returns:
            (batch, H*W, E).
        """
        batch, length, inner = x.shape
        K = len(PATHS)
        parameters = F.linear(x, self.x_proj.flatten(0, 1)).view(batch, length, K, -1)  # (batch, L, K, rank + 2N)
        parameters = parameters.transpose(1, 2)  # (batch, K, L, rank + 2N)
        dt, B, C = parameters.split([self.rank, self.states, self.states], dim=-1)  # (batch, K, L, rank or N)
        dt = dt.transpose(0, 1).reshape(K, batch * length, self.rank)  # one matrix per path
        delta = torch.bmm(dt, self.dt_weight.transpose(1, 2).to(dt.dtype))  # by (K, rank, E) -> (K, batch*L, E)
        delta = delta.view(K, batch, length, inner).transpose(0, 1)  # (batch, K, L, E)
        A = -torch.exp(self.A_log.float())  # (K, E, N)
        # torch.compile ignores caches: in its graph the paths are made anew, which costs little and waits for nothing.
        make = _make_paths if torch.compiler.is_compiling() else _shared_paths
        return scan_paths(x, delta, A, B, C, self.D, self.dt_bias, *make(height, width, x.device), backend=self.backend)


class SSConvSSM(nn.Module):
    """MedMamba's block: half of the channels are convolved, half scanned, then joined and added to the input.

    The variant "shuffle" concatenates the halves and shuffles their channels in two groups. "inner" is the first
    version of the published code (VSSBlock at commit c5e8798): the convolutions neither begin with a batch norm nor end
    with a ReLU, the scanned half has a residual connection of its own, and a 1x1 convolution takes the place of the
    shuffle.

    In training, the scanned half of an image is left out with probability `drop_path` (stochastic depth), else divided
    by 1 - `drop_path`.
    """

    def __init__(
        self, channels: int, states: int = 16, variant: str = "shuffle", backend: str = "auto", drop_path: float = 0.0
    ):
        super().__init__()
        if channels % 2:
            raise ValueError(f"The block splits its channels in two halves; {channels} is odd.")
        if variant not in ("shuffle", "inner"):
            raise ValueError(f"The block's variant is {variant!r}; it must be 'shuffle' or 'inner'.")
        half, self.variant = channels // 2, variant
        self.norm = nn.LayerNorm(half)
        self.ss2d = SS2D(half, states, backend=backend)
        self.drop_path = StochasticDepth(drop_path, "row")
        layers = [
            nn.Conv2d(half, half, 3, padding=1), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 1),
        ]  # fmt: skip
        layers = [nn.BatchNorm2d(half), *layers, nn.ReLU()] if variant == "shuffle" else layers
        self.convolutions = nn.Sequential(*layers)
        self.mix = nn.Conv2d(channels, channels, 1) if variant == "inner" else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.ss2d.conv:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, H, W, C) -> (batch, H, W, C)."""
        left, right = x.chunk(2, dim=-1)  # (batch, H, W, C/2) each
        convolved = self.convolutions(left.permute(0, 3, 1, 2))  # (batch, C/2, H, W)
        convolved = convolved.permute(0, 2, 3, 1)  # (batch, H, W, C/2)
        scanned = self.drop_path(self.ss2d(self.norm(right)))  # (batch, H, W, C/2)
        if self.mix is not None:
            joined = torch.cat([convolved, scanned + right], dim=-1)  # (batch, H, W, C)
            return x + self.mix(joined.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # -> (batch, C, H, W) -> as x
        # The shuffle: channel 2i is channel i of the convolved half, channel 2i + 1 is channel i of the scanned half.
        return x + torch.stack([convolved, scanned], dim=-1).flatten(-2)  # (batch, H, W, C/2, 2) -> (batch, H, W, C)


class PatchEmbedding(nn.Module):
    """(batch, 3, H, W) -> (batch, ceil(H/patch), ceil(W/patch), width): one linear map of each patch, then LayerNorm.

    Where the patches do not fit, zeros are added at the bottom and at the right.
    """

    def __init__(self, width: int, patch: int = 4):
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        nn.init.kaiming_normal_(self.project.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, h, w, width)."""
        bottom, right = -x.shape[2] % self.patch, -x.shape[3] % self.patch
        x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
        return self.norm(self.project(x).permute(0, 2, 3, 1))  # (batch, width, h, w) -> (batch, h, w, width)


class PatchMerging(nn.Module):
    """(batch, H, W, C) -> (batch, ceil(H/2), ceil(W/2), 2C): each 2x2 square concatenated, LayerNorm, a linear map.

    The order within a square is MedMamba's: (0, 0), (1, 0), (0, 1), (1, 1). Deviation: an odd side is padded by a
    row or column of zeros; MedMamba drops the last one.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)
        nn.init.trunc_normal_(self.reduce.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, H, W, C) -> (batch, h, w, 2C)."""
        bottom, right = x.shape[1] % 2, x.shape[2] % 2
        x = F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x
        squares = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # (batch, h, w, C) each
        return self.reduce(self.norm(torch.cat(squares, dim=-1)))  # (batch, h, w, 4C) -> (batch, h, w, 2C)
