"""The same architecture in PyTorch at its best: the net that our exports ship, its training step and its sampling loop. It needs torch alone.

On a GPU: bfloat16, channels last, scaled-dot-product attention, torch.compile, fused AdamW.
"""

import dataclasses
import functools
import importlib.util
import inspect
import sys
import time
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
from tests.benchmarks.turns import sync

SHIPPED = Path(ivid2vid_jax.__file__).parent / "conversion" / "pytorch" / "inflated_unet.py"
MODES = (
    "max-autotune",
    "default",
    "none",
)  # of torch.compile, the best first; none: the net as it is


class Config(SimpleNamespace):
    """The net's arguments, by attribute and by name."""

    def keys(self):
        return vars(self).keys()

    def __getitem__(self, name):
        return getattr(self, name)


class ModelMixin(nn.Module):
    @property
    def dtype(self):
        return next(self.parameters()).dtype


def register_to_config(init: Callable) -> Callable:
    parameters = inspect.signature(init).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}

    @functools.wraps(init)
    def registered(self, **given):
        self.config = Config(**defaults | given)
        init(self, **given)

    return registered


@functools.cache
def shipped():
    """The module of the shipped net, with what it takes from diffusers as it stands above: a GPU machine may lack diffusers."""
    stand_ins = {
        "diffusers": SimpleNamespace(ModelMixin=ModelMixin, ConfigMixin=object),
        "diffusers.configuration_utils": SimpleNamespace(register_to_config=register_to_config),
    }
    spec = importlib.util.spec_from_file_location("shipped_inflated_unet", SHIPPED)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, stand_ins):
        spec.loader.exec_module(module)
    sys.modules[spec.name] = module  # torch.compile looks for it there
    return module


def random_net(config: UNetConfig, device: str) -> nn.Module:
    """float32, channels last; norms and biases are drawn too, so that a forgotten one shows."""
    torch.manual_seed(0)
    with torch.device(device):
        net = shipped().InflatedUNet3D(**dataclasses.asdict(config))
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


def compiled(net: nn.Module, mode: str, attempt: Callable) -> tuple[nn.Module, dict]:
    """The net under torch.compile, and how: the mode that worked, what failed before it, seconds. attempt(net) runs it as it will be run.

    A mode that fails, be it for want of Triton or of a C++ compiler, is followed by the next of MODES; not one that runs out of memory, or PyTorch would be
    compared at less than its best without anybody asking for it.
    """
    failed = {}
    for each in MODES[MODES.index(mode) :]:
        candidate = net if each == "none" else torch.compile(net, mode=each, dynamic=False)
        begin = time.perf_counter()
        try:
            attempt(candidate)
            sync()
        except Exception as error:
            if each == MODES[-1] or isinstance(error, torch.OutOfMemoryError):
                raise
            failed[each] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            torch._dynamo.reset()
        else:
            return candidate, {
                "compile": each,
                "failed": failed,
                "compile_s": time.perf_counter() - begin,
            }


def precision(dtype: torch.dtype, device: str):
    """Matrix products and convolutions in `dtype` on float32 weights."""
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


class Training:
    """The optimiser step of `training/step.py` on cached latents: noise, both losses, gradient clipping, AdamW, EMA; float32 weights.

    What our step does beside it and this does not: the text encoder on the empty instruction, and norms for the log.
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
        self.run, self.config, self.scaling, self.dtype, self.device = (
            net,
            config,
            scaling,
            dtype,
            device,
        )
        self.alphas, self.null = (
            torch.tensor(x, dtype=torch.float32, device=device) for x in (alphas_cumprod, null)
        )
        self.params = list(net.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        optim, fused = config.optim, device != "cpu"
        groups = [
            {
                "params": [p for p in self.params if (p.ndim > 1) == kernels],
                "weight_decay": kernels * optim.weight_decay,
            }
            for kernels in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(
            groups, optim.lr, (optim.b1, optim.b2), optim.eps, fused=fused
        )

    def losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        x0 = (
            batch["target_mean"] + batch["target_std"] * torch.randn_like(batch["target_mean"])
        ) * self.scaling
        B, device = len(x0), x0.device
        alpha_bar = self.alphas[t := torch.randint(0, len(self.alphas), (B,), device=device)].view(
            B, 1, 1, 1, 1
        )
        noise, r, drop = torch.randn_like(x0), torch.rand(B, device=device), self.config.drop
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        text = torch.where((r < drop.text + drop.both)[:, None, None], self.null, batch["text"])
        keeps = (r < drop.text) | (r >= drop.text + drop.both + drop.video)
        source = batch["source_mean"] * keeps.view(B, 1, 1, 1, 1)
        with precision(self.dtype, self.device):
            prediction = self.run(torch.cat([x_t, source], dim=1), t, text).sample.float()
        error, gamma = prediction - noise, self.config.loss.snr_gamma
        total = error.square().flatten(1).mean(1) + self.config.loss.frame_weight * error.diff(
            dim=2
        ).square().flatten(1).mean(1)
        weight = (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1.0).flatten()
        return (weight * total).mean()

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        loss = self.losses(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.params, 1 - self.config.optim.ema)
        return loss.detach()


@torch.no_grad()
def sample(
    net: nn.Module, x, source, text, video, weights, table, dtype: torch.dtype
) -> torch.Tensor:
    """Latents [1, C, T, h, w] after the steps of a table of `diffusion/samplers.py`, from unit noise x; text, video, weights: of the K branches."""
    K, x, before = len(video), x * table.start, torch.zeros_like(x)
    condition, text = source * video.view(K, 1, 1, 1, 1), text.to(dtype)
    for step in zip(*(column.tolist() for column in table.steps), strict=True):
        t, alpha, sigma, A, B, C, _ = step
        torch.compiler.cudagraph_mark_step_begin()
        inputs = torch.cat([x.expand(K, *x.shape[1:]), condition], dim=1).to(dtype)
        prediction = net(inputs, torch.full((K,), t, device=x.device), text).sample.float()
        x0 = (x - sigma * torch.einsum("k,kcthw->cthw", weights, prediction)[None]) / alpha
        x, before = A * x + B * x0 + C * before, x0
    return x
