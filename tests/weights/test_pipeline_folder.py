"""Loading and saving pipeline folders: bit-exact, strict, in every form of published folders."""

import json
import shutil
import subprocess
import sys

import flax
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ivid2vid_jax
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import components, safetensors_io
from ivid2vid_jax.weights.pipeline_folder import (
    CONFIGS,
    load_params,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)
from tests.support import factory
from tests.support.memory import PEAK
from tests.support.references import diffusers, torch


def stored_tensors(folder):
    """Every tensor of a pipeline folder's files by component and canonical key."""
    return {
        f"{component}/{components.canonical_key(component, key)}": array
        for component in CONFIGS
        for path in safetensors_io.find_files(folder / component, components.STEMS[component])
        for key, array in load_file(path).items()
        if not key.endswith("position_ids")
    }


def flat_arrays(params):
    return {
        key: np.asarray(leaf)
        for key, leaf in flax.traverse_util.flatten_dict(params, sep=".").items()
    }


def assert_equal_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for key, array in actual.items():
        assert array.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(
            array.view(np.uint8), expected[key].view(np.uint8), err_msg=key
        )


def round_trip(path, work, **options):
    """Loads and saves a folder; returns the new one, which holds the same tensors and configs."""
    folder, output = open_pipeline_folder(path), work / "out"
    save_folder(output, folder, load_params(folder), **options)
    assert_equal_bits(stored_tensors(output), stored_tensors(path))
    assert open_pipeline_folder(output).models == folder.models
    return output


@pytest.mark.parametrize("options", [{}, dict(max_shard_bytes=60_000)], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    "changes",
    [dict(in_channels=4), dict(in_channels=8), factory.UNET_TINY_SD2],
    ids=["sd15", "ip2p", "sd21"],
)
def test_round_trip_is_bit_exact(tmp_path, changes, options):
    shard_size = {"max_shard_size": "60KB"} if options else {}
    source = factory.save_pipeline(tmp_path / "in", factory.tiny_parts(**changes), **shard_size)
    assert (len(list((source / "unet").glob("*.safetensors"))) > 1) == bool(options)
    output = round_trip(source, tmp_path, **options)
    assert (len(list((output / "unet").glob("*.safetensors"))) > 1) == bool(options)
    net = diffusers.UNet2DConditionModel.from_pretrained(output / "unet")
    expected = stored_tensors(source)
    for key, value in net.state_dict().items():
        assert torch.equal(value, torch.from_numpy(expected[f"unet/{key}"])), key


def test_stock_pipeline_reads_a_saved_folder(tiny, tmp_path):
    output = round_trip(tiny, tmp_path)
    actual, expected = (
        diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(path)
        for path in (output, tiny)
    )
    for name in CONFIGS:
        state, expected_state = (getattr(pipe, name).state_dict() for pipe in (actual, expected))
        assert state.keys() == expected_state.keys()
        assert all(torch.equal(state[key], expected_state[key]) for key in state), name
    ids, text = torch.arange(9)[None], "the red car"
    assert torch.equal(actual.text_encoder(ids)[0], expected.text_encoder(ids)[0])
    assert actual.tokenizer(text)["input_ids"] == expected.tokenizer(text)["input_ids"]
    assert actual.scheduler.config == expected.scheduler.config


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sd21", "ip2p"])
def test_round_trip_at_real_size(tmp_path, kind):
    unet = {
        "sd15": factory.UNET_SD15,
        "sd21": factory.UNET_SD21,
        "ip2p": factory.UNET_SD15 | dict(in_channels=8),
    }[kind]
    text = factory.TEXT_SD21 if kind == "sd21" else factory.TEXT_SD15
    parts = dict(
        unet=factory.unet(unet),
        vae=factory.vae(factory.VAE_SD),
        text_encoder=factory.text_encoder(text),
        scheduler=factory.ddim(),
    )
    shard_size = {"max_shard_size": "1GB"} if kind == "sd21" else {}
    source = factory.save_pipeline(tmp_path / "in", parts, **shard_size)
    del parts
    round_trip(source, tmp_path, max_shard_bytes=10**9 if kind == "sd15" else 5 * 10**9)


def test_half_precision_and_variants(tmp_path):
    parts = factory.tiny_parts()
    for name in ("unet", "vae", "text_encoder"):
        parts[name].half()
    source = factory.save_pipeline(tmp_path / "fp16", parts, variant="fp16")
    assert (source / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    folder = open_pipeline_folder(source)
    assert jax.tree.leaves(load_params(folder, variant="fp16"))[0].dtype == np.float16
    params = load_params(folder)  # takes the fp16 files, since there are no others
    save_folder(tmp_path / "out", folder, params, variant="fp16")
    assert_equal_bits(stored_tensors(tmp_path / "out"), stored_tensors(source))
    params = load_params(folder, dtype=np.float32)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model.bf16.safetensors"):
        load_params(folder, variant="bf16")


def test_bfloat16_is_read(tmp_path):
    module = factory.unet(factory.UNET_TINY).bfloat16()
    module.save_pretrained(tmp_path)
    config = UNetConfig.from_json(read_json(tmp_path / "config.json"))
    params = components.load_component("unet", tmp_path, param_shapes("unet", config))
    bias = np.asarray(params["conv_in"]["bias"].astype(np.float32))
    np.testing.assert_array_equal(bias, module.conv_in.bias.detach().float().numpy())


def edit_tensors(folder, component, change):
    """Rewrites a component's file after change(tensors)."""
    path = safetensors_io.find_files(folder / component, components.STEMS[component])[0]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


FILE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv_in.bias"), r"missing conv_in.bias \[16\]"),
        (
            lambda tensors: tensors.update({"conv_in.extra": np.zeros(3, np.float32)}),
            rf"unexpected conv_in.extra \[3\] in {FILE}",
        ),
        (
            lambda tensors: tensors.update({"conv_out.bias": np.zeros(5, np.float32)}),
            rf"misshapen conv_out.bias \[5\] in {FILE}, .*\[4\]",
        ),
        (
            lambda tensors: tensors.update({"conv_out.bias": np.zeros(4, np.int64)}),
            rf"conv_out.bias in {FILE} is I64",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "integer"],
)
def test_error_names_keys_that_do_not_fit(tiny, tmp_path, change, message):
    folder = shutil.copytree(tiny, tmp_path / "broken")
    edit_tensors(folder, "unet", change)
    with pytest.raises(UserError, match=message):
        load_params(open_pipeline_folder(folder))


@pytest.mark.parametrize("prefix", [True, False])
def test_text_encoder_keys_with_and_without_prefix(tiny, tmp_path, prefix):
    folder = shutil.copytree(tiny, tmp_path / "folder")

    def rename(tensors):
        for key in list(tensors):
            bare = key.removeprefix("text_model.")
            tensors[f"text_model.{bare}" if prefix else bare] = tensors.pop(key)
        name = "embeddings.position_ids"
        tensors[f"text_model.{name}" if prefix else name] = np.arange(77)[None]

    edit_tensors(folder, "text_encoder", rename)
    params = load_params(open_pipeline_folder(folder))
    expected = load_params(open_pipeline_folder(tiny))
    assert_equal_bits(flat_arrays(params["text_encoder"]), flat_arrays(expected["text_encoder"]))
    save_folder(tmp_path / "out", open_pipeline_folder(folder), params)
    saved = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in saved)


def test_old_autoencoder_attention_names(tiny, tmp_path):
    """Stable Diffusion 1.5's vae/ has the names query, key, value and proj_attn."""
    folder = shutil.copytree(tiny, tmp_path / "folder")
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for key in [key for key in tensors if ".attentions." in key]:
            old_key = key
            for name, old_name in old_names.items():
                old_key = old_key.replace(f".{name}.", f".{old_name}.")
            tensors[old_key] = tensors.pop(key)

    edit_tensors(folder, "vae", rename)
    assert any(".proj_attn." in key for key in load_file(folder / "vae" / FILE))
    assert_equal_bits(stored_tensors(folder), stored_tensors(tiny))
    jax.tree.map(
        np.testing.assert_array_equal,
        load_params(open_pipeline_folder(folder))["vae"],
        load_params(open_pipeline_folder(tiny))["vae"],
    )


def test_other_components_are_skipped(tiny, tmp_path, caplog):
    """PNDMScheduler, safety_checker and feature_extractor: parts of stable-diffusion-v1-5."""
    folder = shutil.copytree(tiny, tmp_path / "folder")
    shutil.rmtree(folder / "scheduler")
    config = {name: value for name, value in factory.SCHEDULER.items() if name != "clip_sample"}
    diffusers.PNDMScheduler(**config, skip_prk_steps=True).save_pretrained(folder / "scheduler")
    index = read_json(folder / "model_index.json")
    index |= dict(
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"not read")
    with caplog.at_level("INFO"):
        pipe = ivid2vid_jax.load(folder)
    assert pipe.schedule.steps_offset == 1
    assert "safety_checker is not needed" in caplog.text
    assert "PNDMScheduler gives the noise schedule; ddim samples" in caplog.text


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def write_unet_config(folder, **changes):
    (folder / "unet" / "config.json").write_text(json.dumps(factory.UNET_TINY | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), r"has no model_index.json"),
        (
            lambda folder: (folder / "unet" / "config.json").write_text("{"),
            r"unet/config.json: cannot be read as JSON",
        ),
        (
            lambda folder: (folder / "unet" / "config.json").write_text("[]"),
            "holds a JSON list",
        ),
        (lambda folder: write_unet_config(folder, cross_attention_dim=48), "text of width 48"),
        (lambda folder: write_unet_config(folder, act_fn="mish"), "act_fn='mish'"),
        (lambda folder: (folder / "vae" / FILE).unlink(), rf"vae: no {FILE}"),
        (
            lambda folder: (folder / "vae" / FILE).write_bytes(b"\0" * 100),
            "is not a whole safetensors file",
        ),
        (lambda folder: truncate(folder / "unet" / FILE), "is not a whole safetensors file"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
            r"scheduler_config.json: cannot be read",
        ),
        (
            lambda folder: shutil.rmtree(folder / "tokenizer"),
            r"tokenizer: holds neither vocab.json nor tokenizer.json",
        ),
    ],
)
def test_error_names_the_damaged_part(tiny, tmp_path, damage, message):
    folder = shutil.copytree(tiny, tmp_path / "folder")
    damage(folder)
    with pytest.raises(UserError, match=message):
        ivid2vid_jax.load(folder)


def test_error_names_a_missing_shard(tmp_path):
    folder = factory.save_pipeline(tmp_path / "in", factory.tiny_parts(), max_shard_size="60KB")
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"names the shard {shard.name}, which is not in"):
        load_params(open_pipeline_folder(folder))


def test_saving_never_overwrites_and_is_atomic(tiny, tmp_path):
    folder = open_pipeline_folder(tiny)
    params = load_params(folder)
    with pytest.raises(UserError, match="exists already"):
        save_folder(tiny, folder, params)
    with pytest.raises(KeyError):
        save_folder(tmp_path / "new", folder, {"unet": params["unet"]})
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_put_on_the_given_shardings(tiny):
    device = jax.devices()[-1]
    folder = open_pipeline_folder(tiny)
    single = jax.sharding.SingleDeviceSharding(device)
    tree = jax.tree.map(lambda _: single, param_shapes("unet", folder.unet))
    for sharding in (single, tree):
        params = components.load_component(
            "unet", tiny / "unet", param_shapes("unet", folder.unet), shardings=sharding
        )
        assert all(leaf.sharding == single for leaf in jax.tree.leaves(params))


MEMORY = f"""
import sys, jax
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
jax.devices()
{PEAK}
params = load_params(open_pipeline_folder(sys.argv[1]))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((peak - base) / size, size)
"""


@pytest.mark.slow
def test_memory_while_loading_sd15(tmp_path):
    """Peak host memory, above the level after imports, is under 1.6x the parameters."""
    parts = dict(
        unet=factory.unet(factory.UNET_SD15),
        vae=factory.vae(factory.VAE_SD),
        text_encoder=factory.text_encoder(factory.TEXT_SD15),
    )
    folder = factory.save_pipeline(tmp_path / "sd15", parts | dict(scheduler=factory.ddim()))
    del parts
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=True
    )
    ratio, size = map(float, process.stdout.split())
    print(f"peak {ratio:.3f} x {size / 1e9:.2f} GB")
    assert size > 4e9 and ratio < 1.6
