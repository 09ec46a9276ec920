"""CLIP's objective against a hand computation; the denoising one has tests of its own in test_training_step.py."""

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
def world():
    """(objective, params, batch of 5 clips of 2 frames; the second and fourth captions are the same)."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30, (5, 6)).astype(np.int32)
    tokens[:, -1] = 31
    tokens[3] = tokens[1]
    batch = {"clip": rng.integers(0, 256, (5, 2, 16, 16, 3), np.uint8), "tokens": tokens}
    params = {"clip": param_initializer("clip", CLIP)(jax.random.key(1))}
    return (
        Contrastive(ClipFolder(None, CLIP, DEFAULT_PREPROCESSOR, None), jnp.float32),
        params,
        batch,
    )


def embedded(params, batch):
    pixels = batch["clip"].reshape(10, 16, 16, 3) / np.float32(127.5) - 1
    images, texts, scale = CLIPModel(CLIP).apply(
        {"params": params["clip"]}, jnp.asarray(pixels), batch["tokens"]
    )
    images = np.asarray(images, np.float64).reshape(5, 2, 8).mean(1)
    return (
        images / np.linalg.norm(images, axis=1, keepdims=True),
        np.asarray(texts, np.float64),
        float(scale),
    )


def test_equals_a_hand_computation_in_which_equal_captions_do_not_compete(world):
    objective, params, batch = world
    images, texts, scale = embedded(params, batch)
    wanted = []
    for i in range(5):
        others = [j for j in range(5) if {i, j} != {1, 3}]
        by_image = (
            np.log(sum(np.exp(scale * images[i] @ texts[j]) for j in others))
            - scale * images[i] @ texts[i]
        )
        by_text = (
            np.log(sum(np.exp(scale * images[j] @ texts[i]) for j in others))
            - scale * images[i] @ texts[i]
        )
        wanted.append((by_image + by_text) / 2)
    found = objective.losses(params, batch, None, train=True)
    np.testing.assert_allclose(found.total, wanted, rtol=1e-4)
    nearest = [
        max((j for j in range(5) if {i, j} != {1, 3}), key=lambda j: images[i] @ texts[j])
        for i in range(5)
    ]
    np.testing.assert_array_equal(
        found.parts["retrieved"], [float(nearest[i] == i) for i in range(5)]
    )


def test_the_scale_is_held_below_its_limit(world):
    objective, params, batch = world

    def loss(log_scale):
        return objective.losses(
            {"clip": params["clip"] | {"logit_scale": jnp.asarray(log_scale)}},
            batch,
            None,
            train=True,
        ).total.mean()

    assert float(loss(np.log(MAX_LOGIT_SCALE) + 1.0)) == pytest.approx(
        float(loss(np.log(MAX_LOGIT_SCALE))), rel=1e-5
    )
    assert float(loss(np.log(MAX_LOGIT_SCALE) - 1.0)) != pytest.approx(
        float(loss(np.log(MAX_LOGIT_SCALE))), rel=1e-2
    )


def test_pixels_are_normalised_as_the_folder_says(world):
    objective, params, batch = world
    other = dataclasses.replace(
        objective,
        folder=dataclasses.replace(
            objective.folder, preprocessor=DEFAULT_PREPROCESSOR | {"image_mean": [0.2, 0.5, 0.5]}
        ),
    )
    assert not np.allclose(
        objective.losses(params, batch, None, True).total,
        other.losses(params, batch, None, True).total,
    )
