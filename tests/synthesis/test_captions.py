"""Captions: by random BLIPs, a small one and one of the real size, and from files."""

import resource
import time

import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis import captions
from ivid2vid_jax.synthesis.captions import Blip, CaptionsConfig
from tests.support import factory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factory.blip(tmp_path_factory.mktemp("blip"))


def test_captions_do_not_depend_on_the_batch_size(folder):
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8))
    by_two, by_five = (
        Blip(CaptionsConfig(model=str(folder), batch=batch))(frames) for batch in (2, 5)
    )
    assert by_two == by_five
    assert len(by_two) == 5
    assert all(isinstance(text, str) and text for text in by_two), by_two
    assert not any(text.startswith("a video of") for text in by_two), by_two


def save_full_size_blip(path):
    """Saves a random BLIP with the config of Salesforce/blip-image-captioning-base.

    The vocabulary has the real one's length and special tokens. Returns (parameters, config).
    """
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    config = BlipConfig()
    special = {
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
    vocab = {special.get(i, f"word{i}"): i for i in range(config.text_config.vocab_size)}
    size = dict.fromkeys(("height", "width"), config.vision_config.image_size)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(path)
    BlipProcessor(BlipImageProcessor(size=size), BertTokenizerFast(vocab=vocab)).save_pretrained(
        path
    )
    return sum(parameter.numel() for parameter in model.parameters()), config


@pytest.mark.slow
def test_a_blip_of_the_real_size_captions(tmp_path):
    """2 GB, about a minute on one core: with random weights all captions have maximum length."""
    count, config = save_full_size_blip(tmp_path / "blip")
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers) == (768, 12)
    assert (vision.image_size, vision.patch_size) == (384, 16)
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (768, 12, 30524)
    assert 2.2e8 < count < 2.6e8
    frames = list(np.random.default_rng(0).integers(0, 256, (2, 256, 320, 3), np.uint8))
    begin = time.monotonic()
    blip = Blip(CaptionsConfig(model=str(tmp_path / "blip")))
    load_seconds, begin = time.monotonic() - begin, time.monotonic()
    texts = blip(frames)
    seconds = time.monotonic() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{count / 1e6:.0f} M parameters: loaded in {load_seconds:.1f} s, 2 frames in "
        f"{seconds:.1f} s, at most {peak / 1e6:.1f} GB"
    )
    assert len(texts) == 2
    assert texts[0]
    assert all(isinstance(text, str) for text in texts)
    assert not any(text.startswith("a video of") for text in texts), texts


def test_a_missing_model_names_the_command_that_fetches_it(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(UserError, match="hf download Salesforce/none"):
        Blip(CaptionsConfig(model="Salesforce/none"))
    with pytest.raises(UserError, match="put a whole BLIP folder there"):
        Blip(CaptionsConfig(model=str(tmp_path)))


def test_caption_files(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text(
        '{"id": "a.mp4", "caption": " a  red dog "}\n{"id": "b.mp4-1", "caption": "x"}\n'
    )
    known = captions.from_file(file)
    assert captions.of_clip(known, "a.mp4-0", "a.mp4") == "a red dog"
    assert captions.of_clip(known, "b.mp4-1", "b.mp4") == "x"
    assert captions.of_clip(known, "c.mp4-0", "c.mp4") is None
    file.write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match=r'line 1: needs \{"id"'):
        captions.from_file(file)
    with pytest.raises(UserError, match="no such file, nor is it blip"):
        captions.from_file(tmp_path / "none")


def test_the_prompt_is_removed_from_the_caption():
    assert captions.remove_prompt("a video of  a dog", "a video of") == "a dog"
    assert captions.remove_prompt("a dog", "a video of") == "a dog"
