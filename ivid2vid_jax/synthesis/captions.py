"""Captions of clips: by BLIP (Li et al. 2022, arXiv 2201.12086) through transformers, or a file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.versions import install_command


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """Where captions come from, and BLIP's settings."""

    # "blip", or a JSON-lines file of {"id", "caption"} with the ids of clips or of their videos
    source: str = "blip"
    model: str = "Salesforce/blip-image-captioning-large"  # hub name or folder
    prompt: str = "a video of"  # start of every caption; removed from the result
    beams: int = 3  # width of the beam search
    shortest: int = 5  # minimum number of tokens
    longest: int = 30  # maximum number of tokens
    batch: int = 8  # frames per batch


class Blip:
    """BLIP in PyTorch, on a GPU if there is one."""

    def __init__(self, config: CaptionsConfig):
        """Raises UserError if torch is missing or the model cannot be loaded."""
        try:
            import torch
            from transformers import BlipForConditionalGeneration, BlipProcessor
        except ImportError as error:
            raise UserError(
                f"captions by BLIP need torch ({error}): {install_command('synthesis')}, "
                "or give --captions.source FILE"
            ) from error
        self.config, self.torch = config, torch
        try:
            self.processor = BlipProcessor.from_pretrained(config.model)
            model = BlipForConditionalGeneration.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            remedy = (
                "put a whole BLIP folder there"
                if Path(config.model).exists()
                else f"hf download {config.model}"
            )
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--captions.model {config.model} cannot be loaded ({reason}); {remedy}"
            ) from error
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def __call__(self, frames: Sequence[np.ndarray]) -> list[str]:
        """Captions of frames [H, W, 3] uint8; deterministic (beam search without sampling)."""
        config, captions = self.config, []
        for i in range(0, len(frames), config.batch):
            images = list(frames[i : i + config.batch])
            inputs = self.processor(
                images=images, text=[config.prompt] * len(images), return_tensors="pt"
            ).to(self.model.device)
            with self.torch.no_grad():
                tokens = self.model.generate(
                    **inputs,
                    num_beams=config.beams,
                    do_sample=False,
                    min_length=config.shortest,
                    max_length=config.longest,
                )
            texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            captions += [remove_prompt(text, config.prompt) for text in texts]
        return captions


def remove_prompt(caption: str, prompt: str) -> str:
    """The caption without the prompt it begins with."""
    caption = " ".join(caption.split())
    return caption[len(prompt) :].strip() if caption.lower().startswith(prompt.lower()) else caption


def from_file(path: Path) -> dict[str, str]:
    """Id -> caption. Raises UserError for a missing file or a malformed line."""
    if not path.is_file():
        raise UserError(f"--captions.source {path}: no such file, nor is it blip")
    captions = {}
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                captions[row["id"]] = " ".join(row["caption"].split())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f'{path}, line {number}: needs {{"id": ..., "caption": ...}} '
                    f"({type(error).__name__}: {error})"
                ) from error
    return captions


def of_clip(captions: dict[str, str], clip: str, video: str) -> str | None:
    """The caption under a clip's own id, or else under its video's."""
    return captions.get(clip) or captions.get(video)
