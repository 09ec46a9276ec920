"""Learns a small byte-level BPE vocabulary from texts, for text encoders trained from scratch."""

import json
from collections.abc import Iterable
from pathlib import Path

from ivid2vid_jax.errors import UserError

# The regular expression by which CLIP splits a text into words (Radford et al. 2021, released code)
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
START, END = "<|startoftext|>", "<|endoftext|>"
BYTES = 512  # tokens for every byte, inside a word and at its end, so that no text is unknown


def train_tokenizer(texts: Iterable[str], size: int, folder: Path) -> None:
    """Writes a tokenizer of at most `size` tokens in the files of transformers' CLIPTokenizer.

    The files are vocab.json, merges.txt and tokenizer_config.json. Deterministic.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    if size < BYTES + 2:
        raise UserError(
            f"--net.text-encoder.vocab-size {size} must be at least {BYTES + 2}: two tokens for "
            "each byte, and the start and end tokens"
        )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)

    merges = json.loads(tokenizer.to_str())["model"]["merges"][: size - BYTES - 2]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n"
    )
    config = dict(
        tokenizer_class="CLIPTokenizer",
        unk_token=END,
        pad_token=END,
        bos_token=START,
        eos_token=END,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    # vocab.json is written last: its presence marks a complete folder.
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False) + "\n"
    )
