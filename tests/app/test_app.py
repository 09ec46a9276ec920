"""The app: its edits without the page, then the page over HTTP."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax import assets
from ivid2vid_jax.app import __main__ as app
from ivid2vid_jax.app.jobs import (
    AppLimits,
    EditRequest,
    open_checked_clip,
    remove_results,
    run_edit,
)
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.video.write import write_clip
from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder
from tests.support.command import run_command

ROOT = Path(__file__).parents[2]


class NegativePipeline:
    """A fake pipeline whose edit is the photographic negative."""

    factor = 16

    def __init__(self, folder):
        self.folder = folder

    def edit_frames(self, frames, instruction, settings, fit, progress):
        source = list(frames)
        for done in range(settings.steps):
            progress(done + 1, settings.steps)
        return (255 - frame for frame in source)


@pytest.fixture(scope="module")
def pipe(tiny):
    return NegativePipeline(open_pipeline_folder(tiny))


def ignore_progress(*_):
    pass


def write_noise(path, frames=6, size=(32, 48), rate=8) -> str:
    """Writes a clip of noise; size: (height, width)."""
    pixels = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8)
    write_clip(path, iter(pixels), [Fraction(i, rate) for i in range(frames)], Fraction(rate))
    return str(path)


def request(clip, **changes) -> EditRequest:
    settings = dict(instruction="make it blue", text_scale=5.0, video_scale=1.5, steps=2, seed=0)
    return EditRequest(**dict(clip=str(clip)) | settings | changes)


# ---- without the page


def test_an_edit_writes_its_results_to_a_new_folder(pipe, tmp_path):
    reports, clip = [], write_noise(tmp_path / "in.mp4")
    result = run_edit(
        pipe, request(clip), AppLimits(), tmp_path, lambda *report: reports.append(report)
    )
    source, edited, pair = (
        np.stack([frame.pixels for frame in open_clip(path).frames()])
        for path in (clip, result.edited, result.pair)
    )
    assert edited.shape == (6, 32, 48, 3) and pair.shape == (6, 32, 96, 3)
    assert np.abs(255 - source.astype(int) - edited).mean() < 20
    assert {path.name for path in result.edited.parent.iterdir()} == {
        "source.mp4",
        "edited.mp4",
        "side-by-side.mp4",
        "record.json",
    }
    record = json.loads(result.record.read_text())
    assert record["request"] == {
        "clip": "in.mp4",
        "instruction": "make it blue",
        "text_scale": 5.0,
        "video_scale": 1.5,
        "steps": 2,
        "seed": 0,
    }
    assert record["settings"]["sampler"] == "ddim" and record["frames"] == 6
    assert record["weights"] and record["versions"]["jax"]
    assert {("sampling", 2, 2), ("encoding", 6, None), ("writing", 6, 6)} <= set(reports)


def test_an_edit_can_be_repeated_after_the_upload_is_deleted(pipe, tmp_path):
    clip = write_noise(tmp_path / "in.mp4")
    first = run_edit(pipe, request(clip), AppLimits(), tmp_path, ignore_progress)
    Path(clip).unlink()
    second = run_edit(pipe, first.request, AppLimits(), tmp_path, ignore_progress)
    assert second.edited != first.edited
    assert second.edited.read_bytes() == first.edited.read_bytes()
    remove_results([first, second])
    assert list(tmp_path.iterdir()) == []


SMALL = AppLimits(seconds=1, frames=6, side=48, megabytes=1, steps=4)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (dict(frames=10), {}, "the clip has 1.2 s, the limit is 1; cut it"),
        (dict(frames=7), {}, "the clip has more than 6 frames, the limit"),
        (
            dict(size=(32, 64)),
            {},
            "the frames are 64x32, the limit is 48 pixels a side; scale the clip down",
        ),
        (dict(frames=1), {}, "in.mp4: has one frame; a clip needs two"),
        ({}, dict(steps=5), "steps 5 must be between 1 and 4"),
        ({}, dict(steps=0), "steps 0 must be between 1 and 4"),
        ({}, dict(instruction="  "), "the instruction is empty"),
        ({}, dict(instruction="a" * 501), "the instruction has 501 characters, the limit is 500"),
        ({}, dict(text_scale=-1.0), "text_scale -1.0 must be between 0 and 1000"),
        ({}, dict(seed=-1), "seed -1 must be between"),
        ({}, dict(clip=""), "no clip: upload one or pick a sample"),
    ],
)
def test_a_request_beyond_a_limit_is_an_error_and_leaves_no_files(
    pipe, tmp_path, source, changes, message
):
    clip, home = write_noise(tmp_path / "in.mp4", **source), tmp_path / "home"
    home.mkdir()
    with pytest.raises(UserError, match=message):
        run_edit(pipe, request(**dict(clip=clip) | changes), SMALL, home, ignore_progress)
    assert list(home.iterdir()) == []


def test_an_unreadable_file_is_an_error_that_hides_its_path(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("these are my notes\n" * 100)
    with pytest.raises(UserError, match=r"^notes\.mp4: is not a video that can be read"):
        open_checked_clip(str(text), AppLimits())
    with (tmp_path / "big.mp4").open("wb") as file:
        file.truncate(3 * 2**20)
    with pytest.raises(UserError, match="the file has 3 MB, the limit is 2; cut or compress it"):
        open_checked_clip(str(tmp_path / "big.mp4"), AppLimits(megabytes=2))


def test_a_long_clip_is_rejected_before_it_is_decoded(tmp_path, monkeypatch):
    """The header states five minutes."""
    long = write_noise(tmp_path / "long.mp4", frames=300, size=(16, 16), rate=1)
    monkeypatch.setattr("ivid2vid_jax.app.jobs.open_clip", lambda path: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"the clip has 300\.0 s, the limit is 20; cut it"):
        open_checked_clip(long, AppLimits())


def test_a_clip_without_a_stated_length_is_checked_while_it_is_decoded(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ivid2vid_jax.app.jobs.stated_duration", lambda file: None)
    with pytest.raises(UserError, match="s, the limit is 1; cut it"):
        run_edit(
            pipe,
            request(write_noise(tmp_path / "in.mp4", frames=12)),
            AppLimits(seconds=1),
            tmp_path,
            ignore_progress,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_the_folder_is_private_and_removed_at_the_end(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/before")
    with pytest.raises(RuntimeError), app.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "upload").write_text("x")
        raise RuntimeError
    assert not folder.exists() and os.environ["GRADIO_TEMP_DIR"] == "/before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "99999"], "--port 99999 must be between 0 and 65535"),
        (["--limits.seconds", "0"], "--limits.seconds 0.0 must be above 0"),
        (["--model", "/no/such"], "/no/such: no such model folder"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(capsys, options, message):
    pytest.importorskip("gradio")
    code, stderr, _ = run_command(capsys, app.AppArgs, app.run, *options)
    assert code == 2 and message in stderr and stderr.count("\n") == 1


def test_without_gradio_the_error_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, stderr, _ = run_command(capsys, app.AppArgs, app.run)
    assert code == 2 and "pip install 'ivid2vid_jax[app]'" in stderr


def test_by_default_it_listens_on_this_machine_only():
    args = app.AppArgs()
    assert args.host == "127.0.0.1" and args.share is False


# ---- the page, over HTTP


@pytest.fixture
def served(pipe):
    """(address, folder) of a running app."""
    pytest.importorskip("gradio")
    limits = AppLimits(waiting=2)
    with (
        app.private_folder() as home,
        app.serving(pipe, app.AppArgs(port=0, limits=limits), home) as address,
    ):
        yield address, home


@contextlib.contextmanager
def visitor(address):
    """(client, function that uploads a file)."""
    gradio_client = pytest.importorskip("gradio_client")
    with tempfile.TemporaryDirectory() as downloads:
        client = gradio_client.Client(address, verbose=False, download_files=downloads)
        yield client, gradio_client.handle_file
        client.close()


def edit_inputs(clip, instruction="make it blue", seed=0):
    return [clip, instruction, 5.0, 1.5, 2, seed]


def path_of(value) -> Path:
    return Path(value["video"] if isinstance(value, dict) else value)


def test_a_visitor_edits_repeats_and_sees_only_their_own_history(served, tmp_path):
    address, home = served
    assert address.startswith("http://127.0.0.1:")
    clip = write_noise(tmp_path / "in.mp4")
    with visitor(address) as (one, upload), visitor(address) as (two, _):
        past, edited, pair, files = one.predict(*edit_inputs(upload(clip)), api_name="/edit")
        assert path_of(edited).stat().st_size and path_of(pair).stat().st_size
        assert len(files) == 3 and len(past["choices"]) == 1
        past, repeated, *_ = one.predict(0, api_name="/repeat")
        assert path_of(repeated).read_bytes() == path_of(edited).read_bytes()
        assert [choice[0] for choice in past["choices"]] == [
            "1: make it blue (seed 0)",
            "2: make it blue (seed 0)",
        ]
        with pytest.raises(Exception, match="there is nothing to repeat yet"):
            two.predict(None, api_name="/repeat")
        with pytest.raises(Exception, match="is not in the list of choices"):
            two.predict(0, api_name="/repeat")
    assert list(home.glob("job-*"))


def test_a_visitor_sees_the_error(served, tmp_path):
    address, home = served
    notes = tmp_path / "notes.mp4"
    notes.write_text("these are my notes\n")
    with visitor(address) as (client, upload):
        for clip, instruction, message in (
            (
                write_noise(tmp_path / "long.mp4", frames=170),
                "make it blue",
                "the clip has 21.2 s, the limit is 20; cut it",
            ),
            (str(notes), "make it blue", "is not a video that can be read"),
            (write_noise(tmp_path / "in.mp4"), "", "the instruction is empty"),
        ):
            with pytest.raises(Exception, match=message):
                client.predict(*edit_inputs(upload(clip), instruction), api_name="/edit")
    assert not list(home.glob("job-*"))


def test_of_ten_requests_one_runs_at_a_time_and_a_full_queue_rejects(
    served, pipe, tmp_path, monkeypatch
):
    address, _ = served
    running, running_counts = [], []
    edit_frames = pipe.edit_frames

    def slow_edit(*args):
        running.append(1)
        running_counts.append(len(running))
        time.sleep(0.5)
        running.pop()
        return edit_frames(*args)

    monkeypatch.setattr(pipe, "edit_frames", slow_edit)
    clip = write_noise(tmp_path / "in.mp4")
    with visitor(address) as (client, upload):
        jobs = [
            client.submit(*edit_inputs(upload(clip), seed=seed), api_name="/edit")
            for seed in range(10)
        ]
        failures = [str(error) for error in (job.exception(timeout=120) for job in jobs) if error]
    assert max(running_counts) == 1 and len(running_counts) == 10 - len(failures), failures
    assert 0 < len(failures) < 10, failures
    for failure in failures:
        assert "queue" in failure.lower() and "full" in failure.lower()


@pytest.mark.slow
def test_two_visitors_in_chromium(served, tmp_path, car):
    """Upload, edit, repeat, error messages; each visitor sees their own history only."""
    playwright, chromium = pytest.importorskip("playwright.sync_api"), shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed")
    address, home = served
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        pages = [open_page(browser, address) for _ in range(2)]
        for page in pages:
            fill_in(page, car)
            page.locator("video").first.wait_for()
        for page in pages:
            page.get_by_role("button", name="Edit", exact=True).click()
        for page in pages:
            page.get_by_text("side-by-side", exact=False).first.wait_for()
            page.wait_for_function("[...document.querySelectorAll('video')].length >= 3")
        pages[0].screenshot(path=os.environ.get("IVID2VID_SCREENSHOT", tmp_path / "page.png"))
        pages[0].get_by_role("button", name="Repeat exactly").click()
        pages[0].wait_for_function(
            "[...document.querySelectorAll('input')]"
            ".some(input => input.value.startsWith('2: make it snow'))"
        )
        inputs = pages[1].locator("input")
        assert inputs.evaluate_all(
            "inputs => inputs.some(input => input.value.startsWith('1: make it snow'))"
        )
        for file, message in invalid_files(tmp_path):
            page = open_page(browser, address)
            fill_in(page, file)
            page.wait_for_timeout(3000)
            page.get_by_role("button", name="Edit", exact=True).click()
            page.get_by_text(message, exact=False).first.wait_for()
        browser.close()
    assert len(list(home.glob("job-*"))) == 3


def open_page(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    return page


def fill_in(page, file):
    page.locator("input[type=file]").first.set_input_files(str(file))
    page.get_by_test_id("textbox").first.fill("make it snow")
    page.get_by_role("button", name="Edit", exact=True).wait_for()


def invalid_files(folder) -> list[tuple[Path | str, str]]:
    """(file, message) pairs."""
    notes = folder / "notes.mp4"
    notes.write_text("these are my notes\n")
    long = write_noise(folder / "long.mp4", frames=300, size=(16, 16), rate=1)
    wide = write_noise(folder / "wide.mp4", frames=2, size=(2160, 3840))
    return [
        (long, "the clip has 300.0 s, the limit is 20"),
        (wide, "the frames are 3840x2160, the limit is 2048"),
        (notes, "is not a video"),
    ]


@pytest.mark.slow
def test_the_command_serves_and_removes_its_folder_on_sigterm(tiny, tmp_path):
    """A separate process with a real pipeline."""
    pytest.importorskip("gradio")
    argv = [sys.executable, "-m", "ivid2vid_jax.app", "--model", str(tiny), "--port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        address = next(
            (
                line.split()[3].rstrip(";")
                for line in process.stdout
                if line.startswith("edit clips at")
            ),
            None,
        )
        assert address, process.wait()
        with visitor(address) as (client, upload):
            _, edited, *_ = client.predict(
                *edit_inputs(upload(str(next(iter(assets.clips().values()))))), api_name="/edit"
            )
            assert path_of(edited).stat().st_size
        assert list(tmp_path.glob("ivid2vid-app-*/job-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and not list(tmp_path.glob("ivid2vid-app-*"))
    finally:
        process.kill()
