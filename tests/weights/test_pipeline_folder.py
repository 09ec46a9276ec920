"""Folders in and out: bit-exact, strict, and in all the shapes that published ones have."""

import json
import shutil

import flax
import jax
import numpy as np
import pytest
import torch
from diffusers import (
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from safetensors.numpy import load_file, save_file

import ivid2vid_jax
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import components, hub, safetensors_io, torch_keys
from ivid2vid_jax.weights.inflate import inflate_params
from ivid2vid_jax.weights.pipeline_folder import (
    CONFIGS,
    load_params,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)
from tests.support import factory
from tests.support.memory import PEAK


def tensors(folder):
    """Every stored tensor of a pipeline folder, whole or sharded, under canonical names."""
    out = {}
    for component in CONFIGS:
        stem = components.STEMS[component]
        paths = safetensors_io.find_files(folder / component, stem)
        for path in paths:
            out |= {
                f"{component}/{components.canonical_key(component, k)}": v
                for k, v in load_file(path).items()
                if not k.endswith("position_ids")
            }
    return out


def assert_equal_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        np.testing.assert_array_equal(a[key].view(np.uint8), b[key].view(np.uint8), err_msg=key)


def round_trip(path, work, **options):
    folder = open_pipeline_folder(path)
    save_folder(work / "out", folder, load_params(folder), **options)
    assert_equal_bits(tensors(path), tensors(work / "out"))
    again = open_pipeline_folder(work / "out")
    assert (again.unet, again.vae, again.text_encoder) == (
        folder.unet,
        folder.vae,
        folder.text_encoder,
    )
    return work / "out"


@pytest.mark.parametrize("options", [{}, dict(max_shard_bytes=60_000)], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    "changes",
    [dict(in_channels=4), dict(in_channels=8), {k: v for k, v in factory.UNET_TINY_SD2.items()}],
    ids=["sd15", "ip2p", "sd21"],
)
def test_round_trip_is_bit_exact(tmp_path, changes, options):
    source = factory.save(
        tmp_path / "in", factory.tiny(**changes), **({"max_shard_size": "60KB"} if options else {})
    )
    assert (len(list((source / "unet").glob("*.safetensors"))) > 1) == bool(options)
    out = round_trip(source, tmp_path, **options)
    assert (len(list((out / "unet").glob("*.safetensors"))) > 1) == bool(options)
    diffusers_net = UNet2DConditionModel.from_pretrained(
        out / "unet"
    )  # the stock class takes what we wrote
    assert all(
        torch.equal(p, torch.from_numpy(tensors(source)[f"unet/{k}"]))
        for k, p in diffusers_net.state_dict().items()
    )


def test_the_stock_pipeline_reads_what_we_wrote(tiny, tmp_path):
    out = round_trip(tiny, tmp_path)
    ours, theirs = (
        StableDiffusionInstructPix2PixPipeline.from_pretrained(path) for path in (out, tiny)
    )
    for name in ("unet", "vae", "text_encoder"):
        a, b = getattr(ours, name).state_dict(), getattr(theirs, name).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    text = torch.arange(9)[None]
    assert torch.equal(ours.text_encoder(text)[0], theirs.text_encoder(text)[0])
    assert (
        ours.tokenizer("the red car")["input_ids"] == theirs.tokenizer("the red car")["input_ids"]
    )
    assert ours.scheduler.config == theirs.scheduler.config


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
    source = factory.save(
        tmp_path / "in", parts, **({"max_shard_size": "1GB"} if kind == "sd21" else {})
    )
    del parts
    round_trip(source, tmp_path, max_shard_bytes=10**9 if kind == "sd15" else 5 * 10**9)


def test_half_precision_and_variants(tmp_path):
    parts = factory.tiny()
    for name in ("unet", "vae", "text_encoder"):
        parts[name].half()
    source = factory.save(tmp_path / "fp16", parts, variant="fp16")
    assert (source / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    folder = open_pipeline_folder(source)
    assert jax.tree.leaves(load_params(folder, variant="fp16"))[0].dtype == np.float16
    params = load_params(folder)  # only fp16 files are there: taken without being asked for
    save_folder(tmp_path / "out", folder, params, variant="fp16")
    assert_equal_bits(tensors(source), tensors(tmp_path / "out"))
    wide = load_params(folder, dtype=np.float32)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(wide))
    with pytest.raises(UserError, match="no diffusion_pytorch_model.bf16.safetensors"):
        load_params(folder, variant="bf16")


def test_bfloat16_is_read(tmp_path):
    module = factory.unet(factory.UNET_TINY).bfloat16()
    module.save_pretrained(tmp_path)
    config = UNetConfig.from_json(read_json(tmp_path / "config.json"))
    params = components.load_component("unet", tmp_path, param_shapes("unet", config))
    bias = np.asarray(params["conv_in"]["bias"].astype(np.float32))
    np.testing.assert_array_equal(bias, module.conv_in.bias.detach().float().numpy())


def edit_tensors(folder, component, change):
    """Rewrites a component's file with its tensors changed."""
    path = safetensors_io.find_files(folder / component, components.STEMS[component])[0]
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


def drop(held):
    del held["conv_in.bias"]


def add(held):
    held["conv_in.extra"] = np.zeros(3, np.float32)


def misshape(held):
    held["conv_out.bias"] = np.zeros(5, np.float32)


def recast(held):
    held["conv_out.bias"] = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"missing conv_in.bias \[32\]"),
        (add, r"unexpected conv_in.extra \[3\] in diffusion_pytorch_model.safetensors"),
        (
            misshape,
            r"misshapen conv_out.bias \[5\] in diffusion_pytorch_model.safetensors, the config asks for \[4\]",
        ),
        (recast, r"conv_out.bias in diffusion_pytorch_model.safetensors is I64"),
    ],
)
def test_keys_that_do_not_fit_are_named(tiny, tmp_path, change, message):
    folder = shutil.copytree(tiny, tmp_path / "broken")
    edit_tensors(folder, "unet", change)
    with pytest.raises(UserError, match=message):
        load_params(open_pipeline_folder(folder))


@pytest.mark.parametrize("prefix", [True, False])
def test_text_encoder_keys_with_and_without_prefix(tiny, tmp_path, prefix):
    folder = shutil.copytree(tiny, tmp_path / "folder")

    def rename(held):
        for key in list(held):
            bare = key.removeprefix("text_model.")
            held[f"text_model.{bare}" if prefix else bare] = held.pop(key)
        held["text_model.embeddings.position_ids" if prefix else "embeddings.position_ids"] = (
            np.arange(77)[None]
        )

    edit_tensors(folder, "text_encoder", rename)
    params = load_params(open_pipeline_folder(folder))
    assert_equal_bits(
        {
            k: np.asarray(v)
            for k, v in flax.traverse_util.flatten_dict(params["text_encoder"], sep=".").items()
        },
        {
            k: np.asarray(v)
            for k, v in flax.traverse_util.flatten_dict(
                load_params(open_pipeline_folder(tiny))["text_encoder"], sep="."
            ).items()
        },
    )
    save_folder(tmp_path / "out", open_pipeline_folder(folder), params)
    assert all(
        key.startswith("text_model.")
        for key in load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    )


def test_old_autoencoder_attention_names(tiny, tmp_path):
    """Stable Diffusion 1.5's own vae/ says query, key, value, proj_attn."""
    folder = shutil.copytree(tiny, tmp_path / "folder")
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}

    def rename(held):
        for key in [k for k in held if ".attentions." in k]:
            name = key.replace("to_out.0", "proj_attn")
            for new, former in old.items():
                name = name.replace(f".{new}.", f".{former}.")
            held[name] = held.pop(key)

    edit_tensors(folder, "vae", rename)
    assert any(
        ".proj_attn." in key
        for key in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    )
    assert_equal_bits(tensors(folder), tensors(tiny))
    jax.tree.map(
        np.testing.assert_array_equal,
        load_params(open_pipeline_folder(folder))["vae"],
        load_params(open_pipeline_folder(tiny))["vae"],
    )


def test_a_published_folders_other_components(tiny, tmp_path, caplog):
    """PNDMScheduler, safety_checker and feature_extractor, as runwayml/stable-diffusion-v1-5 ships them."""
    folder = shutil.copytree(tiny, tmp_path / "folder")
    shutil.rmtree(folder / "scheduler")
    PNDMScheduler(
        **{k: v for k, v in factory.SCHEDULER.items() if k != "clip_sample"}, skip_prk_steps=True
    ).save_pretrained(folder / "scheduler")
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
    assert (
        "safety_checker is not needed" in caplog.text
        and "PNDMScheduler gives the noise schedule; ddim samples" in caplog.text
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
        (
            lambda f: (f / "unet" / "config.json").write_text("{"),
            r"unet/config.json: cannot be read as JSON",
        ),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), r"holds a JSON list"),
        (
            lambda f: (f / "unet" / "config.json").write_text(
                json.dumps(factory.UNET_TINY | dict(cross_attention_dim=48))
            ),
            "text of width 48",
        ),
        (
            lambda f: (f / "unet" / "config.json").write_text(
                json.dumps(factory.UNET_TINY | dict(act_fn="mish"))
            ),
            "act_fn='mish'",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
            "vae: no diffusion_pytorch_model.safetensors",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100),
            "is not a whole safetensors file",
        ),
        (
            lambda f: truncate(f / "unet" / "diffusion_pytorch_model.safetensors"),
            "is not a whole safetensors file",
        ),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
            "scheduler_config.json: cannot be read",
        ),
        (
            lambda f: shutil.rmtree(f / "tokenizer"),
            "tokenizer: holds neither vocab.json nor tokenizer.json",
        ),
    ],
)
def test_damaged_folders_are_named(tiny, tmp_path, damage, message):
    folder = shutil.copytree(tiny, tmp_path / "folder")
    damage(folder)
    with pytest.raises(UserError, match=message):
        ivid2vid_jax.load(folder)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_a_missing_shard_is_named(tmp_path):
    folder = factory.save(tmp_path / "in", factory.tiny(), max_shard_size="60KB")
    victim = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=f"names the shard {victim.name}, which is not in"):
        load_params(open_pipeline_folder(folder))


def test_writing_never_overwrites_and_leaves_nothing_half(tiny, tmp_path):
    folder = open_pipeline_folder(tiny)
    params = load_params(folder)
    with pytest.raises(UserError, match="exists already"):
        save_folder(tiny, folder, params)
    with pytest.raises(KeyError):
        save_folder(tmp_path / "new", folder, {"unet": params["unet"]})
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_placed_into_given_shardings(tiny):
    device = jax.devices()[-1]
    folder = open_pipeline_folder(tiny)
    single = jax.sharding.SingleDeviceSharding(device)
    tree = jax.tree.map(lambda _: single, param_shapes("unet", folder.unet))
    for sharding in (single, tree):
        params = components.load_component(
            "unet", tiny / "unet", param_shapes("unet", folder.unet), shardings=sharding
        )
        assert all(leaf.sharding == single for leaf in jax.tree.leaves(params))


def test_name_rule_is_its_own_inverse():
    rng = np.random.default_rng(0)
    for shape in [(3, 5), (3, 3, 4, 6), (3, 1, 1, 4, 6)]:
        path, array = ("a.0", "b", "kernel"), rng.standard_normal(shape)
        there = torch_keys.to_torch(path, array)
        assert there.shape == torch_keys.torch_shape(path, shape)
        np.testing.assert_array_equal(torch_keys.from_torch(path, there), array)
    assert (
        torch_keys.torch_key(("down_blocks.0", "resnets.1", "norm1", "scale"))
        == "down_blocks.0.resnets.1.norm1.weight"
    )
    assert (
        torch_keys.torch_key(("text_model", "embeddings", "token_embedding", "embedding"))
        == "text_model.embeddings.token_embedding.weight"
    )


def test_inflation_refuses_another_net():
    small = UNetConfig.from_json(factory.UNET_TINY)
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), param_shapes("unet", small))
    deeper = UNetConfig.from_json(factory.UNET_TINY | dict(layers_per_block=2))
    with pytest.raises(
        ValueError,
        match="differs from the stored one in more than temporal layers: down_blocks.0.attentions.1",
    ):
        inflate_params(params, small, deeper, 0)
    with pytest.raises(ValueError, match="cannot be narrowed to 4"):
        inflate_params(
            params, small, UNetConfig.from_json(factory.UNET_TINY | dict(in_channels=4)), 0
        )


def test_inflated_folder_round_trip(tiny, tmp_path):
    folder = open_pipeline_folder(tiny)
    params = load_params(folder)
    target = UNetConfig.from_json(
        folder.unet.to_json() | dict(temporal=["conv", "attention"], num_frames=8)
    )
    params["unet"] = inflate_params(params["unet"], folder.unet, target, 0)
    folder.unet = target
    folder.sampling = dict(steps=7, text_scale=3.0)
    save_folder(tmp_path / "video", folder, params)
    index = read_json(tmp_path / "video" / "model_index.json")
    assert index["_class_name"] == "InstructVid2VidPipeline"
    again = open_pipeline_folder(tmp_path / "video")
    assert again.unet == target and again.sampling == folder.sampling
    jax.tree.map(np.testing.assert_array_equal, load_params(again)["unet"], params["unet"])


def test_where_a_model_is_looked_for(tiny, tmp_path):
    assert hub.resolve_model(tiny) == tiny
    shutil.copytree(tiny, tmp_path / "run" / "pipeline")
    assert hub.resolve_model(tmp_path / "run") == tmp_path / "run" / "pipeline"
    with pytest.raises(UserError, match="no such model folder"):
        hub.resolve_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="could not be had from the Hugging Face hub"):
        hub.resolve_model("nobody/such-a-model")


MEMORY = f"""
import sys, jax
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
jax.devices()
{PEAK}
params = load_params(open_folder(sys.argv[1]))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((peak - base) / size, size)
"""


@pytest.mark.slow
def test_memory_while_loading_sd15(tmp_path):
    """Peak host memory above the level after imports stays under 1.6x the parameters."""
    import subprocess
    import sys

    parts = dict(
        unet=factory.unet(factory.UNET_SD15),
        vae=factory.vae(factory.VAE_SD),
        text_encoder=factory.text_encoder(factory.TEXT_SD15),
    )
    folder = factory.save(tmp_path / "sd15", parts | dict(scheduler=factory.ddim()))
    del parts
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=True
    ).stdout.split()
    print(f"peak {float(out[0]):.3f} x {int(out[1]) / 1e9:.2f} GB")
    assert int(out[1]) > 4e9 and float(out[0]) < 1.6
