"""Conversion at Stable Diffusion 1.5's size: memory, time and an edit in PyTorch; and training."""

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
from tests.conversion.checkpoints import assert_equal_params, import_to, motion_adapter, state_dict
from tests.conversion.edits import INSTRUCTION, NETS, assert_same_edit, jax_edit, torch_edits
from tests.support import factory
from tests.support.foreign import animatediff
from tests.support.memory import PEAK
from tests.support.tiny_run import tiny as tiny_config

pytestmark = pytest.mark.slow


def test_import_train_export_import(tmp_path):
    """AnimateDiff's modules, two training steps, PyTorch and back: the EMA, bit for bit."""
    base = factory.save_pipeline(tmp_path / "base", factory.tiny_parts())
    torch.save(animatediff(state_dict(motion_adapter())), tmp_path / "mm.ckpt")
    start = tmp_path / "start"
    import_to(tmp_path / "mm.ckpt", start, base, motion_group_norm="clip")
    config = tiny_config(
        tmp_path / "run",
        model=str(start),
        net__temporal=None,
        steps=2,
        optim__warmup=0,
        checkpoint__pipeline=True,
    )
    run = train(config)
    target, _ = exporter.export_folder(run / "pipeline", tmp_path / "exported")
    assert target.class_name == "UNetMotionModel"
    net = UNetMotionModel.from_pretrained(tmp_path / "exported" / "unet")
    _, _, params = import_to(tmp_path / "exported", tmp_path / "imported")
    assert_equal_params(params["unet"], state_dict(net))
    trained = load_params(open_pipeline_folder(run / "pipeline"))["unet"]
    assert_equal_params(trained, state_dict(net))
    initial = load_params(open_pipeline_folder(start))["unet"]
    trained, initial = (tree["down_blocks.0"]["motion_modules.0"] for tree in (trained, initial))
    assert not np.array_equal(trained["proj_in"]["kernel"], initial["proj_in"]["kernel"])
    np.testing.assert_array_equal(
        *(tree["transformer_blocks.0"]["pos_embed"]["pe"] for tree in (trained, initial))
    )


# Prints the peak memory (bytes) and the seconds of an export or import.
CONVERT = f"""
import sys, time, jax
from ivid2vid_jax.conversion import exporter, foreign_formats, importer
from pathlib import Path
jax.devices()
{PEAK}
command, source, output, dtype = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
start = time.time()
if command == "export":
    exporter.export_folder(source, output, dtype)
else:
    checkpoint = foreign_formats.open_checkpoint(source)
    importer.import_checkpoint(checkpoint, None, output, importer.ImportOptions(dtype=dtype))
print(peak - base, time.time() - start)
"""


def write_sparse_folder(path):
    """Writes a folder of Stable Diffusion 1.5's size with temporal layers; returns its bytes.

    Its values are zeros in sparse files, which take no space on disk.
    """
    unet = UNetConfig(in_channels=8, temporal=("conv", "attention"))
    configs = {"unet": unet, "vae": AutoencoderConfig(), "text_encoder": CLIPTextConfig()}
    total_size = 0
    for name, config in configs.items():
        header, offset = {}, 0
        for leaf, value in flax.traverse_util.flatten_dict(param_shapes(name, config)).items():
            end = offset + 4 * int(np.prod(value.shape))
            header[torch_keys.torch_key(leaf)] = {
                "dtype": "F32",
                "shape": torch_keys.torch_shape(leaf, value.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        header_bytes = json.dumps(header).encode()
        header_bytes += b" " * (-len(header_bytes) % 8)
        (path / name).mkdir(parents=True)
        with (path / name / f"{components.STEMS[name]}.safetensors").open("wb") as file:
            file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
            file.truncate(8 + len(header_bytes) + offset)
        write_json(path / name / "config.json", config.to_json())
        total_size += offset
    factory.write_tokenizer(path / "tokenizer")
    factory.ddim().save_pretrained(path / "scheduler")
    write_json(path / "model_index.json", {"_class_name": "InstructVid2VidPipeline"})
    return total_size


@pytest.mark.parametrize("command", ["export", "import"])
def test_time_and_memory_at_real_size(tmp_path, command):
    size = write_sparse_folder(tmp_path / "sd15")
    words = [command, str(tmp_path / "sd15"), str(tmp_path / "out"), "float16"]
    process = subprocess.run(
        [sys.executable, "-c", CONVERT, *words], capture_output=True, text=True, check=True
    )
    peak, seconds = map(float, process.stdout.split())
    print(
        f"{command}: read {size / 1e9:.2f} GB and wrote half of it in {seconds:.0f} s; peak "
        f"{peak / 1e9:.2f} GB, {peak / size:.3f} x the size"
    )
    assert size > 4e9 and peak < 1.3 * size


@pytest.mark.parametrize("name", ["motion", "3D on SD 1"])
def test_edit_at_real_size(tmp_path, name):
    """256x256 pixels, 2 frames, 20 steps, three branches."""
    parts = dict(
        unet=factory.unet(factory.UNET_SD15 | dict(in_channels=8)),
        vae=factory.vae(factory.VAE_SD),
        text_encoder=factory.text_encoder(factory.TEXT_SD15),
    )
    base = factory.save_pipeline(tmp_path / "base", parts | dict(scheduler=factory.ddim()))
    folder = open_pipeline_folder(base)
    params = load_params(folder)
    changes = {field: tuple(value) for field, value in NETS[name][0].items()}
    unet = dataclasses.replace(folder.unet, **changes)
    inflated = flax.traverse_util.flatten_dict(inflate_params(params["unet"], folder.unet, unet, 0))
    # random values instead of the zeros in temporal layers, so that the layers have an effect
    random = flax.traverse_util.flatten_dict(
        factory.random_params(param_shapes("unet", unet), scale=0.02)
    )
    params["unet"] = flax.traverse_util.unflatten_dict(
        {
            path: random[path]
            if is_temporal_key(torch_keys.torch_key(path)) and not np.any(leaf)
            else leaf
            for path, leaf in inflated.items()
        }
    )
    save_folder(tmp_path / "source", dataclasses.replace(folder, unet=unet), params)
    del params, inflated, random
    exporter.export_folder(tmp_path / "source", tmp_path / "out")
    clip = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    noise = np.random.default_rng(3).standard_normal((1, 4, 2, 32, 32), np.float32)
    np.savez(tmp_path / "input.npz", clip=clip, noise=noise)
    actual = jax_edit(tmp_path / "source", clip, noise, size=256)
    job = dict(
        folder=str(tmp_path / "out"),
        dtype="float32",
        input=str(tmp_path / "input.npz"),
        output=str(tmp_path / "edit.npz"),
        instruction=INSTRUCTION,
        steps=20,
        size=256,
        frames=8,
    )
    [reference] = torch_edits(tmp_path, [job])
    assert_same_edit(f"{name}, Stable Diffusion 1.5's size", actual, reference)
