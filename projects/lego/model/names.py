"""Names of Stable Diffusion's networks: CompVis (SD, InstructPix2Pix and LEGO checkpoints) and diffusers.

Each function turns a diffusers name into the CompVis one; `table` inverts it for the names that a network has, so one
set of rules serves both directions and any number of levels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from core.checkpoint import Rule

UNET, AVERAGE, VAE, TEXT = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.transformer."
CONDITIONER = ("projection_img.", "projection_txt.", "self_attn_mix.")

_UNET_ENDS = [
    (r"\.norm1\.(?=\w+$)", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.(?=\w+$)", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_UNET_STARTS = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
]
_VAE_RULES = [
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
]
# Folders written by diffusers before 0.17 name the autoencoder's attention otherwise.
OLD_DIFFUSERS: list[Rule] = [
    (r"(mid_block\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"(mid_block\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"(mid_block\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"(mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
]


def compvis_unet(name: str, blocks: int = 2) -> str:
    """The CompVis name of a diffusers UNet weight: its levels are numbered through, `blocks` + 1 entries for each."""
    step = blocks + 1
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name):
        side, level, kind, place = match[1], int(match[2]), match[3], int(match[4])
        rest = name[match.end() :]
        first = level * step + (side == "down")
        if kind == "downsamplers":
            name = f"input_blocks.{first + blocks}.0.op.{rest.removeprefix('conv.')}"
        elif kind == "upsamplers":  # behind the attention, which the lowest level has not
            name = f"output_blocks.{first + blocks}.{1 if level == 0 else 2}.{rest}"
        else:
            blocks_of = "input_blocks" if side == "down" else "output_blocks"
            name = f"{blocks_of}.{first + place}.{int(kind == 'attentions')}.{rest}"
    for pattern, text in _UNET_STARTS:
        name = re.sub(pattern, text, name)
    if "transformer_blocks" not in name:
        for pattern, text in _UNET_ENDS:
            name = re.sub(pattern, text, name)
    return name


def compvis_vae(name: str, levels: int = 4) -> str:
    """The CompVis name of a diffusers autoencoder weight: the decoder's levels count from the other end."""

    def up(match: re.Match[str]) -> str:
        kind = {"resnets.": "block.", "upsamplers.0.": "upsample."}[match[2]]
        return f".up.{levels - 1 - int(match[1])}.{kind}"

    name = re.sub(r"\.up_blocks\.(\d+)\.(resnets\.|upsamplers\.0\.)", up, name)
    for pattern, text in _VAE_RULES:
        name = re.sub(pattern, text, name)
    return name


def is_pointwise(compvis: str) -> bool:
    """Whether CompVis stores this autoencoder weight as a 1x1 convolution and diffusers as a matrix."""
    return re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$", compvis) is not None


def averaged(compvis: str) -> str:
    """The name under which an official checkpoint keeps the moving average of a UNet weight."""
    return AVERAGE + ("diffusion_model." + compvis).replace(".", "")


def table(names: Iterable[str], rule: Callable[[str], str]) -> dict[str, str]:
    """{CompVis name: diffusers name} for the names that a network has.

    Raises: ValueError when two names would become one.
    """
    names = list(names)
    result = {rule(name): name for name in names}
    if len(result) != len(names):
        raise ValueError("two weights have one CompVis name; this is no network of Stable Diffusion's kind")
    return result


def rules(known: dict[str, str]) -> Sequence[Rule]:
    """A table as a rule for `core.checkpoint.load_weights`; names outside of it stay, and are reported."""
    return [(r"^.+$", lambda match: known.get(match[0], match[0]))]
