"""The Gradio page of the app: its components and their events.

Each visitor has a history of edits, a list of EditResult, which is deleted an hour after its last
use.
"""

import dataclasses
from pathlib import Path
from typing import Any

import gradio as gr

from ivid2vid_jax import assets
from ivid2vid_jax.app.jobs import (
    EditRequest,
    EditResult,
    remove_results,
    run_edit,
    to_playable,
)
from ivid2vid_jax.app.limits import MAX_INSTRUCTION_LENGTH, AppLimits
from ivid2vid_jax.diffusion.samplers import SAMPLERS
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline

SECONDS_KEPT = 3600  # lifetime of unused uploads, results and histories
VIDEO_HEIGHT = 300  # pixels


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The components of the left column."""

    clip: gr.Video
    other: gr.UploadButton
    sample: gr.Dropdown
    instruction: gr.Textbox
    text_scale: gr.Slider
    video_scale: gr.Slider
    steps: gr.Slider
    seed: gr.Number
    negative: gr.Textbox
    sampler: gr.Dropdown
    size: gr.Number
    edit_button: gr.Button
    cancel_button: gr.Button

    @property
    def request(self) -> list[gr.components.Component]:
        """The inputs of an edit, in the order of EditRequest."""
        return [
            self.clip,
            self.instruction,
            self.text_scale,
            self.video_scale,
            self.steps,
            self.seed,
            self.negative,
            self.sampler,
            self.size,
        ]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The components of the right column."""

    past: gr.Dropdown
    edited: gr.Video
    pair: gr.Video
    files: gr.Files
    repeat_button: gr.Button


class Handlers:
    """What happens on the page's events. Each returns new values for the outputs."""

    def __init__(self, pipe: Pipeline, limits: AppLimits, folder: Path):
        self.pipe, self.limits, self.folder = pipe, limits, folder
        self.cancelled: set[str | None] = set()  # sessions whose running edit is to end

    def edit(
        self,
        clip: str | None,
        instruction: str | None,
        text_scale: float,
        video_scale: float,
        steps: float,
        seed: float,
        negative: str | None,
        sampler: str | None,
        size: float | None,
        history: list[EditResult],
        visitor: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio fills it in
    ) -> tuple:
        """Runs a new edit and appends it to the history."""
        try:
            request = EditRequest(
                clip or "",
                instruction or "",
                float(text_scale),
                float(video_scale),
                int(steps),
                int(seed),
                negative or "",
                sampler or None,
                int(size) if size else None,
            )
        except (TypeError, ValueError) as error:
            raise gr.Error(
                "scales, steps, seed and size must be numbers", print_exception=False
            ) from error
        return self.run(request, history, visitor, progress)

    def cancel(self, visitor: gr.Request) -> None:
        """Ends the visitor's running edit at its next sampler step."""
        self.cancelled.add(visitor.session_hash)

    def upload(self, path: str) -> str:
        """Turns an upload that is no video by its name, such as a gif, into one."""
        try:
            return str(to_playable(path, self.limits, self.folder))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def repeat(
        self,
        index: int | None,
        history: list[EditResult],
        visitor: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio fills it in
    ) -> tuple:
        """Runs an edit of the history again."""
        if not isinstance(index, int) or not 0 <= index < len(history):
            raise gr.Error("there is nothing to repeat yet", print_exception=False)
        return self.run(history[index].request, history, visitor, progress)

    def run(
        self,
        request: EditRequest,
        history: list[EditResult],
        visitor: gr.Request,
        progress: gr.Progress,
    ) -> tuple:
        """Runs an edit, appends it to the history and shows it."""
        session = visitor.session_hash
        self.cancelled.discard(session)

        def show_progress(stage: str, done: int, total: int | None) -> None:
            if session in self.cancelled and stage != "writing":  # a finished edit is written
                raise UserError("cancelled")
            progress((done, total), desc=stage)

        try:
            result = run_edit(self.pipe, request, self.limits, self.folder, show_progress)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if result.note:
            gr.Warning(result.note)
        return self.show(len(history), [*history, result])

    def show(self, index: int, history: list[EditResult]) -> tuple:
        """Shows an edit of the history."""
        result = history[index]
        requests = [result.request for result in history]
        names = [
            (f"{i + 1}: {request.instruction} (seed {request.seed})", i)
            for i, request in enumerate(requests)
        ]
        pair = str(result.pair) if result.pair.is_file() else None
        files = [str(result.edited), *([pair] if pair else []), str(result.record)]
        past = gr.Dropdown(names, value=index)
        return history, past, str(result.edited), pair, files


def build_page(pipe: Pipeline, limits: AppLimits, folder: Path) -> gr.Blocks:
    """Builds the page.

    Args:
        pipe: the editor.
        limits: of the clips and settings that are accepted.
        folder: for the results.
    """
    handlers = Handlers(pipe, limits, folder)
    defaults = EditSettings().resolve(pipe.folder)
    samples = {name: str(path) for name, path in assets.clips().items()}
    with gr.Blocks(
        title="ivid2vid_jax", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)
    ) as blocks:
        history = gr.State([], time_to_live=SECONDS_KEPT, delete_callback=remove_results)
        gr.Markdown(
            "## Edit a clip by an instruction\n"
            f"{about_model(pipe)} Clips of up to {limits.seconds:g} s, {limits.side} pixels a "
            f"side, {limits.megabytes} MB."
        )
        with gr.Row():
            with gr.Column():
                inputs = build_inputs(defaults, limits, samples)
            with gr.Column():
                outputs = build_outputs()
        connect(handlers, inputs, outputs, history, samples)
    return blocks


def about_model(pipe: Pipeline) -> str:
    """The model's name, and what it can edit if that is known."""
    name = f"Model: **{pipe.folder.path.name}**."
    if assets.is_embedded(pipe.folder.path):
        return f"{name} It knows only moving shapes; start the app with --model for real clips."
    return name


def build_inputs(defaults: Any, limits: AppLimits, samples: dict[str, str]) -> Inputs:
    """The clip, the instruction and the settings. defaults: resolved EditSettings."""
    return Inputs(
        clip=gr.Video(label="Clip", sources=["upload"], height=VIDEO_HEIGHT),
        other=gr.UploadButton("Upload a gif, webp or another file", size="sm"),
        sample=gr.Dropdown(list(samples), label="or a sample", value=None),
        instruction=gr.Textbox(
            label="Instruction",
            placeholder="make the circle blue",
            max_length=MAX_INSTRUCTION_LENGTH,
        ),
        text_scale=slider(
            1,
            15,
            defaults.text_scale,
            step=0.1,
            label="Text scale: how strongly the instruction acts",
        ),
        video_scale=slider(
            1,
            5,
            defaults.video_scale,
            step=0.1,
            label="Video scale: how much of the source is kept",
        ),
        steps=slider(1, limits.steps, min(defaults.steps, limits.steps), step=1, label="Steps"),
        seed=gr.Number(0, precision=0, label="Seed"),
        negative=gr.Textbox(
            label="Negative prompt: what to avoid", max_length=MAX_INSTRUCTION_LENGTH
        ),
        sampler=gr.Dropdown(list(SAMPLERS), value=defaults.sampler, label="Sampler"),
        size=gr.Number(
            defaults.size,
            precision=0,
            label="Size: pixels of the longer side inside the model",
        ),
        edit_button=gr.Button("Edit", variant="primary"),
        cancel_button=gr.Button("Cancel", size="sm"),
    )


def slider(low: float, high: float, value: float, step: float, label: str) -> gr.Slider:
    """A slider that leaves a typed value to `check_request`, whose errors name the setting.

    Gradio's own check does not name it. Not a subclass: Gradio would write a stub file of it.
    """
    component = gr.Slider(low, high, value, step=step, label=label)
    component.preprocess = lambda payload: payload
    return component


def build_outputs() -> Outputs:
    """The edited clip, its comparison with the source, the files and the history."""
    video = dict(height=VIDEO_HEIGHT, autoplay=True, loop=True, interactive=False)
    edited = gr.Video(label="Edited", **video)
    pair = gr.Video(label="Source and edit", **video)
    files = gr.Files(label="Download: the edit, side by side, all settings", interactive=False)
    past = gr.Dropdown([], label="History", type="value")
    return Outputs(past, edited, pair, files, gr.Button("Repeat exactly"))


def connect(
    handlers: Handlers, inputs: Inputs, outputs: Outputs, history: gr.State, samples: dict[str, str]
) -> None:
    """Connects the components' events with the handlers. Edits run one at a time."""
    shown = [history, outputs.past, outputs.edited, outputs.pair, outputs.files]
    inputs.other.upload(handlers.upload, inputs.other, inputs.clip, api_name="upload")
    inputs.sample.input(lambda name: samples[name], inputs.sample, inputs.clip, api_name="sample")
    inputs.edit_button.click(
        handlers.edit,
        [*inputs.request, history],
        shown,
        api_name="edit",
        concurrency_id="sampling",
        show_progress_on=outputs.edited,  # progress and errors in one place
    )
    inputs.cancel_button.click(
        handlers.cancel, None, None, api_name="cancel", queue=False, show_progress="hidden"
    )
    outputs.repeat_button.click(
        handlers.repeat,
        [outputs.past, history],
        shown,
        api_name="repeat",
        concurrency_id="sampling",
        show_progress_on=outputs.edited,
    )
    outputs.past.input(handlers.show, [outputs.past, history], shown, api_name="show")
