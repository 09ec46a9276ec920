"""CLIP tokenizers."""

import os
from pathlib import Path
from typing import Any

from ivid2vid_jax.errors import UserError


def load_tokenizer(path: Path) -> Any:
    """Loads a folder as transformers' CLIPTokenizer; the padding token comes from its files."""
    # Without PyTorch, transformers warns on import that it cannot run its models; ours are Flax.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    if not (path / "vocab.json").is_file() and not (path / "tokenizer.json").is_file():
        raise UserError(f"{path}: holds neither vocab.json nor tokenizer.json")
    try:
        return CLIPTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is not a CLIP tokenizer ({error})") from error
