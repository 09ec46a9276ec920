"""Old names of the arguments of `pipeline.py`, which work for one more release."""

import functools
import warnings

import torch

# Old name of an argument -> its name in diffusers.
RENAMED = {
    "instruction": "prompt",
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "text_scale": "guidance_scale",
    "video_scale": "image_guidance_scale",
    "noise": "latents",
    "seed": "generator",
}


def accept_old_names(call):
    """Lets a call take the names in RENAMED, with a FutureWarning."""

    @functools.wraps(call)
    def wrapper(self, *args, **kwargs):
        for old in sorted(RENAMED.keys() & kwargs.keys()):
            new, value = RENAMED[old], kwargs.pop(old)
            if new in kwargs:
                raise TypeError(f"{old} is the old name of {new}; both were given")
            if old == "seed":
                value = torch.Generator().manual_seed(value)
                hint = "generator=torch.Generator().manual_seed(...)"
            else:
                hint = f"{new}=..."
            warnings.warn(
                f"{old} is going away with the next release; pass {hint}", FutureWarning, 3
            )
            kwargs[new] = value
        return call(self, *args, **kwargs)

    return wrapper
