"""Checkpoints given by mistake are named for what they are; odd but usable files are imported."""

import re

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from ivid2vid_jax import convert, edit
from ivid2vid_jax.conversion.foreign_formats import open_checkpoint
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from tests.conversion.checkpoints import (
    SD1,
    TEXT,
    VAE,
    assert_equal_params,
    assert_equal_states,
    contiguous,
    import_to,
    single_file,
    state_dict,
)
from tests.support import factory, foreign
from tests.support.command import run_command
from tests.support.train_runs import train_command, write_recipe

VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def parts():
    """U-Net, autoencoder and text encoder of a small Stable Diffusion 1.x."""
    unet = factory.unet(factory.UNET_TINY | SD1 | dict(in_channels=4))
    return dict(unet=unet, vae=factory.vae(VAE), text_encoder=factory.text_encoder(TEXT))


@pytest.fixture(scope="module")
def plain(parts):
    """The same in one file."""
    return single_file(parts["unet"], parts["vae"], parts["text_encoder"])


def attention_key(key):
    return ".attn_1." in key and ".norm." not in key


def bias_as_convolution(tensors):
    return {
        key: value[:, None, None] if attention_key(key) and key.endswith("bias") else value
        for key, value in tensors.items()
    }


def weight_as_dense(tensors):
    return {
        key: value[:, :, 0, 0] if attention_key(key) and value.ndim == 4 else value
        for key, value in tensors.items()
    }


def new_attention_names(tensors):
    names = {".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".proj_out.": ".to_out.0."}

    def rename(key):
        for old, new in names.items():
            key = key.replace(old, new) if ".attn_1." in key else key
        return key

    return {rename(key): value for key, value in tensors.items()}


def starting_with(tensors, prefix, remove=""):
    return {key.removeprefix(remove): v for key, v in tensors.items() if key.startswith(prefix)}


def with_training_keys(tensors):
    extra = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    return starting_with(tensors, VAE_PREFIX, VAE_PREFIX) | extra


USABLE = {  # what the file holds -> (its tensors, the parts that are its own)
    "no autoencoder": (
        lambda t: {key: v for key, v in t.items() if not key.startswith(VAE_PREFIX)},
        {"unet", "text_encoder"},
    ),
    "biases [C, 1, 1]": (bias_as_convolution, {"unet", "vae", "text_encoder"}),
    "dense attention": (weight_as_dense, {"unet", "vae", "text_encoder"}),
    "to_q in attention": (new_attention_names, {"unet", "vae", "text_encoder"}),
    "text without text_model": (
        lambda t: {
            key.replace(f"{TEXT_PREFIX}text_model.", TEXT_PREFIX): v for key, v in t.items()
        },
        {"unet", "vae", "text_encoder"},
    ),
    "text projection": (
        lambda t: (
            t
            | {f"{TEXT_PREFIX}text_projection.weight": torch.zeros(64, 64)}
            | {"cond_stage_model.logit_scale": torch.zeros(())}
        ),
        {"unet", "vae", "text_encoder"},
    ),
    "autoencoder": (lambda t: starting_with(t, VAE_PREFIX, VAE_PREFIX), {"vae"}),
    "autoencoder, prefixed": (lambda t: starting_with(t, VAE_PREFIX), {"vae"}),
    "autoencoder, trained": (with_training_keys, {"vae"}),
    "U-Net": (lambda t: starting_with(t, "model."), {"unet"}),
}


def state_of(parts, name):
    state = state_dict(parts[name])
    return foreign.with_prefix(state, "") if name == "text_encoder" else state


@pytest.mark.parametrize("name", USABLE)
def test_odd_files_are_read(parts, plain, tmp_path, name):
    change, own = USABLE[name]
    save_file(contiguous(change(plain)), tmp_path / "file.safetensors")
    source = open_checkpoint(tmp_path / "file.safetensors")
    assert source.components.keys() == own == source.configs.keys()
    for part, tensors in source.components.items():
        actual = {key: torch.from_numpy(tensor.read()) for key, tensor in tensors.items()}
        assert_equal_states(actual, state_of(parts, part))


@pytest.mark.parametrize("change", [bias_as_convolution, weight_as_dense])
def test_odd_shapes_are_imported(wide, parts, plain, tmp_path, change):
    """Under a suffix that is not its format's."""
    save_file(contiguous(change(plain)), tmp_path / "file.ckpt")
    params = import_to(tmp_path / "file.ckpt", tmp_path / "out", wide)[2]
    for part in parts:
        assert_equal_params(params[part], state_of(parts, part))


def test_an_autoencoder_alone_is_imported(wide, parts, tmp_path):
    parts["vae"].save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    report, _, params = import_to(file, tmp_path / "out", wide)
    assert_equal_params(params["vae"], state_dict(parts["vae"]))
    assert report["tensors"]["vae"].keys() == {str(file)}
    assert report["tensors"]["unet"].keys() != {str(file)}
    for source in (file, file.parent):
        with pytest.raises(UserError, match=r"VAE.* no unet, text_encoder, tokenizer: give --base"):
            import_to(source, tmp_path / "new")


def keys_of(name):
    """Keys by which diffusers recognises a kind of single file."""
    keys = single_file_utils.CHECKPOINT_KEY_NAMES[name]
    return keys if isinstance(keys, list) else [keys]


LORA = "lora_unet_down_blocks_0_attentions_0_proj_in"
NAMED = [  # (key of a file, what it is)
    *((key, "is Stable Diffusion XL; only") for key in keys_of("xl_base")),
    *((key, "is Stable Diffusion XL; only") for key in keys_of("xl_refiner")),
    *((key, "is Stable Diffusion XL; only") for key in keys_of("clip_sdxl")),
    *((key, "is Stable Diffusion 3; only") for key in keys_of("sd3")),
    *((key, "is Flux; only") for key in keys_of("flux")),
    *((key, "is a ControlNet; give the") for key in keys_of("controlnet")),
    *((key, "is a diffusion transformer; only") for key in keys_of("mochi-1-preview")),
    (f"{LORA}.lora_down.weight", "is a LoRA; merge it into its base"),
    (f"{LORA}.hada_w1_a", "is a LoRA; merge"),
    ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "is a LoRA; merge"),
    ("down_blocks.0.attn1.processor.to_q_lora.down.weight", "is a LoRA; merge"),
    ("base_model.model.conv_in.lora_A.weight", "is a LoRA; merge"),
    ("emb_params", "is a textual inversion embedding; give"),
    ("image_proj.proj.weight", "is an IP-Adapter; give"),
    ("text_model.embeddings.token_embedding.weight", "is a CLIP model; give"),
]


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize(("key", "message"), NAMED)
def test_files_of_other_kinds_are_named(tmp_path, key, message, suffix):
    file, tensors = tmp_path / f"file.{suffix}", {key: torch.zeros(2, 2)}
    if suffix == "safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors}, file)
    with pytest.raises(UserError, match=rf"^{file}: {message}.*"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.to(torch.float8_e4m3fn), "its weights are fp8 (F8_E4M3)"),
        (lambda v: v.to(torch.float8_e5m2), "its weights are fp8 (F8_E5M2)"),
        (lambda v: v.to(torch.int8), "its weights are quantised to 8 bits or fewer (I8)"),
    ],
)
def test_quantised_weights_are_named(plain, tmp_path, change, message):
    tensors = {key: change(v) if v.ndim > 1 else v for key, v in contiguous(plain).items()}
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        open_checkpoint(tmp_path / "file.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="is a quantised GGUF file"):
        open_checkpoint(tmp_path / "model.gguf")


def test_fp8_in_a_pickle_is_named(tmp_path):
    torch.save({"x.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, tmp_path / "file.ckpt")
    with pytest.raises(UserError, match=r"its weights are fp8 \(float8_e4m3fn\)"):
        open_checkpoint(tmp_path / "file.ckpt")


def test_inpainting_and_foreign_autoencoders_are_named(parts, tmp_path):
    unet = factory.unet(factory.UNET_TINY | SD1 | dict(in_channels=9))
    tensors = single_file(unet, parts["vae"], parts["text_encoder"])
    save_file(contiguous(tensors), tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=r"is an inpainting model \(9 input channels\)"):
        open_checkpoint(tmp_path / "file.safetensors")
    vae = foreign.ldm_vae(
        state_dict(diffusers.AutoencoderKL(latent_channels=16, use_quant_conv=False)), 1, ""
    )
    save_file(contiguous(vae), tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match=r"is the autoencoder \(VAE\) of Stable Diffusion 3 or Fl"):
        open_checkpoint(tmp_path / "ae.safetensors")


# ---- folders, as diffusers writes them


SMALL = dict(num_layers=1, attention_head_dim=8, num_attention_heads=2)


def make_folder(path, kind):
    """A folder of the kind; returns what the error says it is."""
    if kind == "SDXL":
        net = diffusers.UNet2DConditionModel(
            **factory.UNET_TINY | dict(in_channels=4),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )
        factory.save_pipeline(path, factory.tiny_parts() | dict(unet=net))
        return "is Stable Diffusion XL; only"
    if kind == "Stable Diffusion 3":
        net = diffusers.SD3Transformer2DModel(**SMALL, sample_size=8, caption_projection_dim=16)
        net.save_pretrained(path / "transformer")
        index = {"_class_name": "StableDiffusion3Pipeline"}
        write_json(path / "model_index.json", index | {"transformer": ["diffusers", "SD3"]})
        return "is Stable Diffusion 3"
    if kind == "Flux":
        net = diffusers.FluxTransformer2DModel(
            **SMALL, num_single_layers=1, axes_dims_rope=(2, 2, 4), in_channels=4
        )
        net.save_pretrained(path)
        return "is Flux"
    if kind == "transformer":
        path.mkdir()
        index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "Wan"]}
        write_json(path / "model_index.json", index)
        return "is a WanPipeline, with a transformer instead of a U-Net"
    if kind == "ControlNet":
        sizes = {name: factory.UNET_TINY[name] for name in ("block_out_channels",)}
        diffusers.ControlNetModel(
            **sizes, down_block_types=factory.UNET_TINY["down_block_types"]
        ).save_pretrained(path)
        return "is a ControlNet"
    if kind == "inpainting":
        factory.save_pipeline(path, factory.tiny_parts(in_channels=9))
        return "is an inpainting model (9 input channels)"
    path.mkdir()
    if kind == "LoRA of diffusers":
        save_file(
            {"unet.conv_in.lora.down.weight": torch.zeros(2, 2)},
            path / "pytorch_lora_weights.safetensors",
        )
        return "is a LoRA"
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return "is a LoRA of PEFT"


@pytest.mark.parametrize(
    "kind",
    [
        *("SDXL", "Stable Diffusion 3", "Flux", "transformer", "ControlNet", "inpainting"),
        *("LoRA of diffusers", "LoRA of PEFT"),
    ],
)
def test_folders_of_other_kinds_are_named(tmp_path, capsys, kind):
    """By every command that takes a model."""
    folder = tmp_path / "folder"
    message = make_folder(folder, kind)
    capsys.readouterr()  # progress bars of diffusers
    assert message in one_line(capsys, "import", folder, tmp_path)
    assert message in one_line(capsys, "edit", folder, tmp_path)
    assert message in one_line(capsys, "train", folder, tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_te_x.lora_up.weight": torch.zeros(2)}, "is a LoRA; merge it into its base"),
        (None, "is a checkpoint in one file; make a pipeline folder of it first: python -m"),
    ],
)
def test_a_file_given_as_a_model_is_named(tmp_path, plain, capsys, tensors, message):
    file = tmp_path / "file.safetensors"
    save_file(contiguous(plain) if tensors is None else tensors, file)
    assert message in one_line(capsys, "edit", file, tmp_path)
    assert message in one_line(capsys, "train", file, tmp_path)


def one_line(capsys, command, model, folder):
    """The one-line error of a command for a model."""
    output = folder / "output.mp4"
    if command == "train":
        recipe = write_recipe(folder, folder / "run")
        code, stderr = train_command(capsys, "--config", recipe, "--model", model)
    else:
        code, stderr = convert_or_edit(capsys, command, model, output)
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1 and str(model) in lines[0], stderr
    assert not output.exists()
    return lines[0]


def convert_or_edit(capsys, command, model, output):
    """Exit code and stderr of `convert import` or `edit`."""
    if command == "import":
        arguments = (convert.COMMANDS, convert.run, "import", model, output)
    else:
        options = ["--model", model, "--output", output, "--instruction", "make it snow"]
        arguments = (edit.EditArgs, edit.run, *options)
    return run_command(capsys, *arguments)[:2]
