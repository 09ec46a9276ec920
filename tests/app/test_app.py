"""The app: what it takes on and what it leaves behind, without its page; then the page over HTTP."""

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

from ivid2vid_jax import app, assets
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


class Negative:
    """In the place of a pipeline: an edit is the negative, at once."""

    factor = 16

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def edit_frames(self, frames, instruction, settings, fit, progress):
        self.asked.append((instruction, settings))
        held = list(frames)
        for done in range(settings.steps):
            progress(done + 1, settings.steps)
        return (255 - frame for frame in held)


@pytest.fixture(scope="module")
def pipe(tiny):
    return Negative(open_pipeline_folder(tiny))


def quiet(*_):
    pass


def clip_of(path, frames=6, size=(32, 48), rate=8) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8)
    write_clip(path, iter(pixels), [Fraction(i, rate) for i in range(frames)], Fraction(rate))
    return str(path)


def request(clip, **changes) -> EditRequest:
    return EditRequest(
        **dict(
            clip=str(clip),
            instruction="make it blue",
            text_scale=5.0,
            video_scale=1.5,
            steps=2,
            seed=0,
        )
        | changes
    )


# ---- without the page


def test_a_job_leaves_its_results_in_a_folder_of_its_own(pipe, tmp_path):
    told, clip = [], clip_of(tmp_path / "in.mp4")
    result = run_edit(pipe, request(clip), AppLimits(), tmp_path, lambda *words: told.append(words))
    frames = [
        np.stack([frame.pixels for frame in open_clip(path).frames()])
        for path in (clip, result.edited, result.pair)
    ]
    assert frames[1].shape == (6, 32, 48, 3) and frames[2].shape == (6, 32, 96, 3)
    assert np.abs(255 - frames[0].astype(int) - frames[1]).mean() < 20
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
    assert (
        record["settings"]["sampler"] == "ddim"
        and record["frames"] == 6
        and record["weights"]
        and record["versions"]["jax"]
    )
    assert (
        ("sampling", 2, 2) in told and ("encoding", 6, None) in told and ("writing", 6, 6) in told
    )


def test_a_job_can_be_repeated_when_the_upload_is_gone_and_forgotten(pipe, tmp_path):
    clip = clip_of(tmp_path / "in.mp4")
    first = run_edit(pipe, request(clip), AppLimits(), tmp_path, quiet)
    Path(clip).unlink()
    second = run_edit(pipe, first.request, AppLimits(), tmp_path, quiet)
    assert second.edited.read_bytes() == first.edited.read_bytes() and second.edited != first.edited
    remove_results([first, second])
    assert list(tmp_path.iterdir()) == []


SMALL = AppLimits(seconds=1, frames=6, side=48, megabytes=1, steps=4)


@pytest.mark.parametrize(
    ("make", "changes", "told"),
    [
        (dict(frames=10), {}, "the clip has 1.2 s, the limit is 1; cut it"),
        (dict(frames=7), {}, "the clip has more than 6 frames, the limit"),
        (
            dict(size=(32, 64)),
            {},
            "the frames are 64x32, the limit is 48 pixels a side; scale the clip down",
        ),
        (dict(frames=1), {}, "in.mp4: holds one frame; a clip needs two"),
        ({}, dict(steps=5), "5 steps: choose 1 to 4"),
        ({}, dict(steps=0), "0 steps: choose 1 to 4"),
        ({}, dict(instruction="  "), "the instruction is empty"),
        ({}, dict(instruction="a" * 501), "the instruction has 501 characters, the limit is 500"),
        ({}, dict(text_scale=-1.0), "text_scale -1.0 must be between 0 and 1000"),
        ({}, dict(seed=-1), "seed -1 must be between"),
        ({}, dict(clip=""), "there is no clip: upload one, or pick a sample"),
    ],
)
def test_what_is_beyond_a_limit_is_refused_and_leaves_nothing(pipe, tmp_path, make, changes, told):
    clip, home = clip_of(tmp_path / "in.mp4", **make), tmp_path / "home"
    home.mkdir()
    with pytest.raises(UserError, match=told):
        run_edit(
            pipe,
            request(clip, **changes) if "clip" not in changes else request(""),
            SMALL,
            home,
            quiet,
        )
    assert list(home.iterdir()) == []


def test_a_file_that_is_no_clip_is_refused_without_its_path(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("these are my notes\n" * 100)
    with pytest.raises(UserError, match=r"^notes\.mp4: is not a video that can be read"):
        open_checked_clip(str(text), AppLimits())
    with open(tmp_path / "big.mp4", "wb") as file:
        file.truncate(3 * 2**20)
    with pytest.raises(UserError, match="the file has 3 MB, the limit is 2; cut or compress it"):
        open_checked_clip(str(tmp_path / "big.mp4"), AppLimits(megabytes=2))


def test_a_long_clip_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """Five minutes, told by the file's head."""
    long = clip_of(tmp_path / "long.mp4", frames=300, size=(16, 16), rate=1)
    monkeypatch.setattr("ivid2vid_jax.app.jobs.open_clip", lambda path: pytest.fail("decoded"))
    with pytest.raises(UserError, match="the clip has 300.0 s, the limit is 20; cut it"):
        open_checked_clip(long, AppLimits())


def test_a_clip_whose_head_is_silent_is_counted_as_it_is_read(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ivid2vid_jax.app.jobs.announced", lambda file: None)
    with pytest.raises(UserError, match="s, the limit is 1; cut it"):
        run_edit(
            pipe,
            request(clip_of(tmp_path / "in.mp4", frames=12)),
            AppLimits(seconds=1),
            tmp_path,
            quiet,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_the_folder_is_private_and_goes(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/before")
    with pytest.raises(RuntimeError), app.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and os.environ[
            "GRADIO_TEMP_DIR"
        ] == str(folder)
        (folder / "upload").write_text("x")
        raise RuntimeError
    assert not folder.exists() and os.environ["GRADIO_TEMP_DIR"] == "/before"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "99999"], "--port 99999 must be between 0 and 65535"),
        (["--limits.seconds", "0"], "--limits.seconds 0.0 must be above 0"),
        (["--model", "/no/such"], "/no/such: no such model folder"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, told):
    pytest.importorskip("gradio")
    code, said, _ = run_command(capsys, app.AppArgs, app.run, *words)
    assert code == 2 and told in said and said.count("\n") == 1


def test_without_gradio_the_way_out_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, said, _ = run_command(capsys, app.AppArgs, app.run)
    assert code == 2 and "pip install 'ivid2vid_jax[app]'" in said


def test_it_listens_to_this_machine_alone_unless_told():
    args = app.AppArgs()
    assert args.host == "127.0.0.1" and args.share is False


# ---- the page, over HTTP


@pytest.fixture
def served(pipe):
    """address, folder."""
    pytest.importorskip("gradio")
    limits = AppLimits(waiting=2)
    with (
        app.private_folder() as home,
        app.serving(pipe, app.AppArgs(port=0, limits=limits), home) as address,
    ):
        yield address, home


@contextlib.contextmanager
def visitor(address):
    gradio_client = pytest.importorskip("gradio_client")
    with tempfile.TemporaryDirectory() as downloads:
        client = gradio_client.Client(address, verbose=False, download_files=downloads)
        yield client, gradio_client.handle_file
        client.close()


def words(clip, instruction="make it blue", seed=0):
    return [clip, instruction, 5.0, 1.5, 2, seed]


def path_of(value) -> Path:
    return Path(value["video"] if isinstance(value, dict) else value)


def test_a_visitor_edits_repeats_and_sees_only_their_own(served, tmp_path):
    address, home = served
    assert address.startswith("http://127.0.0.1:")
    clip = clip_of(tmp_path / "in.mp4")
    with visitor(address) as (one, handle), visitor(address) as (two, _):
        past, edited, pair, files = one.predict(*words(handle(clip)), api_name="/edit")
        assert (
            path_of(edited).stat().st_size
            and path_of(pair).stat().st_size
            and len(files) == 3
            and len(past["choices"]) == 1
        )
        past, again, *_ = one.predict(0, api_name="/repeat")
        assert path_of(again).read_bytes() == path_of(edited).read_bytes()
        assert [choice[0] for choice in past["choices"]] == [
            "1: make it blue (seed 0)",
            "2: make it blue (seed 0)",
        ]
        with pytest.raises(Exception, match="there is nothing to repeat yet"):
            two.predict(None, api_name="/repeat")
        with pytest.raises(Exception, match="is not in the list of choices"):
            two.predict(0, api_name="/repeat")
    assert all(path.is_relative_to(home) for path in home.rglob("*")) and list(home.glob("job-*"))


def test_a_visitor_is_told_what_is_wrong(served, tmp_path):
    address, home = served
    notes = tmp_path / "notes.mp4"
    notes.write_text("these are my notes\n")
    with visitor(address) as (client, handle):
        for clip, instruction, told in (
            (
                clip_of(tmp_path / "long.mp4", frames=170),
                "make it blue",
                "the clip has 21.2 s, the limit is 20; cut it",
            ),
            (str(notes), "make it blue", "is not a video that can be read"),
            (clip_of(tmp_path / "in.mp4"), "", "the instruction is empty"),
        ):
            with pytest.raises(Exception, match=told):
                client.predict(*words(handle(clip), instruction), api_name="/edit")
    assert not list(home.glob("job-*"))


def test_ten_at_once_are_taken_in_turn_or_turned_away(served, pipe, tmp_path, monkeypatch):
    address, _ = served
    at_work, most = [], []
    real = pipe.edit_frames

    def slow(*args):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.5)
        at_work.pop()
        return real(*args)

    monkeypatch.setattr(pipe, "edit_frames", slow)
    clip = clip_of(tmp_path / "in.mp4")
    with visitor(address) as (client, handle):
        jobs = [
            client.submit(*words(handle(clip), seed=seed), api_name="/edit") for seed in range(10)
        ]
        failures = [str(error) for error in (job.exception(timeout=120) for job in jobs) if error]
    assert max(most) == 1 and len(most) == 10 - len(failures) and 0 < len(failures) < 10, failures
    assert all("queue" in failure.lower() and "full" in failure.lower() for failure in failures), (
        failures
    )


@pytest.mark.slow
def test_two_people_at_their_browsers(served, tmp_path, car):
    """Headless Chromium, where there is one: upload, edit, see, repeat; messages are on the page; the other's history is empty."""
    playwright, chromium = pytest.importorskip("playwright.sync_api"), shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium")
    address, home = served
    long, notes = (
        clip_of(tmp_path / "long.mp4", frames=300, size=(16, 16), rate=1),
        tmp_path / "notes.mp4",
    )
    notes.write_text("these are my notes\n")
    wide = clip_of(tmp_path / "wide.mp4", frames=2, size=(2160, 3840))
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        pages = [
            browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
            for _ in range(2)
        ]
        for page in pages:
            page.set_default_timeout(120_000)
            page.goto(address)
        for page in pages:
            page.locator("input[type=file]").first.set_input_files(str(car))
            page.get_by_test_id("textbox").first.fill("make it snow")
            page.get_by_role("button", name="Edit", exact=True).wait_for()
            page.locator("video").first.wait_for()
        for page in pages:
            page.get_by_role("button", name="Edit", exact=True).click()
        for page in pages:
            page.get_by_text("side-by-side", exact=False).first.wait_for()
            page.wait_for_function("[...document.querySelectorAll('video')].length >= 3")
        pages[0].screenshot(path=os.environ.get("IVID2VID_SCREENSHOT", tmp_path / "page.png"))
        pages[0].get_by_role("button", name="Repeat exactly").click()
        pages[0].wait_for_function(
            "[...document.querySelectorAll('input')].some(each => each.value.startsWith('2: make it snow'))"
        )
        assert (
            pages[1]
            .locator("input")
            .evaluate_all("all => all.some(each => each.value.startsWith('1: make it snow'))")
        )
        for file, told in (
            (long, "the clip has 300.0 s, the limit is 20"),
            (wide, "the frames are 3840x2160, the limit is 2048"),
            (str(notes), "is not a video"),
        ):
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.goto(address)
            page.locator("input[type=file]").first.set_input_files(file)
            page.get_by_test_id("textbox").first.fill("make it snow")
            page.wait_for_timeout(3000)
            page.get_by_role("button", name="Edit", exact=True).click()
            page.get_by_text(told, exact=False).first.wait_for()
        browser.close()
    assert len(list(home.glob("job-*"))) == 3


@pytest.mark.slow
def test_the_command_serves_edits_and_cleans_up(tiny, tmp_path):
    """A process of its own, a real pipeline; SIGTERM ends it and its folder is gone."""
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
        with visitor(address) as (client, handle):
            _, edited, *_ = client.predict(
                *words(handle(str(next(iter(assets.clips().values()))))), api_name="/edit"
            )
            assert path_of(edited).stat().st_size
        assert list(tmp_path.glob("ivid2vid-app-*/job-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and not list(tmp_path.glob("ivid2vid-app-*"))
    finally:
        process.kill()
