"""CLIP against transformers': the text encoder, both towers, the preprocessing of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from ivid2vid_jax import models
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import clip_scores
from ivid2vid_jax.models import CLIPTextConfig, CLIPTextModel
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.pipeline_folder import open_clip_folder, param_shapes, save_folder
from tests.support import factory
from tests.support.references import torch

TINY_H = factory.TEXT_TINY | dict(hidden_act="gelu", num_hidden_layers=3)


def check_parity(module, folder, length, tolerance):
    module.save_pretrained(folder)
    config = CLIPTextConfig.from_json(read_json(folder / "config.json"))
    params = components.load_component("text_encoder", folder, param_shapes("text_encoder", config))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
    with torch.no_grad():
        reference = module(torch.from_numpy(ids)).last_hidden_state.numpy()
    ours = jax.jit(CLIPTextModel(config).apply)({"params": params}, jnp.asarray(ids, jnp.int32))
    assert factory.relative_difference(ours, reference) <= tolerance


@pytest.mark.parametrize("config", [factory.TEXT_TINY, TINY_H], ids=["quick_gelu", "gelu"])
@pytest.mark.parametrize("length", [77, 9])
def test_equals_transformers(tmp_path, config, length):
    check_parity(factory.text_encoder(config), tmp_path, length, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [factory.TEXT_SD15, factory.TEXT_SD21], ids=["sd15", "sd21"])
def test_equals_transformers_at_real_size(tmp_path, config):
    check_parity(factory.text_encoder(config), tmp_path, 77, 1e-4)


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="78 tokens exceed the text encoder's 77"):
        CLIPTextModel(CLIPTextConfig(**factory.TEXT_TINY)).init(
            jax.random.key(0), jnp.zeros((1, 78), jnp.int32)
        )


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        CLIPTextConfig.from_json(dict(hidden_act="relu"))


VISION_TINY = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=24,
    patch_size=8,
)
VISION_L14 = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
)


def save_clip(folder, text: dict, vision: dict, width: int):
    """A random CLIPModel of transformers, saved with a tokenizer and a preprocessor."""
    torch.manual_seed(5)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    module = factory.randomise(transformers.CLIPModel(config), 5)
    module.save_pretrained(folder)
    factory.write_tokenizer(folder)
    side = vision["image_size"]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    preprocessor = dict(
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=mean,
        image_std=std,
        resample=3,
    )
    write_json(folder / "preprocessor_config.json", preprocessor)
    return module


def reference(module, pixels, ids):
    """Image embeddings, text embeddings and logits of transformers' model."""
    with torch.no_grad():
        out = module(
            input_ids=torch.from_numpy(ids).long(),
            pixel_values=torch.from_numpy(np.moveaxis(pixels, -1, 1).copy()),
        )
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def check_towers(folder, module, tolerance, length=12):
    config = open_clip_folder(folder).clip
    params = components.load_component("clip", folder, param_shapes("clip", config))
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, config.vision.image_size, config.vision.image_size, 3)).astype(
        np.float32
    )
    ids = rng.integers(0, config.text.eos_token_id - 1, (2, length)).astype(np.int32)
    # Padded with the end-of-text token, as CLIP's tokenizer does.
    ids[0, 7:] = ids[1, -1] = config.text.eos_token_id
    images, texts, scale = jax.jit(models.CLIPModel(config).apply)(
        {"params": params}, pixels, jnp.asarray(ids)
    )
    expected_images, expected_texts, expected_logits = reference(module, pixels, ids)
    assert factory.relative_difference(images, expected_images) <= tolerance
    assert factory.relative_difference(texts, expected_texts) <= tolerance
    assert factory.relative_difference(scale * images @ texts.T, expected_logits) <= tolerance


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, save_clip(folder, factory.TEXT_TINY, VISION_TINY, 40)


def test_both_towers_equal_transformers(tiny_clip):
    check_towers(*tiny_clip, 2e-5)


@pytest.mark.slow
def test_both_towers_equal_transformers_at_real_size(tmp_path):
    text = factory.TEXT_SD15 | dict(eos_token_id=49407)
    check_towers(tmp_path, save_clip(tmp_path, text, VISION_L14, 768), 1e-4, length=77)


def test_the_end_of_text_token_of_openais_configs_is_the_largest_id():
    """Their configs say eos_token_id 2, which is not the end-of-text token of their tokenizer."""
    config = models.CLIPConfig(
        CLIPTextConfig(**factory.TEXT_TINY | dict(eos_token_id=2)),
        models.CLIPVisionConfig(**VISION_TINY),
        40,
    )
    init = jax.jit(models.CLIPModel(config).init)
    params = init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)), jnp.zeros((1, 4), jnp.int32))
    embed = jax.jit(lambda ids: models.CLIPModel(config).apply(params, ids, method="embed_texts"))
    one, two = embed(jnp.array([[9, 2, 599, 7]])), embed(jnp.array([[9, 2, 599, 8]]))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, embed(jnp.array([[9, 3, 599, 8]])))


def test_a_saved_clip_is_read_by_transformers(tiny_clip, tmp_path):
    folder, module = tiny_clip
    ours = open_clip_folder(folder)
    params = components.load_component("clip", folder, param_shapes("clip", ours.clip))
    save_folder(tmp_path / "saved", ours, {"clip": params})
    loaded, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values()), report
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert {file.name for file in (tmp_path / "saved").iterdir()} >= {
        "vocab.json",
        "merges.txt",
        "preprocessor_config.json",
        "config.json",
    }


def test_images_and_texts_of_a_folder(tiny_clip):
    """Against transformers' preprocessing and tokenizer.

    The frames are not square as the encoder's input is, and more than one batch.
    """
    folder, module = tiny_clip
    embedder = clip_scores.load_clip(folder)
    frames = np.random.default_rng(1).integers(0, 256, (35, 40, 61, 3), np.uint8)
    texts = ["a red circle", "the background should be white " * 40]
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    pixels = np.moveaxis(processor(list(frames), return_tensors="np")["pixel_values"], 1, -1)
    ids = transformers.CLIPTokenizer.from_pretrained(folder)(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    )["input_ids"]
    expected_images, expected_texts, _ = reference(module, pixels.astype(np.float32), ids)
    np.testing.assert_allclose(embedder.images(frames), expected_images, atol=2e-5)
    np.testing.assert_allclose(embedder.texts(texts), expected_texts, atol=2e-5)


def test_a_folder_without_clip_is_refused(tiny, tmp_path):
    for folder, message in (
        (tiny / "text_encoder", "is a clip_text_model, not a CLIP model"),
        (tmp_path / "none", "no such model folder"),
    ):
        with pytest.raises(UserError, match=message):
            clip_scores.load_clip(folder)
