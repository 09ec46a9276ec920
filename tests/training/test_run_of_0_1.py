"""A run recorded by release 0.1 resumes with today's code; see tests/fixtures/record_run_0_1.py."""

import json
import tarfile
from pathlib import Path

import pytest

from ivid2vid_jax.models import AutoencoderConfig, CLIPTextConfig, UNetConfig
from ivid2vid_jax.training.config import NetConfig
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import read_metrics
from tests.support.tiny_run import tiny
from tests.support.train_runs import complete_steps

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "run_0_1.tar.gz"
# Relative tolerances. Metrics are bitwise equal on the machine that recorded the run; other CPUs
# round differently.
TOLERANCES = {
    "loss": 1e-5,
    "noise_loss": 1e-5,
    "frame_loss": 1e-5,
    "grad_norm": 1e-4,
    "update_norm": 1e-4,
    "param_norm": 1e-5,
}

NET = NetConfig(
    reinit_temporal=True,
    unet=UNetConfig(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
        sample_size=8,
        num_frames=2,
    ),
    vae=AutoencoderConfig(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
        sample_size=16,
    ),
    text_encoder=CLIPTextConfig(
        vocab_size=640,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
    ),
)


def test_a_run_of_0_1_resumes_with_the_same_losses(tmp_path):
    """Steps 3 and 4 from the checkpoint of step 2; its config.json has the old field names."""
    run = tmp_path / "run"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(run, filter="data")
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["loss"]["clean"] is True
    assert recorded["net"]["fresh_temporal"] is True and recorded["log"]["judge"] == 2
    expected = read_metrics(run, "train")
    assert [record["step"] for record in expected] == [1, 2, 3, 4] and complete_steps(run) == [2]

    config = tiny(
        run,
        steps=4,
        net=NET,
        loss__x0_weighting=True,
        optim__trainable=(r"^unet/up_blocks\.0/temp_attentions\.0/", "^unet/conv_out/"),
        log__benchmark=2,
    )
    train(config)

    resumed = read_metrics(run, "train")
    assert [record["step"] for record in resumed] == [1, 2, 3, 4] and complete_steps(run) == [2, 4]
    for before, after in zip(expected, resumed, strict=True):
        for name, rel in TOLERANCES.items():
            assert after[name] == pytest.approx(before[name], rel=rel), (after["step"], name)
    now = json.loads((run / "config.json").read_text())
    assert now["loss"]["x0_weighting"] is True and "clean" not in now["loss"]
