"""Parameters and multiply-adds of the configured networks, and the memory of a training step.

python -m projects.lego.model CONFIG [KEY=VALUE ...]
"""

import sys

import torch

from core import config, summary
from projects.lego import memory, model
from projects.lego.config import Config
from projects.lego.model import Condition

if __name__ == "__main__":
    cfg = config.parse(Config)
    with torch.device("meta"):
        networks = {"autoencoder": model.autoencoder(cfg.model), "text encoder": model.text_encoder(cfg.model)}
    frozen = ", ".join(f"{name} {sum(p.numel() for p in net.parameters()):,}" for name, net in networks.items())
    lego = model.build(cfg.model).eval()
    side = [each // 2 ** (len(cfg.model.vae_levels) - 1) for each in cfg.data.size]
    latents = torch.zeros(1, model.LATENT_CHANNELS, *side)
    features = torch.zeros(1, 256, cfg.model.feature_width), torch.zeros(1, 77, cfg.model.feature_width)
    condition = Condition(torch.zeros(1, 77, cfg.model.context), *features)
    table = summary.describe(lego, (latents, torch.zeros(1), latents, condition), depth=2)
    sys.stdout.write(f"frozen: {frozen} parameters\n{table}\n\na training step takes\n{memory.describe(cfg)}\n")
