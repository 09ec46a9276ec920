"""`python -m ivid2vid_jax.convert`: export to PyTorch, import of published weights, inspection.

python -m ivid2vid_jax.convert export RUN OUT --dtype float16 --push owner/name
python -m ivid2vid_jax.convert import insv2v.pth OUT --base timbrooks/instruct-pix2pix
python -m ivid2vid_jax.convert inspect v3_sd15_mm.ckpt    # or a model folder, or a RUN
python -m ivid2vid_jax.convert pipeline RUN               # of a run that was stopped early
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ivid2vid_jax.utils import cli


@dataclasses.dataclass
class ExportArgs:
    """Writes a model as a folder that PyTorch loads with one line; of a training run, the EMA."""

    # pipeline folder, training run, embedded model, or Hugging Face model "owner/name"
    source: tyro.conf.Positional[str]
    output: tyro.conf.Positional[Path]  # new folder
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # dtype of the written weights
    base_licence: str = ""  # licence of the base model, for the model card
    data_licence: str = ""  # licence of the training data, for the model card
    push: str | None = None  # Hugging Face model "owner/name" to upload the folder to
    private: bool = False  # a repository that --push creates is private

    def run(self) -> None:
        """Exports the model, and uploads it if asked to."""
        from ivid2vid_jax.conversion import exporter, model_card
        from ivid2vid_jax.weights import hub

        source = hub.resolve_model(self.source)
        facts = model_card.collect_facts(source, self.base_licence, self.data_licence, self.push)
        if self.push:
            model_card.check_publishable(facts)
            hub.create_repo(self.push, self.private)
        layout, files = exporter.export_folder(source, self.output, self.dtype, facts)
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        print(
            f"wrote {self.output}: the U-Net as {layout.class_name}, {gigabytes:.2f} GB; "
            "its README.md shows how to use it"
        )
        if self.push:
            print(f"uploaded it to {self.push}: {hub.upload_folder(self.output, self.push)}")


@dataclasses.dataclass
class ImportArgs:
    """Writes published weights as a pipeline folder and prints where each weight went.

    A missing or misshapen weight is an error; unused weights are listed.
    """

    # AnimateDiff, ModelScope, InsV2V, Tune-A-Video, Stable Diffusion or InstructPix2Pix file, a
    # folder of .bin files, or an exported folder
    source: tyro.conf.Positional[Path]
    output: tyro.conf.Positional[Path]  # new folder
    # pipeline folder, run or Hugging Face model that supplies what the source lacks
    base: str | None = None
    # replaces the prediction type of source or base
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    # replaces the group norm statistics of the resnets: per frame or over the clip
    group_norm: Literal["frame", "clip"] | None = None
    # replaces the group norm statistics of the motion modules: per frame or over the clip
    motion_group_norm: Literal["frame", "clip"] | None = None
    # dtype of the written weights; None = as stored
    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    def run(self) -> None:
        """Imports the weights."""
        from ivid2vid_jax.conversion import foreign_formats, importer
        from ivid2vid_jax.weights import hub

        options = importer.ImportOptions(
            self.prediction_type, self.group_norm, self.motion_group_norm, self.dtype
        )
        base = hub.resolve_model(self.base) if self.base else None
        checkpoint = foreign_formats.open_checkpoint(self.source)
        report = importer.import_checkpoint(checkpoint, base, self.output, options)
        print("\n".join([*importer.format_report(report), f"wrote {self.output}"]))


@dataclasses.dataclass
class InspectArgs:
    """Says what a file or folder is, what can be done with it, and what is missing.

    Reads headers only.
    """

    # checkpoint file, model folder, training run or embedded model
    source: tyro.conf.Positional[str]

    def run(self) -> None:
        """Prints the description."""
        from ivid2vid_jax.conversion import inspector

        print("\n".join(inspector.describe(self.source)))


@dataclasses.dataclass
class PipelineArgs:
    """Writes RUN/pipeline from the newest checkpoint of a run that was stopped early.

    A run that reaches its last step has written it already.
    """

    run_folder: tyro.conf.Positional[str]  # training run, local or in a bucket

    def run(self) -> None:
        """Writes the pipeline folder."""
        from ivid2vid_jax.training.export_run import export_run

        folder, step = export_run(self.run_folder)
        print(f"wrote {folder}, of step {step}; use it as --model {self.run_folder}")


COMMANDS = (
    Annotated[ExportArgs, tyro.conf.subcommand("export")]
    | Annotated[ImportArgs, tyro.conf.subcommand("import")]
    | Annotated[InspectArgs, tyro.conf.subcommand("inspect")]
    | Annotated[PipelineArgs, tyro.conf.subcommand("pipeline")]
)


def run(args: ExportArgs | ImportArgs | InspectArgs | PipelineArgs) -> None:
    """Runs the subcommand; UserError for invalid input, with nothing written."""
    args.run()


def main() -> None:
    """Runs the command line."""
    cli.main(COMMANDS, run)


if __name__ == "__main__":
    main()
