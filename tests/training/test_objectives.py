"""CLIP's contrastive objective against a computation by hand; see also test_denoising.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.models import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from ivid2vid_jax.training.init_state import DEFAULT_PREPROCESSOR
from ivid2vid_jax.training.objectives import MAX_LOGIT_SCALE, Contrastive
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, param_initializer

TEXT = CLIPTextConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=6,
    eos_token_id=31,
)
CLIP = CLIPConfig(
    TEXT, CLIPVisionConfig(16, 32, 1, 2, image_size=16, patch_size=8), projection_dim=8
)


@pytest.fixture(scope="module")
def contrastive():
    """(objective, params, batch of 5 clips of 2 frames, whose captions 1 and 3 are equal)."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30, (5, 6)).astype(np.int32)
    tokens[:, -1] = 31
    tokens[3] = tokens[1]
    batch = {"clip": rng.integers(0, 256, (5, 2, 16, 16, 3), np.uint8), "tokens": tokens}
    params = {"clip": jax.jit(param_initializer("clip", CLIP))(jax.random.key(1))}
    folder = ClipFolder(None, CLIP, DEFAULT_PREPROCESSOR, None)
    return Contrastive(folder, jnp.float32), params, batch


def embeddings(params, batch):
    """(images, texts, logit scale) of the model, images and texts in float64."""
    pixels = batch["clip"].reshape(10, 16, 16, 3) / np.float32(127.5) - 1
    images, texts, scale = jax.jit(CLIPModel(CLIP).apply)(
        {"params": params["clip"]}, jnp.asarray(pixels), batch["tokens"]
    )
    images = np.asarray(images, np.float64).reshape(5, 2, 8).mean(1)
    return (
        images / np.linalg.norm(images, axis=1, keepdims=True),
        np.asarray(texts, np.float64),
        float(scale),
    )


def test_loss_and_retrieval_equal_a_computation_by_hand(contrastive):
    """Clips with equal captions are not negatives of each other."""
    objective, params, batch = contrastive
    images, texts, scale = embeddings(params, batch)
    candidates = [[j for j in range(5) if {i, j} != {1, 3}] for i in range(5)]
    expected = []
    for i in range(5):
        positive = scale * images[i] @ texts[i]
        by_image = np.log(sum(np.exp(scale * images[i] @ texts[j]) for j in candidates[i]))
        by_text = np.log(sum(np.exp(scale * images[j] @ texts[i]) for j in candidates[i]))
        expected.append((by_image + by_text) / 2 - positive)
    losses = objective.losses(params, batch, None, train=True)
    np.testing.assert_allclose(losses.total, expected, rtol=1e-4)
    retrieved = [max(candidates[i], key=lambda j: images[i] @ texts[j]) for i in range(5)]
    np.testing.assert_array_equal(
        losses.parts["retrieved"], [float(retrieved[i] == i) for i in range(5)]
    )


def test_the_logit_scale_is_limited(contrastive):
    objective, params, batch = contrastive

    def loss(log_scale):
        clip = params["clip"] | {"logit_scale": jnp.asarray(log_scale)}
        return float(objective.losses({"clip": clip}, batch, None, train=True).total.mean())

    limit = np.log(MAX_LOGIT_SCALE)
    assert loss(limit + 1.0) == pytest.approx(loss(limit), rel=1e-5)
    assert loss(limit - 1.0) != pytest.approx(loss(limit), rel=1e-2)


def test_pixels_are_normalised_with_the_folders_mean(contrastive):
    objective, params, batch = contrastive
    preprocessor = DEFAULT_PREPROCESSOR | {"image_mean": [0.2, 0.5, 0.5]}
    other = dataclasses.replace(
        objective, folder=dataclasses.replace(objective.folder, preprocessor=preprocessor)
    )
    assert not np.allclose(
        objective.losses(params, batch, None, True).total,
        other.losses(params, batch, None, True).total,
    )
