"""Conversion at Stable Diffusion 1.5's size: memory and time, and the whole edit in PyTorch; and the way through training."""

import dataclasses
import json
import subprocess
import sys

import flax
import numpy as np
import pytest
import torch
from diffusers import UNetMotionModel

from ivid2vid_jax.conversion import exporter
from ivid2vid_jax.models import AutoencoderConfig, CLIPTextConfig, UNetConfig
from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights import components, torch_keys
from ivid2vid_jax.weights.inflate import inflate_params
from ivid2vid_jax.weights.pipeline_folder import (
    load_params,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)
from tests.conversion.test_exporter import (
    INSTRUCTION,
    KINDS,
    assert_the_same_edit,
    fresh_edits,
    jax_edit,
)
from tests.conversion.test_importer import adapter, assert_same, imported, state
from tests.support import factory
from tests.support.foreign import animatediff
from tests.support.memory import PEAK
from tests.support.tiny_run import tiny as config_of

pytestmark = pytest.mark.slow


def test_import_train_export_import(tmp_path):
    """Two steps from motion modules of AnimateDiff, out to PyTorch, and back: the run's averaged weights, to the bit."""
    base = factory.save(tmp_path / "base", factory.tiny())
    torch.save(animatediff(state(adapter())), tmp_path / "mm.ckpt")
    imported(tmp_path / "mm.ckpt", tmp_path / "start", base, motion_group_norm="clip")
    config = config_of(
        tmp_path / "run",
        model=str(tmp_path / "start"),
        net__temporal=None,
        steps=2,
        optim__warmup=0,
        checkpoint__pipeline=True,
    )
    run = train(config)
    held, _ = exporter.export_folder(run / "pipeline", tmp_path / "out")
    assert held.class_name == "UNetMotionModel"
    net = UNetMotionModel.from_pretrained(tmp_path / "out" / "unet")
    _, _, params = imported(tmp_path / "out", tmp_path / "back")
    assert_same(params["unet"], state(net))
    trained = load_params(open_pipeline_folder(run / "pipeline"))
    assert_same(trained["unet"], state(net))
    moved = components.load_component(
        "unet",
        tmp_path / "start" / "unet",
        param_shapes("unet", open_pipeline_folder(tmp_path / "start").unet),
    )
    block = "motion_modules.0"
    assert not np.array_equal(
        trained["unet"]["down_blocks.0"][block]["proj_in"]["kernel"],
        moved["down_blocks.0"][block]["proj_in"]["kernel"],
    )
    table = lambda tree: tree["down_blocks.0"][block]["transformer_blocks.0"]["pos_embed"]["pe"]  # noqa: E731
    np.testing.assert_array_equal(table(trained["unet"]), table(moved))


CONVERT = f"""
import sys, time, jax
from ivid2vid_jax.conversion import exporting, foreign, importing
from pathlib import Path
jax.devices()
{PEAK}
began = time.time()
if sys.argv[1] == "export":
    exporting.export(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
else:
    importing.convert(foreign.recognise(Path(sys.argv[2])), None, Path(sys.argv[3]), importing.Options(dtype=sys.argv[4]))
print(peak - base, time.time() - began)
"""


def hollow(path):
    """A folder of Stable Diffusion 1.5's size with temporal layers, its values zeros that take no room on disk."""
    unet = UNetConfig(in_channels=8, temporal=("conv", "attention"))
    configs = {"unet": unet, "vae": AutoencoderConfig(), "text_encoder": CLIPTextConfig()}
    size = 0
    for name, config in configs.items():
        leaves = flax.traverse_util.flatten_dict(param_shapes(name, config))
        header, offset = {}, 0
        for leaf, shape in leaves.items():
            end = offset + 4 * int(np.prod(shape.shape))
            header[torch_keys.torch_key(leaf)] = {
                "dtype": "F32",
                "shape": torch_keys.torch_shape(leaf, shape.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (path / name).mkdir(parents=True)
        with open(path / name / f"{components.STEMS[name]}.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        write_json(path / name / "config.json", config.to_json())
        size += offset
    factory.write_tokenizer(path / "tokenizer")
    factory.ddim().save_pretrained(path / "scheduler")
    write_json(path / "model_index.json", {"_class_name": "InstructVid2VidPipeline"})
    return size


@pytest.mark.parametrize("way", ["export", "import"])
def test_time_and_memory_at_real_size(tmp_path, way):
    size = hollow(tmp_path / "sd15")
    words = [
        sys.executable,
        "-c",
        CONVERT,
        way,
        str(tmp_path / "sd15"),
        str(tmp_path / "out"),
        "float16",
    ]
    peak, seconds = map(
        float, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    )
    print(
        f"{way}: {size / 1e9:.2f} GB read and half of it written in {seconds:.0f} s, peak {peak / 1e9:.2f} GB, {peak / size:.3f} x the size"
    )
    assert size > 4e9 and peak < 1.3 * size


@pytest.mark.parametrize("name", ["motion", "3D on SD 1"])
def test_a_whole_edit_at_real_size(tmp_path, name):
    """256x256 pixels, 2 frames, 20 steps, three branches."""
    parts = dict(
        unet=factory.unet(factory.UNET_SD15 | dict(in_channels=8)),
        vae=factory.vae(factory.VAE_SD),
        text_encoder=factory.text_encoder(factory.TEXT_SD15),
    )
    base = factory.save(tmp_path / "base", parts | dict(scheduler=factory.ddim()))
    folder, params = open_pipeline_folder(base), load_params(open_pipeline_folder(base))
    unet = dataclasses.replace(
        folder.unet, **{key: tuple(value) for key, value in KINDS[name][0].items()}
    )
    params["unet"] = inflate_params(params["unet"], folder.unet, unet, 0)
    awake = factory.noisy(param_shapes("unet", unet), scale=0.02)
    flat, random = (
        flax.traverse_util.flatten_dict(params["unet"]),
        flax.traverse_util.flatten_dict(awake),
    )
    zero = [
        path
        for path in flat
        if is_temporal_key(torch_keys.torch_key(path)) and not np.any(flat[path])
    ]
    params["unet"] = flax.traverse_util.unflatten_dict(
        flat | {path: random[path] for path in zero}
    )  # temporal layers that do something
    save_folder(tmp_path / "ours", dataclasses.replace(folder, unet=unet), params)
    del params, flat, random, awake
    exporter.export_folder(tmp_path / "ours", tmp_path / "out")
    clip, noise = (
        np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8),
        np.random.default_rng(3).standard_normal((1, 4, 2, 32, 32), np.float32),
    )
    np.savez(tmp_path / "input.npz", clip=clip, noise=noise)
    ours = jax_edit(tmp_path / "ours", clip, noise, size=256)
    job = dict(
        folder=str(tmp_path / "out"),
        dtype="float32",
        input=str(tmp_path / "input.npz"),
        output=str(tmp_path / "edit.npz"),
        instruction=INSTRUCTION,
        steps=20,
    )
    [theirs] = fresh_edits(tmp_path, [job | dict(size=256, frames=8)])
    assert_the_same_edit(f"{name}, Stable Diffusion 1.5's size", ours, theirs)
