"""The PyTorch side of the benchmarks: the network of our exports, a training step, a sampling loop.

On a GPU it uses bfloat16, channels last, scaled-dot-product attention, torch.compile and fused
AdamW. It needs torch, but not diffusers.
"""

import dataclasses
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import nn

import ivid2vid_jax
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.training.config import TrainConfig

EXPORTED_NET = Path(ivid2vid_jax.__file__).parent / "conversion" / "pytorch" / "inflated_unet.py"
# Modes of torch.compile; "none" does not compile.
MODES = ("none", "default", "max-autotune")


class Config(SimpleNamespace):
    """The arguments of the network, by attribute and by key. Stands in for diffusers' class."""

    def keys(self):
        return vars(self).keys()

    def __getitem__(self, name):
        return getattr(self, name)


class ModelMixin(nn.Module):
    """Stands in for diffusers' class."""

    @property
    def dtype(self):
        return next(self.parameters()).dtype


def register_to_config(init: Callable) -> Callable:
    """Stands in for diffusers' decorator."""
    parameters = inspect.signature(init).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}

    @functools.wraps(init)
    def registered(self, **arguments):
        self.config = Config(**defaults | arguments)
        init(self, **arguments)

    return registered


@functools.cache
def exported_module():
    """The module of the exported network, with the stand-ins above instead of diffusers."""
    stand_ins = {
        "diffusers": SimpleNamespace(ModelMixin=ModelMixin, ConfigMixin=object),
        "diffusers.configuration_utils": SimpleNamespace(register_to_config=register_to_config),
    }
    spec = importlib.util.spec_from_file_location("exported_inflated_unet", EXPORTED_NET)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, stand_ins):
        spec.loader.exec_module(module)
    sys.modules[spec.name] = module  # torch.compile needs it
    return module


def random_net(config: UNetConfig, device: str) -> nn.Module:
    """A random network in float32, channels last.

    Norms and biases are random too, so that an omitted one changes the output.
    """
    torch.manual_seed(0)
    with torch.device(device):
        net = exported_module().InflatedUNet3D(**dataclasses.asdict(config))
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
            p.data = p.data.contiguous(memory_format=formats.get(p.ndim, torch.contiguous_format))
    return net


def channels_first(clip: np.ndarray, device) -> torch.Tensor:
    """[B, T, h, w, C] -> [B, C, T, h, w], channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(clip)).to(device).permute(0, 4, 1, 2, 3)


def compiled(net: nn.Module, mode: str) -> nn.Module:
    """The network, compiled in one of MODES."""
    return net if mode == "none" else torch.compile(net, mode=mode, dynamic=False)


def precision(dtype: torch.dtype, device: str):
    """Autocast: matrix products and convolutions in `dtype`, with float32 weights."""
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


class Training:
    """The optimiser step of training/step.py on cached latents, with float32 weights.

    It draws noise, and computes both losses, gradient clipping, AdamW and EMA. Our step also runs
    the text encoder on the empty instruction and computes norms for the log; this one does not.
    """

    def __init__(
        self,
        net: nn.Module,
        config: TrainConfig,
        alphas_cumprod: np.ndarray,
        scaling: float,
        null: np.ndarray,
        dtype: torch.dtype,
        device: str,
    ):
        self.run, self.config, self.scaling = net, config, scaling
        self.dtype, self.device = dtype, device
        self.alphas, self.null = (
            torch.tensor(x, dtype=torch.float32, device=device) for x in (alphas_cumprod, null)
        )
        self.params = list(net.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        optim, fused = config.optim, device != "cpu"
        kernels = [p for p in self.params if p.ndim > 1]
        others = [p for p in self.params if p.ndim <= 1]
        groups = [
            {"params": kernels, "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, optim.lr, (optim.b1, optim.b2), optim.eps, fused=fused
        )

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted noise and frame-difference losses, with conditioning dropout."""
        mean, std = batch["target_mean"], batch["target_std"]
        x0 = (mean + std * torch.randn_like(mean)) * self.scaling
        B, device = len(x0), x0.device
        t = torch.randint(0, len(self.alphas), (B,), device=device)
        alpha_bar = self.alphas[t].view(B, 1, 1, 1, 1)
        noise, r, drop = torch.randn_like(x0), torch.rand(B, device=device), self.config.drop
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        text = torch.where((r < drop.text + drop.both)[:, None, None], self.null, batch["text"])
        keeps = (r < drop.text) | (r >= drop.text + drop.both + drop.video)
        source = batch["source_mean"] * keeps.view(B, 1, 1, 1, 1)
        with precision(self.dtype, self.device):
            prediction = self.run(torch.cat([x_t, source], dim=1), t, text).sample.float()
        error, gamma = prediction - noise, self.config.loss.snr_gamma
        noise_loss = error.square().flatten(1).mean(1)
        frame_loss = error.diff(dim=2).square().flatten(1).mean(1)
        total = noise_loss + self.config.loss.frame_weight * frame_loss
        weight = (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1.0).flatten()
        return (weight * total).mean()

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Runs one optimiser step and returns the loss."""
        torch.compiler.cudagraph_mark_step_begin()
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.config.optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.params, 1 - self.config.optim.ema)
        return loss.detach()


@torch.no_grad()
def sample(
    net: nn.Module, x, source, text, video, weights, table, dtype: torch.dtype
) -> torch.Tensor:
    """Runs all steps of a sampler table (diffusion/samplers.py); returns latents [1, C, T, h, w].

    x: unit noise; source: the source latents; text, video, weights: of the K guidance branches.
    """
    K, x, previous_x0 = len(video), x * table.start, torch.zeros_like(x)
    condition, text = source * video.view(K, 1, 1, 1, 1), text.to(dtype)
    for step in zip(*(column.tolist() for column in table.steps), strict=True):
        t, alpha, sigma, A, B, C, _ = step
        torch.compiler.cudagraph_mark_step_begin()
        inputs = torch.cat([x.expand(K, *x.shape[1:]), condition], dim=1).to(dtype)
        prediction = net(inputs, torch.full((K,), t, device=x.device), text).sample.float()
        x0 = (x - sigma * torch.einsum("k,kcthw->cthw", weights, prediction)[None]) / alpha
        x, previous_x0 = A * x + B * x0 + C * previous_x0, x0
    return x
