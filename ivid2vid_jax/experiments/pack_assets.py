"""Puts finished runs of configs/embedded/ into this folder, as float16, and draws the sample clips: `python -m ivid2vid_jax.experiments.pack_assets`."""

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
from ivid2vid_jax.data.shapes.scene import Path as Way
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.errors import UserError
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
        (Object("circle", "red", "large", "plain", Way(MIDDLE, (0, 0.2), (0.5, 1.6), (1, 0.1))),),
        "grey",
        wave=0.0,
    ),
    "star": Scene(
        (Object("star", "purple", "large", "plain", Way(MIDDLE, (0, 1), (0.5, -1), (1, 1))),),
        "white",
        wave=0.0,
    ),
    "triangle-and-cross": Scene(
        (
            Object("triangle", "cyan", "large", "plain", Way(LEFT, (0, 1), (0.5, 0.5), (1, 0))),
            Object("cross", "yellow", "small", "plain", Way(RIGHT, (0, 0), (0.5, 0.5), (1, 1))),
        ),
        "brown",
        wave=0.0,
    ),
}


@dataclasses.dataclass
class PackArgs:
    """Packs finished runs into the package. What is left out stays as it is."""

    base: Path | None = None  # the run of stage C, becomes shapes-base
    edit: Path | None = None  # the run of stage F, becomes shapes-edit
    clip: Path | None = None  # the run of stage B, becomes shapes-clip
    vae: Path | None = (
        None  # a run whose autoencoder goes into both, in the place of theirs: the same encoder, with another decoder
    )
    text_scale: float | None = None  # guidance that shapes-edit proposes, for its sampling.json
    video_scale: float | None = None
    steps: int | None = None  # sampler steps
    shared_noise: float | None = None  # share of the noise that all frames have in common
    output: Path = dataclasses.field(default_factory=assets.folder)
    clips: bool = True  # draw the sample clips


def run(args: PackArgs) -> None:
    if not any((args.base, args.edit, args.clip, args.clips)):
        raise UserError("nothing to pack: name --base, --edit or --clip, or ask for --clips")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, path in (("shapes-base", args.base), ("shapes-edit", args.edit)):
        if path:
            folder = open_pipeline_folder(hub.resolve_model(path))
            wanted = (
                {
                    key: getattr(args, key)
                    for key in ("text_scale", "video_scale", "steps", "shared_noise")
                }
                if name == "shapes-edit"
                else {}
            )
            chosen = {key: value for key, value in wanted.items() if value is not None}
            folder = dataclasses.replace(folder, sampling=folder.sampling | chosen)
            params = load_params(folder)
            if args.vae:
                params["vae"] = decoder_of(args.vae, params["vae"])
            save_folder(args.output / name, folder, params, dtype=jnp.float16, replace=True)
            print(f"wrote {args.output / name}")
    if args.clip:
        folder = open_clip_folder(hub.resolve_model(args.clip))
        save_folder(
            args.output / "shapes-clip",
            folder,
            load_params(folder),
            dtype=jnp.float16,
            replace=True,
        )
        print(f"wrote {args.output / 'shapes-clip'}")
    if args.clips:
        shutil.rmtree(args.output / "clips", ignore_errors=True)
        (args.output / "clips").mkdir()
        for name, scene in CLIPS.items():
            spec = shapes.Spec(scene, Edit("identity", 0))
            frames = shapes.render(scene, spec.size, spec.frames)
            write_clip(
                args.output / "clips" / f"{name}.mp4",
                iter(frames),
                [Fraction(i, 8) for i in range(len(frames))],
                Fraction(8),
            )
        print(f"wrote {args.output / 'clips'}")


def decoder_of(run: Path, vae: dict) -> dict:
    """The autoencoder of a run; UserError where its encoder is not that of `vae`, for latents would then mean something else."""
    found = load_params(open_pipeline_folder(hub.resolve_model(run)))["vae"]
    for part in ("encoder", "quant_conv"):
        if not jax.tree.all(jax.tree.map(np.array_equal, found[part], vae[part])):
            raise UserError(
                f"--vae {run}: its {part} is not that of the nets that are packed, so they know other latents"
            )
    return found


if __name__ == "__main__":
    main(PackArgs, run)
