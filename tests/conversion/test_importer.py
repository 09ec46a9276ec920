"""Import from each layout, as its own class writes it or from its key list: bit-exact, reported."""

import copy
import json
import shutil
import tarfile

import jax
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from ivid2vid_jax import convert
from ivid2vid_jax.conversion import exporter
from ivid2vid_jax.conversion.foreign_checkpoint import open_component_tensors
from ivid2vid_jax.conversion.pytorch.inflated_unet import InflatedUNet3D as TorchUNet
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import InflatedUNet3D
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder
from tests.conversion.checkpoints import (
    SD1,
    SD2,
    TEXT,
    VAE,
    assert_equal_params,
    assert_equal_states,
    contiguous,
    import_to,
    motion_adapter,
    single_file,
    state_dict,
)
from tests.conversion.edits import save_random_net
from tests.support import factory, foreign
from tests.support.command import ROOT, run_command


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("kind", ["SD 1", "InstructPix2Pix", "SD 2"])
def test_single_files(wide, tmp_path, kind, suffix):
    is_sd2 = kind == "SD 2"
    sizes = (SD2 if is_sd2 else SD1) | dict(in_channels=8 if kind == "InstructPix2Pix" else 4)
    unet, vae = factory.unet(factory.UNET_TINY | sizes), factory.vae(VAE)
    text = factory.text_encoder(TEXT | dict(hidden_act="gelu" if is_sd2 else "quick_gelu"))
    tensors = single_file(unet, vae, text, open_clip=is_sd2)
    # diffusers' converters verify the test's own layout
    assert_equal_states(
        single_file_utils.convert_ldm_unet_checkpoint(
            dict(tensors), dict(layers_per_block=1, class_embed_type=None)
        ),
        state_dict(unet),
    )
    assert_equal_states(
        single_file_utils.convert_ldm_vae_checkpoint(
            dict(tensors), dict(down_block_types=[0] * 2, up_block_types=[0] * 2)
        ),
        state_dict(vae),
    )

    file = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file(contiguous(tensors), file)
    else:
        torch.save({"state_dict": tensors, "global_step": 5}, file)
    report, folder, params = import_to(file, tmp_path / "out", wide)
    assert_equal_params(params["unet"], state_dict(unet))
    assert_equal_params(params["vae"], state_dict(vae))
    assert_equal_params(params["text_encoder"], foreign.with_prefix(state_dict(text), ""))
    family = {"SD 1": "Stable Diffusion 1.x", "SD 2": "Stable Diffusion 2.x"}.get(kind, kind)
    assert report["family"] == f"{family}, one file" and "betas" in report["left"]
    assert folder.unet.in_channels == sizes["in_channels"]
    assert folder.unet.head_dim(1) == (64 if is_sd2 else 8)
    if is_sd2:
        last_layer = "cond_stage_model.model.transformer.resblocks.2.ln_1.weight"
        assert report["left"][last_layer].startswith("the last layer")
        assert folder.text_encoder.hidden_act == "gelu"
        assert folder.text_encoder.num_hidden_layers == 2
    saved_report = json.loads((tmp_path / "out" / "import.json").read_text())
    assert saved_report["tensors"]["unet"] == {str(file): len(state_dict(unet))}


def test_ema_of_a_single_file_is_taken(wide, tmp_path):
    unet, vae = factory.unet(factory.UNET_TINY | SD1), factory.vae(VAE)
    tensors = single_file(unet, vae, factory.text_encoder(TEXT))
    ema = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": value + 1
        for key, value in tensors.items()
        if key.startswith("model.")
    }
    tensors |= ema | {"model_ema.decay": torch.ones(1)}
    save_file(contiguous(tensors), tmp_path / "file.safetensors")
    report, _, params = import_to(tmp_path / "file.safetensors", tmp_path / "out", wide)
    expected = {key: value + 1 for key, value in state_dict(unet).items()}
    assert_equal_params(params["unet"], expected)
    assert report["notes"] == ["averaged (EMA) weights of the U-Net"]


def test_diffusers_reads_an_imported_single_file(wide, tmp_path):
    unet = factory.unet(factory.UNET_TINY | SD1)
    tensors = single_file(unet, factory.vae(VAE), factory.text_encoder(TEXT))
    save_file(contiguous(tensors), tmp_path / "a.safetensors")
    import_to(tmp_path / "a.safetensors", tmp_path / "out", wide, dtype="float16")
    actual = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert torch.equal(actual.conv_in.weight.half(), unet.conv_in.weight.half())


@pytest.mark.parametrize(
    ("version", "changes"),
    [("v1", dict(motion_max_seq_length=24)), ("v2", dict(use_motion_mid_block=True)), ("v3", {})],
    ids=["v1", "v2", "v3"],
)
def test_animatediff_motion_modules(tiny, tmp_path, version, changes):
    adapter = motion_adapter(**changes)
    tensors = foreign.animatediff(state_dict(adapter))
    # diffusers' converter drops the position tables
    assert_equal_states(
        single_file_utils.convert_animatediff_checkpoint_to_diffusers(dict(tensors)),
        {key: value for key, value in state_dict(adapter).items() if not key.endswith(".pe")},
    )
    if version == "v2":
        tensors = {"state_dict": {f"module.{key}": value for key, value in tensors.items()}}
    file = tmp_path / "mm.ckpt"
    torch.save(tensors, file)
    report, folder, params = import_to(file, tmp_path / "out", tiny)
    base = {
        key: torch.from_numpy(tensor.read())
        for key, tensor in open_component_tensors("unet", tiny / "unet").items()
    }
    assert_equal_params(params["unet"], base | state_dict(adapter))
    unet = folder.unet
    assert report["family"] == f"AnimateDiff motion modules, {version}"
    assert unet.temporal == ("motion",) and unet.motion_group_norm == "frame"
    assert unet.group_norm == ("clip" if version == "v1" else "frame")
    assert unet.motion_max_seq_length == (24 if version == "v1" else 32)
    assert unet.use_motion_mid_block == (version == "v2")


def test_motion_adapter_folders(tiny, tmp_path):
    adapter = motion_adapter(motion_num_attention_heads=4)
    adapter.save_pretrained(tmp_path / "adapter")
    _, folder, params = import_to(tmp_path / "adapter", tmp_path / "out", tiny, group_norm="clip")
    assert folder.unet.motion_num_attention_heads == 4
    assert folder.unet.motion_group_norm == "clip" and folder.unet.group_norm == "clip"
    np.testing.assert_array_equal(
        params["unet"]["down_blocks.0"]["motion_modules.0"]["proj_in"]["bias"],
        state_dict(adapter)["down_blocks.0.motion_modules.0.proj_in.bias"],
    )
    motion_adapter(block_out_channels=(32, 32)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="misshapen"):
        import_to(tmp_path / "other", tmp_path / "new", tiny)
    with pytest.raises(UserError, match="no unet, vae, text_encoder, tokenizer: give --base"):
        import_to(tmp_path / "adapter", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def group_norm(norm, x):
    return torch.nn.functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def clip_norm(norm, frames):
    """The forward function of a norm over frames [B*T, C, H, W] that pools over the clip."""

    def forward(x):
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
        return group_norm(norm, clip).transpose(1, 2).flatten(0, 1)

    return forward


def frame_norm(norm):
    """The forward function of a norm over clips [B, C, T, H, W] that works frame by frame."""

    def forward(x):
        frames = group_norm(norm, x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (-1, x.shape[2])).transpose(1, 2)

    return forward


def test_insv2v(wide, tmp_path):
    """The reference is diffusers' net with InsV2V's norms.

    The resnets' norms pool over the clip, the motion modules' norms work frame by frame.
    """
    unet = factory.motion_unet(norm_num_groups=32, cross_attention_dim=64, num_attention_heads=8)
    vae, text = factory.vae(VAE), factory.text_encoder(TEXT)
    motion_state = foreign.animatediff(state_dict(unet))
    tensors = {f"unet.{key}": value for key, value in motion_state.items()}
    tensors |= foreign.ldm_vae(state_dict(vae), 2, "vae.")
    tensors |= foreign.with_prefix(state_dict(text), "text_model.transformer.")
    file = tmp_path / "insv2v.pth"
    torch.save({f"_forward_module.{key}": value for key, value in tensors.items()}, file)
    report, folder, params = import_to(file, tmp_path / "out", wide)
    assert report["family"] == "InsV2V" and folder.sampling["video_scale"] == 1.2
    assert folder.unet.group_norm == "clip" and folder.unet.motion_group_norm == "frame"
    assert folder.unet.in_channels == 8
    assert_equal_params(params["unet"], state_dict(unet))
    assert_equal_params(params["vae"], state_dict(vae))
    assert_equal_params(params["text_encoder"], foreign.with_prefix(state_dict(text), ""))

    rng, T = np.random.default_rng(0), 3
    x = rng.standard_normal((1, T, 8, 8, 8), np.float32)
    context = rng.standard_normal((1, 5, 64)).astype(np.float32)
    reference = copy.deepcopy(unet)
    for name, layer in reference.named_modules():
        if isinstance(layer, torch.nn.GroupNorm) and ("resnets" in name or name == "conv_norm_out"):
            layer.forward = clip_norm(layer, T)
        elif isinstance(layer, torch.nn.GroupNorm) and "motion_modules" in name:
            layer.forward = frame_norm(layer)
    with torch.no_grad():
        expected = reference(
            torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
            torch.tensor([300.0]),
            torch.from_numpy(context.repeat(T, axis=0)),
        ).sample.numpy()
    actual = jax.jit(InflatedUNet3D(folder.unet).apply)(
        {"params": params["unet"]}, x, np.float32([300]), context
    )
    assert factory.relative_difference(np.moveaxis(np.asarray(actual), -1, 1), expected) <= 1e-5


def test_modelscope_folders_with_bin_files(tmp_path):
    unet = factory.unet3d(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    source = factory.save_pipeline(tmp_path / "modelscope", factory.tiny_parts() | dict(unet=unet))
    for component, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        file = next((source / component).glob("*.safetensors"))
        torch.save(load_file(file), source / component / f"{stem}.bin")
        file.unlink()
    report, folder, params = import_to(source, tmp_path / "out")
    assert_equal_params(params["unet"], state_dict(unet))
    assert folder.unet.temporal == ("conv", "attention") and folder.unet.head_dim(1) == 16
    assert report["base"] is None and not report["left"]


def test_tune_a_video_folders(tiny, tmp_path):
    from tests.synthesis.test_tune_a_video import TARGET, reference

    unet, source = reference(), shutil.copytree(tiny, tmp_path / "tuned")
    config = read_json(source / "unet" / "config.json") | {
        "_class_name": "UNet3DConditionModel",
        "in_channels": 4,
        "mid_block_type": "UNetMidBlock3DCrossAttn",
    }
    for name in ("down_block_types", "up_block_types"):
        config[name] = [block.replace("2D", "3D") for block in config[name]]
    write_json(source / "unet" / "config.json", config)
    next((source / "unet").glob("*.safetensors")).unlink()
    torch.save(unet.state_dict(), source / "unet" / "diffusion_pytorch_model.bin")
    report, folder, params = import_to(source, tmp_path / "out")
    assert report["family"].startswith("Tune-A-Video")
    for name in ("temporal", "spatial_attention", "group_norm"):
        assert getattr(folder.unet, name) == getattr(TARGET, name)
    assert_equal_params(params["unet"], state_dict(unet))


@pytest.mark.slow
def test_exported_folder_trained_in_torch_is_imported(tiny, tmp_path):
    temporal = dict(temporal=["conv", "attention", "motion"])
    source = save_random_net(tmp_path, "source", temporal, tiny)
    exported = tmp_path / "exported"
    exporter.export_folder(source, exported)
    net, info = TorchUNet.from_pretrained(exported / "unet", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before = state_dict(net)
    x, t, text = torch.randn(1, 8, 3, 8, 8), torch.tensor([5.0]), torch.randn(1, 4, 32)
    net.train()(x, t, text).sample.square().mean().backward()
    # this net has temporal layers of every kind that the module knows, and all get gradients
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    torch.optim.SGD(net.parameters(), 0.1).step()
    shutil.rmtree(exported / "unet")
    net.save_pretrained(exported / "unet")
    _, folder, params = import_to(exported, tmp_path / "out")
    assert_equal_params(params["unet"], state_dict(net))
    assert folder.unet == open_pipeline_folder(source).unet
    assert not torch.equal(state_dict(net)["conv_out.weight"], before["conv_out.weight"])


def test_inspect_shows_what_a_file_is_and_lacks(motion_file, tiny, capsys, tmp_path):
    def run(path):
        return run_command(capsys, convert.COMMANDS, convert.run, "inspect", path)

    code, _, out = run(motion_file)
    assert code == 0 and "AnimateDiff motion modules, v3" in out
    assert "--base FOLDER (for unet, vae, text_encoder, tokenizer" in out
    code, _, out = run(tiny)
    for text in (
        "pipeline folder",
        "8 input channels",
        "predicts: epsilon",
        "temporal layers: none",
        f"--model {tiny} takes it as it is, to edit clips",
        "text_encoder: ",
    ):
        assert text in out
    assert "convert import" not in out
    code, _, out = run("shapes-edit")
    assert code == 0 and "temporal layers: conv, attention" in out
    code, err, _ = run(tmp_path / "none")
    assert code == 2 and "no such file" in err


def test_inspect_describes_a_training_run(tiny, capsys, tmp_path):
    """A run that exported its pipeline, and one that has only checkpoints."""

    def run():
        return run_command(capsys, convert.COMMANDS, convert.run, "inspect", tmp_path / "run")

    with tarfile.open(ROOT / "tests" / "fixtures" / "run_0_1.tar.gz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    code, _, out = run()
    checkpoint = tmp_path / "run" / "checkpoints" / "2"
    assert code == 0 and f"its newest checkpoint is {checkpoint}\n  step 2 of 4" in out
    assert "trained from scratch" in out and "unet: 1,868 trained parameters" in out
    assert f"to use it: python -m ivid2vid_jax.convert pipeline {tmp_path}/run\n" in out

    shutil.copytree(tiny, tmp_path / "run" / "pipeline")
    write_json(tmp_path / "run" / "pipeline" / "training.json", {"step": 2})
    code, _, out = run()
    assert code == 0 and f"of step 2 are in {tmp_path}/run/pipeline" in out
    assert f"--model {tmp_path}/run takes it as it is" in out

    shutil.rmtree(tmp_path / "run" / "pipeline")
    shutil.rmtree(checkpoint.parent)
    code, err, _ = run()
    assert code == 2 and "without a checkpoint" in err
