"""What a clip shows, in words: by BLIP (Li et al. 2022, arXiv 2201.12086) through transformers, or from a file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ivid2vid_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """Where captions come from."""

    source: str = "blip"  # blip; or a JSON-lines file of {"id", "caption"}, ids being those of clips or of the videos they were cut from
    model: str = "Salesforce/blip-image-captioning-large"  # of the hub, or a folder
    prompt: str = "a video of"  # what the caption goes on from; left out of what is kept
    beams: int = 3
    shortest: int = 5  # tokens
    longest: int = 30
    batch: int = 8  # frames captioned together


class Blip:
    """blip(frames) -> captions. Torch, on a GPU where there is one."""

    def __init__(self, config: CaptionsConfig):
        try:
            import torch
            from transformers import BlipForConditionalGeneration, BlipProcessor
        except ImportError as error:
            raise UserError(
                f'captions by BLIP need torch ({error}): pip install "ivid2vid_jax[synthesis]", or give --captions.source FILE'
            ) from error
        self.config, self.torch = config, torch
        try:
            self.processor = BlipProcessor.from_pretrained(config.model)
            model = BlipForConditionalGeneration.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            way = (
                f"hf download {config.model}"
                if not Path(config.model).exists()
                else "put a whole BLIP folder there"
            )
            raise UserError(
                f"--captions.model {config.model} cannot be loaded ({str(error).strip().splitlines()[0]}); {way}"
            ) from error
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def __call__(self, frames: Sequence[np.ndarray]) -> list[str]:
        """frames: [H, W, 3] uint8 each. The same frames always give the same captions: beams, no chance."""
        c, out = self.config, []
        for i in range(0, len(frames), c.batch):
            part = list(frames[i : i + c.batch])
            inputs = self.processor(
                images=part, text=[c.prompt] * len(part), return_tensors="pt"
            ).to(self.model.device)
            with self.torch.no_grad():
                made = self.model.generate(
                    **inputs,
                    num_beams=c.beams,
                    do_sample=False,
                    min_length=c.shortest,
                    max_length=c.longest,
                )
            out += [
                without(text, c.prompt)
                for text in self.processor.batch_decode(made, skip_special_tokens=True)
            ]
        return out


def without(caption: str, prompt: str) -> str:
    """The caption without the words that it was made to go on from."""
    caption = " ".join(caption.split())
    return caption[len(prompt) :].strip() if caption.lower().startswith(prompt.lower()) else caption


def from_file(path: Path) -> dict[str, str]:
    """Id -> caption. Raises UserError that names a line that is none."""
    if not path.is_file():
        raise UserError(f"--captions.source {path}: no such file, nor is it blip")
    out = {}
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                out[row["id"]] = " ".join(row["caption"].split())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f'{path}, line {number}: needs {{"id": ..., "caption": ...}} ({type(error).__name__}: {error})'
                ) from error
    return out


def of_clip(known: dict[str, str], clip: str, video: str) -> str | None:
    """The caption of a clip, by its own id or by its video's."""
    return known.get(clip) or known.get(video)
