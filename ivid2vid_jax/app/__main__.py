"""`python -m ivid2vid_jax.app`: edit clips in the browser.

python -m ivid2vid_jax.app                 # embedded model, http://127.0.0.1:7860
python -m ivid2vid_jax.app --model timbrooks/instruct-pix2pix
"""

import contextlib
import dataclasses
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ivid2vid_jax.app.limits import AppLimits
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import cli
from ivid2vid_jax.utils.atomic import temporary_path
from ivid2vid_jax.utils.versions import install_command

if TYPE_CHECKING:
    from ivid2vid_jax.inference.pipeline import Pipeline


@dataclasses.dataclass
class AppArgs:
    """Serves a web page for editing clips, on this machine only unless --host or --share is set."""

    # pipeline folder, training run, or Hugging Face model "owner/name" (default: the embedded
    # shapes-edit)
    model: str | None = None
    # address to listen on; 0.0.0.0 opens the page to the network, without a password
    host: str = "127.0.0.1"
    port: int = 7860  # port to listen on; 0: any free port
    share: bool = False  # also publish the page through Gradio's servers
    limits: AppLimits = dataclasses.field(default_factory=AppLimits)
    # compute dtype: float32, bfloat16, or auto (float32 on CPU, bfloat16 on TPU and GPU)
    dtype: str = "auto"
    variant: str | None = None  # "fp16": load the model's fp16 files
    devices: int | None = None  # number of devices to use (default: all)


def run(args: AppArgs) -> None:
    """Serves the page until SIGINT or SIGTERM, then removes all uploads and results."""
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port} must be between 0 and 65535")
    args.limits.check()
    with private_folder() as folder:
        check_gradio()
        from ivid2vid_jax.inference import pipeline

        pipe = pipeline.load(args.model, args.dtype, args.variant, devices=args.devices)
        pipe.check_editor()
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        with serving(pipe, args, folder) as address:
            print(f"edit clips at {address}; Ctrl-C stops the server", flush=True)
            stop.wait()


def check_gradio() -> None:
    """Imports Gradio, without its analytics; UserError if it is not installed.

    Gradio reads GRADIO_TEMP_DIR when it is imported, so call this within `private_folder`.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401  # only to see whether it can be imported
    except ImportError as error:
        raise UserError(f"the app needs gradio ({error}): {install_command('app')}") from error


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads and results that only this user can read; removed at the end."""
    previous = os.environ.get("GRADIO_TEMP_DIR")
    with temporary_path(Path(tempfile.mkdtemp(prefix="ivid2vid-app-"))) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            yield folder
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if previous is not None:
                os.environ["GRADIO_TEMP_DIR"] = previous


@contextlib.contextmanager
def serving(pipe: "Pipeline", args: AppArgs, folder: Path) -> Iterator[str]:
    """Serves the page and yields its address. Results are kept in `folder`."""
    check_gradio()
    from ivid2vid_jax.app.page import build_page

    blocks = build_page(pipe, args.limits, folder)
    blocks.queue(max_size=args.limits.waiting, default_concurrency_limit=1)
    try:
        _, address, _ = blocks.launch(
            server_name=args.host,
            server_port=free_port(args.host, args.port),
            share=args.share,
            max_file_size=f"{args.limits.megabytes}mb",
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            ssr_mode=False,
        )
    except OSError as error:  # with another text where Gradio raises it
        reason = os.strerror(error.errno).lower() if error.errno else "cannot be opened"
        raise UserError(
            f"--host {args.host} --port {args.port}: {reason}; give another --port, or 0 for any "
            "free one"
        ) from error
    try:
        yield address
    finally:
        blocks.close(verbose=False)


def free_port(host: str, port: int = 0) -> int:
    """The port, or any for 0, that is free at the moment; OSError if it is in use."""
    with socket.create_server((host, port)) as server:
        return server.getsockname()[1]


def main() -> None:
    """Runs the command line."""
    cli.main(AppArgs, run)


if __name__ == "__main__":
    main()
