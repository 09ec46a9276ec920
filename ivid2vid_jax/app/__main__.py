"""`python -m ivid2vid_jax.app`: edit clips in the browser, on this machine.

python -m ivid2vid_jax.app                                    # the embedded pipeline, http://127.0.0.1:7860
python -m ivid2vid_jax.app --model timbrooks/instruct-pix2pix
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from ivid2vid_jax.app.jobs import AppLimits, EditRequest, EditResult, remove_results, run_edit
from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.errors import UserError

HOUR = 3600  # s after which an uploaded or made file, and a history that nobody has used since, are removed
HEIGHT = 300  # pixels of a video on the page


@dataclasses.dataclass
class AppArgs:
    """Serves a page on which clips are edited: for this machine alone, unless --host or --share say otherwise."""

    model: str | None = (
        None  # a pipeline folder, a training run, or a model of the Hugging Face hub, "owner/name" (default: the embedded shapes-edit)
    )
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 lets the whole network in, and nobody is asked for a password
    port: int = 7860  # 0 = any free one
    share: bool = False  # also give the page a public address, through Gradio's servers
    limits: AppLimits = dataclasses.field(default_factory=AppLimits)
    dtype: str = (
        "auto"  # arithmetic: float32, bfloat16, or auto (float32 on CPU, bfloat16 on TPU and GPU)
    )
    variant: str | None = None  # "fp16" picks a model's fp16 files
    devices: int | None = None  # how many share the work (default: all)


def run(args: AppArgs) -> None:
    """Serves until it is interrupted; then its folder is removed."""
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port} must be between 0 and 65535")
    args.limits.check()
    with private_folder() as home:
        gradio()
        from ivid2vid_jax.inference import pipeline

        pipe = pipeline.load(args.model, args.dtype, args.variant, devices=args.devices)
        pipe.check_editor()
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        with serving(pipe, args, home) as address:
            print(f"edit clips at {address}; Ctrl-C ends it", flush=True)
            stop.wait()


def gradio():
    """The module; it asks nobody outside for anything. Only within `private_folder`, for it reads its folder's name when it is imported."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"the app needs gradio ({error}): pip install 'ivid2vid_jax[app]'"
        ) from error
    return gradio


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user reads, for uploads and results; gone in the end."""
    folder = Path(tempfile.mkdtemp(prefix="ivid2vid-app-"))
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def serving(pipe, args: AppArgs, home: Path) -> Iterator[str]:
    """Serves the page; gives its address."""
    blocks = page(pipe, args.limits, home)
    blocks.queue(max_size=args.limits.waiting, default_concurrency_limit=1)
    options = dict(
        server_name=args.host,
        server_port=args.port or free_port(args.host),
        share=args.share,
        max_file_size=f"{args.limits.megabytes}mb",
    )
    try:
        _, address, _ = blocks.launch(
            **options, prevent_thread_lock=True, quiet=True, show_error=True, ssr_mode=False
        )
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port}: cannot be listened on ({error}); name another --port, or 0 for any"
        ) from error
    try:
        yield address
    finally:
        blocks.close(verbose=False)


def free_port(host: str) -> int:
    import socket

    with socket.create_server((host, 0)) as found:
        return found.getsockname()[1]


def page(pipe, limits: AppLimits, home: Path):
    """The page, as gradio Blocks. Each visitor has a history of their own, which is forgotten an hour after its last use."""
    gr = gradio()
    from ivid2vid_jax import assets
    from ivid2vid_jax.inference import pipeline

    defaults = pipeline.EditSettings().resolve(pipe.folder)
    samples = {name: str(path) for name, path in assets.clips().items()}

    def show(history: list[EditResult], chosen: int):
        """What the page shows of a history and one of its results."""
        result = history[chosen]
        names = [
            (f"{i + 1}: {each.request.instruction} (seed {each.request.seed})", i)
            for i, each in enumerate(history)
        ]
        files = [str(result.edited), str(result.pair), str(result.record)]
        return (
            history,
            gr.Dropdown(names, value=chosen),
            str(result.edited),
            str(result.pair),
            files,
        )

    def perform(request: EditRequest, history: list[EditResult], progress):
        def told(what: str, done: int, total: int | None) -> None:
            progress((done, total), desc=what)

        try:
            history = [*history, run_edit(pipe, request, limits, home, told)]
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return show(history, len(history) - 1)

    def new(
        clip, instruction, text_scale, video_scale, steps, seed, history, progress=gr.Progress()
    ):
        try:
            request = EditRequest(
                clip,
                instruction or "",
                float(text_scale),
                float(video_scale),
                int(steps),
                int(seed),
            )
        except (TypeError, ValueError) as error:
            raise gr.Error(
                "scales, steps and seed must be numbers", print_exception=False
            ) from error
        return perform(request, history, progress)

    def again(chosen, history, progress=gr.Progress()):  # noqa: B008
        if not isinstance(chosen, int) or not 0 <= chosen < len(history):
            raise gr.Error("there is nothing to repeat yet", print_exception=False)
        return perform(history[chosen].request, history, progress)

    with gr.Blocks(
        title="ivid2vid_jax", analytics_enabled=False, delete_cache=(HOUR, HOUR)
    ) as blocks:
        history = gr.State([], time_to_live=HOUR, delete_callback=remove_results)
        gr.Markdown(
            f"## Edit a clip by a sentence\nUp to {limits.seconds:g} s, {limits.side} pixels a side, {limits.megabytes} MB."
        )
        with gr.Row():
            with gr.Column():
                clip = gr.Video(label="Clip", sources=["upload"], height=HEIGHT)
                sample = gr.Dropdown(list(samples), label="or a sample", value=None)
                instruction = gr.Textbox(
                    label="Instruction", placeholder="make the circle blue", max_length=500
                )
                text_scale = gr.Slider(
                    1,
                    15,
                    defaults.text_scale,
                    step=0.1,
                    label="Text scale: how strongly the instruction acts",
                )
                video_scale = gr.Slider(
                    1,
                    5,
                    defaults.video_scale,
                    step=0.1,
                    label="Video scale: how much of the source is kept",
                )
                steps = gr.Slider(
                    1, limits.steps, min(defaults.steps, limits.steps), step=1, label="Steps"
                )
                seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
                edit_button = gr.Button("Edit", variant="primary")
            with gr.Column():
                edited = gr.Video(
                    label="Edited", height=HEIGHT, autoplay=True, loop=True, interactive=False
                )
                pair = gr.Video(
                    label="Source and edit",
                    height=HEIGHT,
                    autoplay=True,
                    loop=True,
                    interactive=False,
                )
                files = gr.Files(
                    label="Download: the edit, side by side, all settings", interactive=False
                )
                past = gr.Dropdown([], label="History", type="value")
                again_button = gr.Button("Repeat exactly")
        shown = [history, past, edited, pair, files]
        sample.input(lambda name: samples[name], sample, clip, api_name="sample")
        edit_button.click(
            new,
            [clip, instruction, text_scale, video_scale, steps, seed, history],
            shown,
            api_name="edit",
            concurrency_id="sampling",
        )
        again_button.click(
            again, [past, history], shown, api_name="repeat", concurrency_id="sampling"
        )
        past.input(
            lambda chosen, history: show(history, chosen), [past, history], shown, api_name="show"
        )
    return blocks


if __name__ == "__main__":
    main(AppArgs, run)
