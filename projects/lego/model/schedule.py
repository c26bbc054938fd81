"""How much noise there is: the training schedule of Stable Diffusion and the noise levels of its samplers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Schedule(nn.Module):
    """Variances whose square roots rise linearly over `steps` levels, and what follows from them.

    The twelve buffers of an official checkpoint are attributes of their official names (computed in double, kept in
    float32); they are not persistent, because the two end points say everything.
    """

    NAMES = (
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
        "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    )  # fmt: skip

    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    lvlb_weights: Tensor
    log_sigmas: Tensor

    def __init__(self, steps: int = 1000, linear_start: float = 0.00085, linear_end: float = 0.012) -> None:
        super().__init__()
        betas = np.linspace(linear_start**0.5, linear_end**0.5, steps, dtype=np.float64) ** 2
        alphas = 1 - betas
        product = np.cumprod(alphas)
        before = np.append(1.0, product[:-1])
        posterior = betas * (1 - before) / (1 - product)
        values = {
            "betas": betas,
            "alphas_cumprod": product,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": np.sqrt(product),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - product),
            "log_one_minus_alphas_cumprod": np.log(1 - product),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / product),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / product - 1),
            "posterior_variance": posterior,
            "posterior_log_variance_clipped": np.log(np.maximum(posterior, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(before) / (1 - product),
            "posterior_mean_coef2": (1 - before) * np.sqrt(alphas) / (1 - product),
        }
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
        # The reference forms these from float32 buffers and copies the second weight over the first, which is infinite.
        f32 = {name: torch.tensor(values[name], dtype=torch.float32) for name in ("betas", "posterior_variance")}
        weights = f32["betas"] ** 2 / (
            2 * f32["posterior_variance"] * torch.tensor(alphas, dtype=torch.float32) * (1 - self.alphas_cumprod)
        )
        weights[0] = weights[1]
        self.register_buffer("lvlb_weights", weights, persistent=False)
        sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
        self.register_buffer("log_sigmas", sigmas.log(), persistent=False)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(a_t) z + sqrt(1 - a_t) noise: (B, C, h, w), (B, C, h, w), int64 (B,) -> (B, C, h, w)."""
        signal, spread = (table[timesteps][:, None, None, None] for table in
                          (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))  # fmt: skip
        return signal * latents + spread * noise

    def sigmas(self, count: int) -> Tensor:
        """`count` noise levels from the greatest down, then 0: (count + 1,), as k-diffusion's `get_sigmas`.

        Times fall evenly from the last level to 0; between two levels the logarithm of sigma is interpolated.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"a sampler of {count} steps needs between 1 and {len(self)} noise levels")
        times = torch.linspace(len(self) - 1, 0, count, device=self.log_sigmas.device)
        return torch.cat([self.sigma(times), times.new_zeros(1)])

    def sigma(self, time: Tensor) -> Tensor:
        """The noise level at a fractional time in [0, steps - 1], any shape."""
        low, high, share = time.floor().long(), time.ceil().long(), time.frac()
        return ((1 - share) * self.log_sigmas[low] + share * self.log_sigmas[high]).exp()

    def time(self, sigma: Tensor) -> Tensor:
        """The fractional time at which the network is asked about a noise level; the inverse of `sigma`."""
        log = sigma.log()
        low = (torch.searchsorted(self.log_sigmas, log.contiguous(), right=True) - 1).clamp(0, len(self) - 2)
        start, end = self.log_sigmas[low], self.log_sigmas[low + 1]
        return low + ((start - log) / (start - end)).clamp(0, 1)
