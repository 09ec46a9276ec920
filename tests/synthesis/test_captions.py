"""Captions: random BLIPs, a small one and one of the real size, through the same code; files, and what is missing."""

import resource
import time

import numpy as np
import pytest

from ivid2vid_jax.synthesis import captions
from ivid2vid_jax.synthesis.captions import Blip, CaptionsConfig
from ivid2vid_jax.utils.errors import UserError
from tests.support import factory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factory.blip(tmp_path_factory.mktemp("blip"))


def test_frames_are_captioned_alike_whatever_the_batch(folder):
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8))
    found = [Blip(CaptionsConfig(model=str(folder), batch=batch))(frames) for batch in (2, 5)]
    assert found[0] == found[1] and len(found[0]) == 5
    assert all(
        isinstance(text, str) and text and not text.startswith("a video of") for text in found[0]
    ), found


def real_blip(path):
    """Saves a BLIP of transformers' own config, that of Salesforce/blip-image-captioning-base, with random weights; a vocabulary as long and laid out alike."""
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    config = BlipConfig()
    marks = {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1037: "a",
        2678: "video",
        1997: "of",
        config.text_config.bos_token_id: "[DEC]",
    }
    vocab = {marks.get(i, f"word{i}"): i for i in range(config.text_config.vocab_size)}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(path)
    BlipProcessor(
        BlipImageProcessor(
            size=dict.fromkeys(("height", "width"), config.vision_config.image_size)
        ),
        BertTokenizerFast(vocab=vocab),
    ).save_pretrained(path)
    return sum(each.numel() for each in model.parameters()), config


@pytest.mark.slow
def test_a_blip_of_the_real_size_captions(tmp_path):
    """2 GB, and about a minute of one CPU core: random weights never end a caption before its longest."""
    count, config = real_blip(tmp_path / "blip")
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (
        768,
        12,
        384,
        16,
    )
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (
        768,
        12,
        30524,
    ) and 2.2e8 < count < 2.6e8
    frames = list(np.random.default_rng(0).integers(0, 256, (2, 256, 320, 3), np.uint8))
    began = time.monotonic()
    blip = Blip(CaptionsConfig(model=str(tmp_path / "blip")))
    loaded = time.monotonic()
    found = blip(frames)
    seconds, most = (
        (loaded - began, time.monotonic() - loaded),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    print(
        f"{count / 1e6:.0f} M parameters: loaded in {seconds[0]:.1f} s, 2 frames in {seconds[1]:.1f} s, at most {most / 1e6:.1f} GB"
    )
    assert (
        len(found) == 2
        and found[0]
        and all(isinstance(each, str) and not each.startswith("a video of") for each in found)
    ), found


def test_a_missing_model_is_told_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UserError, match="hf download Salesforce/none"):
        Blip(CaptionsConfig(model="Salesforce/none"))
    with pytest.raises(UserError, match="put a whole BLIP folder there"):
        Blip(CaptionsConfig(model=str(tmp_path)))


def test_files_of_captions(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text(
        '{"id": "a.mp4", "caption": " a  red dog "}\n{"id": "b.mp4-1", "caption": "x"}\n'
    )
    known = captions.from_file(file)
    assert (
        captions.of_clip(known, "a.mp4-0", "a.mp4") == "a red dog"
        and captions.of_clip(known, "b.mp4-1", "b.mp4") == "x"
    )
    assert captions.of_clip(known, "c.mp4-0", "c.mp4") is None
    file.write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match='line 1: needs {"id"'):
        captions.from_file(file)
    with pytest.raises(UserError, match="no such file, nor is it blip"):
        captions.from_file(tmp_path / "none")


def test_the_prompt_is_not_part_of_the_caption():
    assert (
        captions.without("a video of  a dog", "a video of") == "a dog"
        and captions.without("a dog", "a video of") == "a dog"
    )
