"""The page of the app, over HTTP and in Chromium."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivid2vid_jax import assets
from ivid2vid_jax.app import __main__ as app
from ivid2vid_jax.app.limits import AppLimits
from ivid2vid_jax.app.page import about_model
from ivid2vid_jax.video.read import open_clip
from tests.support.browser import chromium_browser
from tests.support.fake_pipeline import write_noise
from tests.support.gradio_client import edit_inputs, path_of, visitor
from tests.support.media import MEDIA


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


def test_a_visitor_uploads_a_gif(served):
    """The browser's video field takes no gif; the button beside it does."""
    address, _ = served
    with visitor(address) as (client, upload):
        clip = client.predict(upload(str(MEDIA / "twitter_gif.gif")), api_name="/upload")
        assert len(list(open_clip(path_of(clip)).frames())) == 20
        edited = client.predict(*edit_inputs(upload(str(path_of(clip)))), api_name="/edit")[1]
        assert path_of(edited).stat().st_size
        with pytest.raises(Exception, match="is not a video"):
            client.predict(upload(__file__), api_name="/upload")


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
        for position, value, message in (
            (4, 1000, "steps 1000 must be between 1 and 100"),
            (5, -1, "seed -1 must be between 0"),
            (8, 9999, "size 9999 must be between 1"),
        ):
            inputs = edit_inputs(upload(clip))
            inputs[position] = value
            with pytest.raises(Exception, match=message):
                client.predict(*inputs, api_name="/edit")
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


def slow_down(pipe, monkeypatch) -> threading.Event:
    """Makes edits take at least 5 seconds; the event is set when one has started."""
    started, edit_frames = threading.Event(), pipe.edit_frames

    def slow_edit(frames, instruction, settings, fit, progress):
        frames = list(frames)
        started.set()
        for _ in range(100):
            time.sleep(0.05)
            progress(1, 2)
        return edit_frames(frames, instruction, settings, fit, progress)

    monkeypatch.setattr(pipe, "edit_frames", slow_edit)
    return started


def test_a_visitor_cancels_their_own_edit_only(served, pipe, tmp_path, monkeypatch):
    address, home = served
    clip, edit_frames = write_noise(tmp_path / "in.mp4"), pipe.edit_frames
    with visitor(address) as (one, upload), visitor(address) as (two, _):
        started = slow_down(pipe, monkeypatch)
        job = one.submit(*edit_inputs(upload(clip)), api_name="/edit")
        assert started.wait(60)
        two.predict(api_name="/cancel")
        time.sleep(0.3)
        assert not job.done()
        one.predict(api_name="/cancel")
        assert "cancelled" in str(job.exception(timeout=4))
        assert not list(home.glob("job-*"))
        monkeypatch.setattr(pipe, "edit_frames", edit_frames)
        assert one.predict(*edit_inputs(upload(clip)), api_name="/edit")[1]


def test_the_page_names_the_model_and_what_it_knows(pipe):
    assert about_model(pipe) == "Model: **tiny**."
    embedded = SimpleNamespace(folder=SimpleNamespace(path=assets.folder() / "shapes-edit"))
    assert about_model(embedded).startswith("Model: **shapes-edit**. It knows only moving shapes")


@pytest.mark.slow
def test_two_visitors_in_chromium(served, tmp_path, car):
    """Upload, edit, repeat, error messages; each visitor sees their own history only."""
    address, home = served
    with chromium_browser() as browser:
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
    assert len(list(home.glob("job-*"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_click_in_chromium_cancels_an_edit(served, pipe, tmp_path, car, monkeypatch, width):
    """Also: the error is in one place, and the page is not wider than its window."""
    address, home = served
    started = slow_down(pipe, monkeypatch)
    with chromium_browser() as browser:
        page = open_page(browser, address, width)
        fill_in(page, car)
        page.locator("video").first.wait_for()
        page.get_by_role("button", name="Edit", exact=True).click()
        assert started.wait(60)
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelled", exact=False).first.wait_for(timeout=4_000)
        page.wait_for_timeout(500)
        badges = page.get_by_text("Error", exact=True).count()
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        folder = Path(os.environ.get("IVID2VID_SCREENSHOTS", tmp_path))
        page.screenshot(path=folder / f"cancelled-{width}.png", full_page=True)
    assert badges == 2, "one over the edited clip and the title of the message"
    assert overflow <= 0
    assert not list(home.glob("job-*"))


def open_page(browser, address, width=1280):
    context = browser.new_context(viewport={"width": width, "height": 1000})
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
