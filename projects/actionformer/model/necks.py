"""What joins the levels of the pyramid, channels last."""

from __future__ import annotations

from torch import Tensor, nn

from projects.actionformer.model.blocks import norm
from projects.actionformer.model.conv import MaskedConv


class IdentityNeck(nn.Module):
    """A layer norm for each level."""

    def __init__(self, width: int, levels: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.fpn_norms = nn.ModuleList(norm(width) if normalize else nn.Identity() for _ in range(levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Levels (B,T/s^l,W) to the same; masks are not needed."""
        return [normalize(level) for normalize, level in zip(self.fpn_norms, levels, strict=True)]


class FPN(nn.Module):
    """Feature pyramid network: what coarse levels know is added to the finer ones (Lin et al., 2017).

    The sums are masked only after the last convolution, so that padded steps carry values into it, as officially.
    """

    def __init__(self, width: int, out: int, levels: int, scale: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.scale = scale
        self.lateral_convs = nn.ModuleList(MaskedConv(width, out, 1, bias=not normalize) for _ in range(levels))
        self.fpn_convs = nn.ModuleList(MaskedConv(out, out, 3, groups=out, bias=not normalize) for _ in range(levels))
        self.fpn_norms = nn.ModuleList(norm(out) if normalize else nn.Identity() for _ in range(levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Levels (B,T/s^l,W) and masks (B,T/s^l,1) of their type, finest first, to levels (B,T/s^l,O)."""
        joined = self._join([conv(x, m) for conv, x, m in zip(self.lateral_convs, levels, masks, strict=True)], masks)
        return [
            normalize(conv(x, mask))
            for conv, normalize, x, mask in zip(self.fpn_convs, self.fpn_norms, joined, masks, strict=True)
        ]

    def _join(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        joined = [levels[-1]]
        for level in reversed(levels[:-1]):
            joined.insert(0, level + joined[0].repeat_interleave(self.scale, dim=1))
        return joined


class CrossScaleFPN(FPN):
    """An FPN whose finer levels are then added to the coarser ones again (PANet; Liu et al., 2018)."""

    def __init__(self, width: int, out: int, levels: int, scale: int, *, normalize: bool = True) -> None:
        super().__init__(width, out, levels, scale, normalize=normalize)
        self.downsample_convs = nn.ModuleList(
            MaskedConv(out, out, 3, stride=scale, bias=not normalize) for _ in range(levels - 1)
        )

    def _join(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        joined = super()._join(levels, masks)
        for index, conv in enumerate(self.downsample_convs, 1):
            joined[index] = joined[index] + conv(joined[index - 1], masks[index])
        return joined
