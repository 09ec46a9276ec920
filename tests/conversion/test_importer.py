"""Other people's weights: each layout as its own class writes it, or from its key list; strict, to the bit, with a report; damaged and hostile files."""

import copy
import json
import resource
import shutil

import flax
import jax
import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from ivid2vid_jax import convert
from ivid2vid_jax.conversion import foreign_formats, importer
from ivid2vid_jax.models import InflatedUNet3D
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights import torch_keys
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support import factory
from tests.support import foreign as theirs
from tests.support.command import run_command

SD1 = dict(
    attention_head_dim=8, norm_num_groups=32, cross_attention_dim=64
)  # what shapes cannot tell is Stable Diffusion's
SD2 = SD1 | dict(
    block_out_channels=(64, 128), attention_head_dim=(1, 2), use_linear_projection=True
)
TEXT = factory.TEXT_TINY | dict(hidden_size=64, num_attention_heads=1, num_hidden_layers=2)
VAE = dict(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=32)


def state(module):
    return {
        key: value.clone()
        for key, value in module.state_dict().items()
        if not key.endswith("position_ids")
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder whose tokenizer and scheduler single files lack, with text of width 64."""
    parts = dict(
        unet=factory.unet(factory.UNET_TINY | SD1),
        vae=factory.vae(VAE),
        text_encoder=factory.text_encoder(TEXT),
        scheduler=factory.ddim(),
    )
    return factory.save(tmp_path_factory.mktemp("wide") / "folder", parts)


def imported(source, output, base=None, **options):
    told = importer.import_checkpoint(
        foreign_formats.open_checkpoint(source), base, output, importer.ImportOptions(**options)
    )
    folder = open_pipeline_folder(output)
    return told, folder, load_params(folder)


def assert_same(params, state_dict):
    """A Flax tree holds a PyTorch state dict, every key, to the bit."""
    flat = {
        torch_keys.torch_key(path): (path, leaf)
        for path, leaf in flax.traverse_util.flatten_dict(params).items()
    }
    assert flat.keys() == state_dict.keys()
    for key, (path, leaf) in flat.items():
        np.testing.assert_array_equal(
            torch_keys.to_torch(path, np.asarray(leaf)), state_dict[key].numpy(), err_msg=key
        )


def prefixed(state_dict):
    return theirs.with_prefix(state_dict, "")


def single_file(unet, vae, text, open_clip=False):
    parts = theirs.ldm_unet(state(unet), layers=1) | theirs.ldm_vae(state(vae), levels=2)
    parts |= (
        theirs.openclip(state(text))
        if open_clip
        else theirs.with_prefix(state(text), "cond_stage_model.transformer.")
    )
    return parts | {"betas": torch.zeros(1000), "sqrt_alphas_cumprod": torch.ones(1000)}


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
@pytest.mark.parametrize("kind", ["SD 1", "InstructPix2Pix", "SD 2"])
def test_original_single_files(wide, tmp_path, kind, form):
    sizes = (SD2 if kind == "SD 2" else SD1) | dict(
        in_channels=8 if kind == "InstructPix2Pix" else 4
    )
    act = "gelu" if kind == "SD 2" else "quick_gelu"
    unet, vae, text = (
        factory.unet(factory.UNET_TINY | sizes),
        factory.vae(VAE),
        factory.text_encoder(TEXT | dict(hidden_act=act)),
    )
    held = single_file(unet, vae, text, open_clip=kind == "SD 2")
    judged = single_file_utils.convert_ldm_unet_checkpoint(
        dict(held), dict(layers_per_block=1, class_embed_type=None)
    )
    assert judged.keys() == state(unet).keys() and all(
        torch.equal(judged[key], value) for key, value in state(unet).items()
    )
    judged = single_file_utils.convert_ldm_vae_checkpoint(
        dict(held), dict(down_block_types=[0] * 2, up_block_types=[0] * 2)
    )
    assert judged.keys() == state(vae).keys() and all(
        torch.equal(judged[key].reshape(value.shape), value) for key, value in state(vae).items()
    )

    file = tmp_path / f"model.{form}"
    save_file(
        {key: value.contiguous() for key, value in held.items()}, file
    ) if form == "safetensors" else torch.save({"state_dict": held, "global_step": 5}, file)
    told, folder, params = imported(file, tmp_path / "out", wide)
    assert_same(params["unet"], state(unet))
    assert_same(params["vae"], state(vae))
    assert_same(params["text_encoder"], prefixed(state(text)))
    family = {"SD 1": "Stable Diffusion 1.x", "SD 2": "Stable Diffusion 2.x"}.get(kind, kind)
    assert told["family"] == f"{family}, one file" and "betas" in told["left"]
    assert folder.unet.in_channels == sizes["in_channels"] and folder.unet.head_dim(1) == (
        64 if kind == "SD 2" else 8
    )
    if kind == "SD 2":
        assert told["left"][
            "cond_stage_model.model.transformer.resblocks.2.ln_1.weight"
        ].startswith("the last layer")
        assert (
            folder.text_encoder.hidden_act == "gelu" and folder.text_encoder.num_hidden_layers == 2
        )
    assert json.loads((tmp_path / "out" / "import.json").read_text())["tensors"]["unet"] == {
        str(file): len(state(unet))
    }


def test_averaged_weights_of_a_single_file_are_taken(wide, tmp_path):
    unet, vae, text = (
        factory.unet(factory.UNET_TINY | SD1),
        factory.vae(VAE),
        factory.text_encoder(TEXT),
    )
    held = single_file(unet, vae, text)
    average = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": value + 1
        for key, value in held.items()
        if key.startswith("model.")
    }
    save_file(
        {
            key: value.contiguous()
            for key, value in (held | average | {"model_ema.decay": torch.ones(1)}).items()
        },
        tmp_path / "file.safetensors",
    )
    told, _, params = imported(tmp_path / "file.safetensors", tmp_path / "out", wide)
    assert_same(params["unet"], {key: value + 1 for key, value in state(unet).items()})
    assert told["notes"] == ["averaged (EMA) weights of the U-Net"]


def adapter(**changes):
    torch.manual_seed(7)
    sizes = dict(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        use_motion_mid_block=False,
    )
    return factory.randomise(MotionAdapter(**sizes | changes), 7)


@pytest.mark.parametrize(
    ("version", "changes"),
    [("v1", dict(motion_max_seq_length=24)), ("v2", dict(use_motion_mid_block=True)), ("v3", {})],
    ids=["v1", "v2", "v3"],
)
def test_animatediff_motion_modules(tiny, tmp_path, version, changes):
    module = adapter(**changes)
    held = theirs.animatediff(state(module))
    judged = single_file_utils.convert_animatediff_checkpoint_to_diffusers(dict(held))
    learned = {
        key: value for key, value in state(module).items() if not key.endswith(".pe")
    }  # diffusers computes the tables
    assert judged.keys() == learned.keys() and all(
        torch.equal(judged[key], value) for key, value in learned.items()
    )
    file = tmp_path / "mm.ckpt"
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in held.items()}}
        if version == "v2"
        else held,
        file,
    )
    told, folder, params = imported(file, tmp_path / "out", tiny)
    base = {
        key: torch.from_numpy(each[2]())
        for key, each in foreign_formats.component_weights("unet", tiny / "unet").items()
    }
    assert_same(params["unet"], base | state(module))
    net = folder.unet
    assert told["family"] == f"AnimateDiff motion modules, {version}"
    assert (net.temporal, net.motion_group_norm, net.group_norm) == (
        ("motion",),
        "frame",
        "clip" if version == "v1" else "frame",
    )
    assert (net.motion_max_seq_length, net.use_motion_mid_block) == (
        24 if version == "v1" else 32,
        version == "v2",
    )


def test_motion_adapter_folders(tiny, tmp_path):
    module = adapter(motion_num_attention_heads=4)
    module.save_pretrained(tmp_path / "adapter")
    told, folder, params = imported(tmp_path / "adapter", tmp_path / "out", tiny, group_norm="clip")
    assert (
        folder.unet.motion_num_attention_heads == 4
        and folder.unet.motion_group_norm == "clip"
        and folder.unet.group_norm == "clip"
    )
    bias = params["unet"]["down_blocks.0"]["motion_modules.0"]["proj_in"]["bias"]
    np.testing.assert_array_equal(
        bias, state(module)["down_blocks.0.motion_modules.0.proj_in.bias"]
    )
    adapter(block_out_channels=(32, 32)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="misshapen"):
        imported(tmp_path / "other", tmp_path / "new", tiny)
    with pytest.raises(
        UserError, match="it has no unet, vae, text_encoder, tokenizer: give --base"
    ):
        imported(tmp_path / "adapter", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def pooled(norm, frames):
    def run(x):
        y = x.unflatten(0, (-1, frames)).transpose(1, 2)
        return (
            torch.nn.functional.group_norm(y, norm.num_groups, norm.weight, norm.bias, norm.eps)
            .transpose(1, 2)
            .flatten(0, 1)
        )

    return run


def by_frame(norm):
    def run(x):  # [B, C, T, H, W]
        y = torch.nn.functional.group_norm(
            x.transpose(1, 2).flatten(0, 1), norm.num_groups, norm.weight, norm.bias, norm.eps
        )
        return y.unflatten(0, (-1, x.shape[2])).transpose(1, 2)

    return run


def test_insv2v(wide, tmp_path):
    """The original's arithmetic: diffusers' net with resnets' norms over the clip and motion modules' by frame."""
    module = factory.motion(norm_num_groups=32, cross_attention_dim=64, num_attention_heads=8)
    vae, text = factory.vae(VAE), factory.text_encoder(TEXT)
    held = {
        f"unet.{key}": value for key, value in theirs.animatediff(state(module)).items()
    } | theirs.ldm_vae(state(vae), 2, "vae.")
    held |= theirs.with_prefix(state(text), "text_model.transformer.")
    torch.save(
        {f"_forward_module.{key}": value for key, value in held.items()}, tmp_path / "insv2v.pth"
    )
    told, folder, params = imported(tmp_path / "insv2v.pth", tmp_path / "out", wide)
    assert told["family"] == "InsV2V" and (
        folder.unet.group_norm,
        folder.unet.motion_group_norm,
    ) == ("clip", "frame")
    assert folder.sampling["video_scale"] == 1.2 and folder.unet.in_channels == 8
    assert_same(params["unet"], state(module))
    assert_same(params["vae"], state(vae))
    assert_same(params["text_encoder"], prefixed(state(text)))

    rng, T = np.random.default_rng(0), 3
    x, context = (
        rng.standard_normal((1, T, 8, 8, 8), np.float32),
        rng.standard_normal((1, 5, 64)).astype(np.float32),
    )
    original = copy.deepcopy(module)
    for name, layer in original.named_modules():
        if isinstance(layer, torch.nn.GroupNorm) and ("resnets" in name or name == "conv_norm_out"):
            layer.forward = pooled(layer, T)
        elif isinstance(layer, torch.nn.GroupNorm) and "motion_modules" in name:
            layer.forward = by_frame(layer)
    with torch.no_grad():
        clip = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        wanted = original(
            clip, torch.tensor([300.0]), torch.from_numpy(context.repeat(T, axis=0))
        ).sample.numpy()
    found = jax.jit(InflatedUNet3D(folder.unet).apply)(
        {"params": params["unet"]}, x, np.float32([300]), context
    )
    assert factory.relative(np.moveaxis(np.asarray(found), -1, 1), wanted) <= 1e-5


def test_modelscope_folders_with_legacy_bin_files(tmp_path):
    module = factory.unet3d(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    source = factory.save(tmp_path / "modelscope", factory.tiny() | dict(unet=module))
    for component, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        file = next((source / component).glob("*.safetensors"))
        torch.save(load_file(file), source / component / f"{stem}.bin")
        file.unlink()
    told, folder, params = imported(source, tmp_path / "out")
    assert_same(params["unet"], state(module))
    assert folder.unet.temporal == ("conv", "attention") and folder.unet.head_dim(1) == 16
    assert told["base"] is None and not told["left"]


def test_tune_a_video_folders(tiny, tmp_path):
    from tests.synthesis.test_tune_a_video import TARGET, reference

    net, source = reference(), shutil.copytree(tiny, tmp_path / "tuned")
    config = read_json(source / "unet" / "config.json") | {
        "_class_name": "UNet3DConditionModel",
        "in_channels": 4,
        "mid_block_type": "UNetMidBlock3DCrossAttn",
    }
    for name in ("down_block_types", "up_block_types"):
        config[name] = [kind.replace("2D", "3D") for kind in config[name]]
    write_json(source / "unet" / "config.json", config)
    next((source / "unet").glob("*.safetensors")).unlink()
    torch.save(net.state_dict(), source / "unet" / "diffusion_pytorch_model.bin")
    told, folder, params = imported(source, tmp_path / "out")
    assert told["family"].startswith("Tune-A-Video")
    assert (folder.unet.temporal, folder.unet.spatial_attention, folder.unet.group_norm) == (
        TARGET.temporal,
        TARGET.spatial_attention,
        TARGET.group_norm,
    )
    assert_same(params["unet"], state(net))


def test_a_torch_user_trains_on_and_brings_it_back(tiny, tmp_path):
    from ivid2vid_jax.conversion import exporter
    from ivid2vid_jax.conversion.pytorch.inflated_unet import InflatedUNet3D as Net
    from tests.conversion.test_exporter import folder_of

    ours = folder_of(tmp_path, "ours", dict(temporal=["conv", "attention", "motion"]), tiny)
    exporter.export_folder(ours, tmp_path / "out")
    net, info = Net.from_pretrained(tmp_path / "out" / "unet", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before = state(net)
    net.train()(
        torch.randn(1, 8, 3, 8, 8), torch.tensor([5.0]), torch.randn(1, 4, 32)
    ).sample.square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent  # every layer learns, in this net of all kinds
    torch.optim.SGD(net.parameters(), 0.1).step()
    shutil.rmtree(tmp_path / "out" / "unet")
    net.save_pretrained(tmp_path / "out" / "unet")
    _, folder, params = imported(tmp_path / "out", tmp_path / "back")
    assert_same(params["unet"], state(net))
    assert folder.unet == open_pipeline_folder(ours).unet
    assert not torch.equal(state(net)["conv_out.weight"], before["conv_out.weight"])


@pytest.fixture
def modules(tmp_path):
    torch.save(theirs.animatediff(state(adapter())), tmp_path / "mm.ckpt")
    return tmp_path / "mm.ckpt"


def test_pickled_code_never_runs(tmp_path, tiny, capsys):
    mark = tmp_path / "ran"
    for i, held in enumerate(
        [{"conv_in.weight": torch.zeros(2), "evil": theirs.Evil(mark)}, theirs.Evil(mark)]
    ):
        torch.save(held, tmp_path / f"{i}.ckpt")
        code, said, _ = run_command(
            capsys,
            convert.COMMANDS,
            convert.run,
            "import",
            tmp_path / f"{i}.ckpt",
            tmp_path / "out",
            "--base",
            tiny,
        )
        assert (
            code == 2
            and "nothing of it was run" in said
            and "open" in said
            and "Traceback" not in said
        )
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_hostile_and_foreign_files_are_named(modules, tmp_path, tiny):
    def broken(change, compression=0):
        path = shutil.copy(modules, tmp_path / "broken.ckpt")
        theirs.repacked(path, change, compression)
        return path

    with pytest.raises(UserError, match="promises more bytes than it has"):
        foreign_formats.open_checkpoint(
            broken(lambda name, data: bytes(10**7) if name.endswith("/0") else data, compression=8)
        )
    with pytest.raises(UserError, match="are not in it as they were saved"):
        foreign_formats.open_checkpoint(
            broken(lambda name, data: data[:10] if name.endswith("/0") else data)
        )
    huge = torch.zeros(1).expand(10**12)
    torch.save(
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": huge},
        tmp_path / "huge.ckpt",
    )
    with pytest.raises(UserError, match="claims more than the file holds"):
        foreign_formats.open_checkpoint(tmp_path / "huge.ckpt")
    torch.save({"x": torch.zeros(3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="saved by a PyTorch before 1.6"):
        foreign_formats.open_checkpoint(tmp_path / "old.bin")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list, not tensors by name"):
        foreign_formats.open_checkpoint(tmp_path / "list.pt")
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        UserError, match="is none of the files that are known here .it holds a.weight."
    ):
        foreign_formats.open_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no such file"):
        foreign_formats.open_checkpoint(tmp_path / "nothing.ckpt")
    held = theirs.animatediff(state(adapter()))
    held[
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    ] += 1
    torch.save(held, tmp_path / "two.ckpt")
    with pytest.raises(UserError, match="differs from that of the first attention"):
        foreign_formats.open_checkpoint(tmp_path / "two.ckpt")
    held = theirs.animatediff(state(adapter()))
    del held["down_blocks.1.motion_modules.0.temporal_transformer.proj_in.bias"]
    torch.save(held, tmp_path / "less.ckpt")
    with pytest.raises(UserError, match="missing down_blocks.1.motion_modules.0.proj_in.bias"):
        imported(tmp_path / "less.ckpt", tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


def test_mutated_and_truncated_files_are_errors_and_cost_no_memory(modules, tmp_path):
    """2,000 of them: each is read, or refused in words; none allocates what it merely claims."""
    rng = np.random.default_rng(0)
    held = theirs.animatediff(state(adapter()))
    save_file({key: value.contiguous() for key, value in held.items()}, tmp_path / "mm.safetensors")
    before, outcomes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {"read": 0, "refused": 0}
    for source in (modules, tmp_path / "mm.safetensors"):
        whole = source.read_bytes()
        head = (
            8 + int.from_bytes(whole[:8], "little")
            if source.suffix == ".safetensors"
            else len(whole)
        )
        for i in range(1000):
            data = bytearray(whole)
            if i % 4 == 0:
                data = data[: rng.integers(0, len(data))]
            elif i % 4 == 1 and source.suffix == ".safetensors":
                data[:8] = int(rng.integers(0, 2**63)).to_bytes(8, "little")
            else:
                spots = np.concatenate(
                    [
                        rng.integers(0, min(head, 20_000), 3),
                        len(whole) - 1 - rng.integers(0, 5_000, 2) * (head == len(whole)),
                    ]
                )
                for spot in spots % head:
                    data[spot] = (
                        rng.integers(32, 127) if rng.random() < 0.5 else rng.integers(0, 256)
                    )
            file = tmp_path / f"mutant{source.suffix}"
            file.write_bytes(data)
            try:
                foreign_formats.open_checkpoint(file)
                outcomes["read"] += 1
            except UserError as error:
                assert str(file) in str(error) or "mutant" in str(error)
                outcomes["refused"] += 1
    print(outcomes)
    assert outcomes["refused"] > 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def test_inspect_says_what_it_is_and_what_is_missing(modules, tiny, capsys, tmp_path):
    code, _, said = run_command(capsys, convert.COMMANDS, convert.run, "inspect", modules)
    assert (
        code == 0
        and "AnimateDiff motion modules, v3" in said
        and "--base FOLDER (for unet, vae, text_encoder, tokenizer" in said
    )
    code, _, said = run_command(capsys, convert.COMMANDS, convert.run, "inspect", tiny)
    for part in (
        "pipeline folder",
        "8 input channels",
        "predicts: epsilon",
        "temporal layers: none",
        "edit clips with --model OUT",
        "text_encoder: ",
    ):
        assert part in said
    code, said, _ = run_command(capsys, convert.COMMANDS, convert.run, "inspect", tmp_path / "none")
    assert code == 2 and "no such file" in said


def test_the_reference_2d_net_reads_a_single_files_import(wide, tmp_path):
    unet = factory.unet(factory.UNET_TINY | SD1)
    save_file(
        {
            key: value.contiguous()
            for key, value in single_file(
                unet, factory.vae(VAE), factory.text_encoder(TEXT)
            ).items()
        },
        tmp_path / "a.safetensors",
    )
    imported(tmp_path / "a.safetensors", tmp_path / "out", wide, dtype="float16")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert torch.equal(again.conv_in.weight.half(), unet.conv_in.weight.half())
