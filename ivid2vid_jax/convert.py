"""`python -m ivid2vid_jax.convert`: out to PyTorch, in from everyone's formats, and what a file is.

python -m ivid2vid_jax.convert export RUN OUT --dtype float16
python -m ivid2vid_jax.convert import insv2v.pth OUT --base timbrooks/instruct-pix2pix
python -m ivid2vid_jax.convert inspect v3_sd15_mm.ckpt
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ivid2vid_jax.utils.cli import main


@dataclasses.dataclass
class ExportArgs:
    """Writes a pipeline folder or a training run (its averaged weights) as a folder that PyTorch loads with one line."""

    source: tyro.conf.Positional[
        str
    ]  # a pipeline folder, a training run, an embedded model, or one of the hub, "owner/name"
    output: tyro.conf.Positional[Path]  # the new folder
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the weights that are written
    base_licence: str = ""  # of the base, for the model card
    data_licence: str = ""  # of the training data, for the model card

    def run(self) -> None:
        from ivid2vid_jax.conversion import exporter, model_card
        from ivid2vid_jax.weights import hub

        source = hub.resolve_model(self.source)
        held, written = exporter.export_folder(
            source,
            self.output,
            self.dtype,
            model_card.collect_facts(source, self.base_licence, self.data_licence),
        )
        print(
            f"wrote {self.output}: the U-Net as {held.class_name}, {sum(path.stat().st_size for path in written) / 1e9:.2f} GB; how to use it: README.md there"
        )


@dataclasses.dataclass
class ImportArgs:
    """Writes someone else's weights as a pipeline folder of ours, strictly, and says what went where and what was left."""

    source: tyro.conf.Positional[
        Path
    ]  # AnimateDiff, ModelScope, InsV2V, Tune-A-Video, an SD or InstructPix2Pix file, .bin folders, exported ones
    output: tyro.conf.Positional[Path]  # the new folder
    base: str | None = (
        None  # a pipeline folder, run or hub model that supplies what the source lacks
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = (
        None  # where the source or base says it wrongly or not at all
    )
    group_norm: Literal["frame", "clip"] | None = (
        None  # of the resnets' norms, in the place of what the layout is known for
    )
    motion_group_norm: Literal["frame", "clip"] | None = (
        None  # of the motion modules' norms, likewise
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = (
        None  # of the weights that are written (default: as they are stored)
    )

    def run(self) -> None:
        from ivid2vid_jax.conversion import foreign_formats, importer
        from ivid2vid_jax.weights import hub

        options = importer.ImportOptions(
            self.prediction_type, self.group_norm, self.motion_group_norm, self.dtype
        )
        base = hub.resolve_model(self.base) if self.base else None
        told = importer.import_checkpoint(
            foreign_formats.open_checkpoint(self.source), base, self.output, options
        )
        print("\n".join([*importer.lines(told), f"wrote {self.output}"]))


@dataclasses.dataclass
class InspectArgs:
    """Says what a file or folder is, what can be done with it, and what is missing. Reads headers only."""

    source: tyro.conf.Positional[Path]

    def run(self) -> None:
        from ivid2vid_jax.conversion import foreign_formats, inspector

        print(
            "\n".join(inspector.describe_checkpoint(foreign_formats.open_checkpoint(self.source)))
        )


COMMANDS = (
    Annotated[ExportArgs, tyro.conf.subcommand("export")]
    | Annotated[ImportArgs, tyro.conf.subcommand("import")]
    | Annotated[InspectArgs, tyro.conf.subcommand("inspect")]
)


def run(args) -> None:
    """Converts; UserError for bad input, with nothing written."""
    args.run()


if __name__ == "__main__":
    main(COMMANDS, run)
