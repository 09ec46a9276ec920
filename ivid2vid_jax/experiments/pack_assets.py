"""`python -m ivid2vid_jax.experiments.pack_assets`: makes the files of ivid2vid_jax/assets.

It packs finished runs of configs/embedded/ as float16 and renders the sample clips.
"""

import dataclasses
import shutil
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax import assets
from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import Edit, Object, Scene
from ivid2vid_jax.data.shapes.scene import MotionPath as MotionPath
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.video.write import write_clip
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import (
    load_params,
    open_clip_folder,
    open_pipeline_folder,
    save_folder,
)

LEFT, RIGHT, MIDDLE = (0.25, 0.3, 0.3, 0.75), (0.68, 0.25, 0.75, 0.7), (0.25, 0.3, 0.75, 0.7)
CLIPS = {
    "circle": Scene(
        (
            Object(
                "circle",
                "red",
                "large",
                "plain",
                MotionPath(MIDDLE, (0, 0.2), (0.5, 1.6), (1, 0.1)),
            ),
        ),
        "grey",
        wave=0.0,
    ),
    "star": Scene(
        (
            Object(
                "star", "purple", "large", "plain", MotionPath(MIDDLE, (0, 1), (0.5, -1), (1, 1))
            ),
        ),
        "white",
        wave=0.0,
    ),
    "triangle-and-cross": Scene(
        (
            Object(
                "triangle", "cyan", "large", "plain", MotionPath(LEFT, (0, 1), (0.5, 0.5), (1, 0))
            ),
            Object(
                "cross", "yellow", "small", "plain", MotionPath(RIGHT, (0, 0), (0.5, 0.5), (1, 1))
            ),
        ),
        "brown",
        wave=0.0,
    ),
}


@dataclasses.dataclass
class PackArgs:
    """Packs finished runs into the package. What is not given stays as it is."""

    base: Path | None = None  # the run that becomes shapes-base (configs/embedded/text_to_image)
    edit: Path | None = None  # the run that becomes shapes-edit (configs/embedded/edit_*)
    clip: Path | None = None  # the run that becomes shapes-clip (configs/embedded/clip)
    # a run whose autoencoder replaces that of base and edit: the same encoder, another decoder
    vae: Path | None = None
    text_scale: float | None = None  # default guidance of shapes-edit, for its sampling.json
    video_scale: float | None = None  # likewise
    steps: int | None = None  # default sampler steps, likewise
    shared_noise: float | None = None  # default fraction of noise shared by all frames, likewise
    # folder of the assets
    output: Path = dataclasses.field(default_factory=assets.folder)
    clips: bool = True  # render the sample clips


SAMPLING = ("text_scale", "video_scale", "steps", "shared_noise")


def run(args: PackArgs) -> None:
    """Packs what is given."""
    if not any((args.base, args.edit, args.clip, args.clips)):
        raise UserError("nothing to pack: name --base, --edit or --clip, or set --clips")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.base:
        pack_pipeline(args, "shapes-base", args.base, {})
    if args.edit:
        pack_pipeline(args, "shapes-edit", args.edit, {key: getattr(args, key) for key in SAMPLING})
    if args.clip:
        folder = open_clip_folder(hub.resolve_model(args.clip))
        target = args.output / "shapes-clip"
        save_folder(target, folder, load_params(folder), dtype=jnp.float16, replace=True)
        print(f"wrote {target}")
    if args.clips:
        render_clips(args.output / "clips")
        print(f"wrote {args.output / 'clips'}")


def pack_pipeline(args: PackArgs, name: str, run: Path, sampling: dict) -> None:
    """Packs a run's pipeline; sampling: new defaults for its sampling.json, None: unchanged."""
    folder = open_pipeline_folder(hub.resolve_model(run))
    changes = {key: value for key, value in sampling.items() if value is not None}
    folder = dataclasses.replace(folder, sampling=folder.sampling | changes)
    params = load_params(folder)
    if args.vae:
        params["vae"] = load_decoder(args.vae, params["vae"])
    save_folder(args.output / name, folder, params, dtype=jnp.float16, replace=True)
    print(f"wrote {args.output / name}")


def render_clips(folder: Path) -> None:
    """Renders the sample clips, 8 frames per second."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, scene in CLIPS.items():
        spec = shapes.Spec(scene, Edit("identity", 0))
        frames = shapes.render(scene, spec.size, spec.frames)
        times = [Fraction(i, 8) for i in range(len(frames))]
        write_clip(folder / f"{name}.mp4", iter(frames), times, Fraction(8))


def load_decoder(run: Path, vae: dict) -> dict:
    """The autoencoder of a run, whose encoder must equal that of `vae`.

    Raises UserError otherwise: the packed nets' latents would mean something else.
    """
    other = load_params(open_pipeline_folder(hub.resolve_model(run)))["vae"]
    for part in ("encoder", "quant_conv"):
        if not jax.tree.all(jax.tree.map(np.array_equal, other[part], vae[part])):
            raise UserError(
                f"--vae {run}: its {part} is not that of the packed nets, which were trained on "
                "other latents; name a run that trained the decoder only"
            )
    return other


if __name__ == "__main__":
    main(PackArgs, run)
