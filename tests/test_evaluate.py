"""The shapes benchmark: true edits pass, copies fail, runs resume; and its command."""

import csv
import json
import re

import flax
import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax import evaluate
from ivid2vid_jax.data import shapes as world
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import shapes_benchmark, shapes_report
from ivid2vid_jax.evaluation.output_folder import bind_to_settings
from ivid2vid_jax.evaluation.shapes_benchmark import evaluate_edit, run_benchmark, warping_errors
from ivid2vid_jax.experiments import engine_editors, guidance_grid
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.synthesis.editors import EDITORS
from ivid2vid_jax.training import init_state, run_folder
from ivid2vid_jax.video import compare
from ivid2vid_jax.weights.pipeline_folder import param_initializer, save_folder
from ivid2vid_jax.weights.random_init import init_params
from tests.support import browser, factory
from tests.support.command import run_command
from tests.support.tiny_run import ONE_LEVEL, tiny

KINDS = ("colour", "remove", "grey", "identity")


def specs(count=3):
    return list(shapes_benchmark.specs(KINDS, count, 64, 4))


def perfect(truth):
    return truth.edited


def copy(truth):
    return truth.source


def test_the_clips_are_held_out_and_depend_on_their_kind_only():
    clips = specs()
    keys = [(kind, index) for kind, index, _ in clips]
    assert keys == [(kind, index) for kind in KINDS for index in range(3)]
    for kind, _, spec in clips:
        assert world.held_out(spec.scene, spec.edit) and spec.edit.kind == kind
    assert len({spec.to_json() for _, _, spec in clips}) == len(clips)
    grey = [spec for *_, spec in shapes_benchmark.specs(("grey",), 3, 64, 4)]
    assert grey == [spec for kind, _, spec in clips if kind == "grey"]


def test_true_edits_pass_and_copies_fail(tmp_path):
    editors = {"truth": perfect, "copy": copy}
    items = run_benchmark(editors, specs(), tmp_path / "items.jsonl")
    report = shapes_benchmark.report(items)
    truth, copied = report["truth"]["all"], report["copy"]
    assert truth["passed"]["share"] == 1 and truth["count"] == 12 and truth["flicker"]["mean"] == 0
    assert truth["psnr"]["db"] == np.inf and truth["psnr"]["interval"] is None
    assert [copied[kind]["passed"]["share"] for kind in KINDS] == [0, 0, 0, 1]
    assert copied["colour"]["psnr_outside"]["db"] == np.inf and copied["colour"]["psnr"]["db"] < 40
    assert "psnr_outside" not in copied["grey"], "a style may change every pixel"
    difference = truth["difference"]["mean"]
    assert difference == pytest.approx(truth["difference_truth"]["mean"]) and difference > 0


def test_metrics_of_an_item():
    """A clip that is one grey level too bright, and 3 brighter in every other frame."""
    _, _, spec = specs()[0]
    truth = world.triplet(spec)
    edited = np.asarray(truth.edited, int) + 1
    edited[1::2] += 3
    edited = edited.clip(0, 255).astype(np.uint8)
    item = evaluate_edit("x", "colour", 0, spec, truth, edited)
    assert item.error == pytest.approx((1 + 16) / 2)
    assert item.error_outside == pytest.approx((1 + 16) / 2, rel=0.05)
    assert item.warping > item.warping_truth > 0, "flicker does not follow the source's flow"
    assert item.flicker == pytest.approx(3) and abs(item.difference - item.difference_truth) <= 3
    psnr = shapes_benchmark.psnr(np.array([item.error]))
    assert psnr == pytest.approx(10 * np.log10(255**2 / 8.5))


def test_warping_errors_of_still_clips():
    truth = world.triplet(specs()[0][2])
    still = np.repeat(truth.source[:1], 4, axis=0)
    assert warping_errors(still, still, 255 - still) == [pytest.approx(0, abs=1e-6)] * 2
    assert warping_errors(still[:1], still[:1]) == [None]


def test_a_single_frame_has_no_motion():
    ((_, _, spec),) = shapes_benchmark.specs(("grey",), 1, 64, 1)
    truth = world.triplet(spec)
    item = evaluate_edit("x", "grey", 0, spec, truth, truth.edited)
    assert item.passed and item.warping is None
    assert item.flicker == item.difference == item.difference_truth == 0


def test_a_stopped_run_resumes(tmp_path):
    file, calls = tmp_path / "items.jsonl", []

    def counting(truth):
        calls.append(truth.id)
        return truth.edited

    first = run_benchmark({"truth": counting}, specs(2), file)
    file.write_text(file.read_text()[:-20])  # killed while writing the last line
    shown, progress = [], []
    second = run_benchmark(
        {"truth": counting, "copy": copy},
        specs(2),
        file,
        lambda item, truth, edited: shown.append(item),
        lambda *counts: progress.append(counts),
    )
    assert len(calls) == len(first) + 1 and second[: len(first)] == first
    assert len(shown) == 1 + len(first)
    assert progress == [(done, 16) for done in range(8, 17)]
    assert [item.editor for item in second] == ["truth"] * 8 + ["copy"] * 8
    assert len(shapes_benchmark.read(file)) == 16


def test_the_table_has_the_numbers(tmp_path):
    editors = {"truth": perfect, "copy": copy}
    items = run_benchmark(editors, specs(), tmp_path / "items.jsonl")
    lines = shapes_benchmark.table(shapes_benchmark.report(items)).splitlines()
    numbers = "12 | 100.0% [76, 100] | 100.0% | 100.0% | exact | exact | 0.00 |"
    assert lines[2].startswith(f"| truth | {numbers}")
    assert lines[3].startswith("| copy | 12 | 25.0% [9, 53] |")
    first_cells = [line.split(" | ")[0] for line in lines]
    assert [cell for cell in first_cells if cell[2:] in KINDS] == [f"| {kind}" for kind in KINDS]


# ---- with a model ----


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained tiny editor in which no output projection is zero."""
    folder = tmp_path_factory.mktemp("model")
    config, rng = tiny(folder, net=ONE_LEVEL), np.random.default_rng(0)
    init_state.learn_vocabulary(config, lambda: run_folder.texts(config), folder / "tokenizer")
    source, params = init_state.from_scratch(config, folder), {}
    for name, net in source.models.items():
        flat = {
            path: leaf if leaf.any() else 0.05 * rng.standard_normal(leaf.shape, np.float32)
            for path, leaf in init_params(param_initializer(name, net), 0).items()
        }
        params[name] = flax.traverse_util.unflatten_dict(flat)
    save_folder(folder / "editor", source, params)
    return folder / "editor"


@pytest.fixture
def words(model, tmp_path):
    """The options of a small evaluation in tmp_path/out."""
    return ("--model", model, "--output", tmp_path / "out", "--count", 1)


def command(capsys, *words):
    return run_command(capsys, evaluate.EvaluateArgs, evaluate.run, *words)


@pytest.mark.slow
def test_the_baseline_without_temporal_layers_edits_frame_by_frame(model):
    pipe = pipeline.load(model)
    settings = pipeline.EditSettings(steps=2).resolve(pipe.folder)
    editors = shapes_benchmark.editors(pipe, settings)
    truth = world.triplet(world.sample_spec(0, 0, size=16, frames=2))
    names = ("per frame", "model", "copy", "vae")
    before = {name: editors[name](truth) for name in names}
    truth.source[1] = 255 - truth.source[1]
    after = {name: editors[name](truth) for name in names}
    assert np.array_equal(before["per frame"][0], after["per frame"][0])
    assert not np.array_equal(before["per frame"][1], after["per frame"][1])
    assert not np.array_equal(before["model"][0], after["model"][0])
    assert np.array_equal(after["copy"], truth.source)
    assert np.array_equal(before["vae"], after["vae"])


def test_the_command_writes_a_report_and_resumes(words, tmp_path, capsys):
    output = tmp_path / "out"
    words = (*words, "--kinds", "colour", "grey", "--steps", 2, "--sheets", 1)
    code, _, out = command(capsys, *words)
    assert code == 0 and (output / "report.md").read_text().strip() in out
    for row in ("| model | 2 |", "| per frame | 2 |", "| colour | 1 |"):
        assert row in out
    # A copy's PSNR is infinite, which JSON cannot express.
    report = json.loads((output / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["settings"]["steps"] == 2 and len(report["weights"]) == 3
    assert report["report"]["vae"]["all"]["count"] == 2 and report["definitions"]["passed"]
    assert report["report"]["copy"]["all"]["psnr_outside"]["db"] == "inf"
    page = (output / "index.html").read_text()
    assert page.count("data:image/gif") == 2 and page.count("data:image/png") == 1
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<summary>Definitions</summary>" in page
    assert "<span>source</span><span>edit</span><span>truth</span>" in page
    assert "<td>per frame</td><td>2</td>" in page and "<td>colour</td><td>1</td>" in page
    with (output / "items.csv").open() as file:
        rows = [(row["editor"], row["kind"]) for row in csv.DictReader(file)]
    assert rows[:2] == [("model", "colour"), ("model", "grey")]
    assert {path.name for path in (output / "clips").iterdir()} == {
        f"{kind}-0{suffix}" for kind in ("colour", "grey") for suffix in (".gif", "_sheet.png")
    }

    items = output / "items.jsonl"
    before = items.read_text()
    assert command(capsys, *words, "--shown", 1)[0] == 0 and items.read_text() == before
    assert (output / "index.html").read_text().count("data:image/gif") == 1
    code, err, _ = command(capsys, *words, "--text-scale", 3)
    assert code == 2 and "another evaluation (settings differ)" in err
    assert items.read_text() == before


def test_the_page_opens_in_a_browser(tmp_path):
    editors = {"model": perfect, "copy": copy}
    items = run_benchmark(editors, specs(1), tmp_path / "items.jsonl")
    black = np.zeros((2, 16, 16, 3), np.uint8)
    compare.write_panels(tmp_path / "colour-0.gif", [black] * 3, "black", 8)
    clips = shapes_report.clips(
        items, specs(1), lambda item: tmp_path / f"{item.kind}-{item.index}.gif", 12
    )
    assert len(clips) == 1 and clips[0][0].endswith("(colour: passed)")
    report = shapes_benchmark.report(items)
    shapes_report.write(tmp_path, {"model": "<perfect>"}, items, report, clips)
    with browser.page() as page:
        page.goto((tmp_path / "index.html").as_uri())
        assert browser.pictures(page) == [True] * 2 and page.errors == []
        settings = page.get_by_text("<perfect>")
        assert not settings.is_visible(), "settings are folded"
        page.get_by_text("Settings and weights").click()
        assert settings.is_visible()
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.slow
def test_a_guidance_grid_is_plotted_and_its_best_point_named(words, tmp_path, capsys):
    grid = ("--grid-text", 2, 3, "--grid-video", 1)  # one program: the scales are traced
    code, _, out = command(capsys, *words, "--kinds", "colour", "--steps", 1, *grid)
    output = tmp_path / "out"
    report = json.loads((output / "report.json").read_text())["report"]
    assert code == 0 and "best: text " in out
    assert set(report) == {"text 2, video 1", "text 3, video 1"}
    assert report["text 2, video 1"]["all"]["psnr"] != report["text 3, video 1"]["all"]["psnr"]
    with Image.open(output / "grid.png") as picture:
        assert picture.width > 1000


def test_a_guidance_grid_of_styles_is_plotted_without_psnr_outside(
    words, tmp_path, capsys, monkeypatch
):
    """A style may change every pixel: there is no outside."""

    def editors(pipe, settings, points):
        return {guidance_grid.name(point): copy for point in points}

    monkeypatch.setattr(guidance_grid, "editors", editors)
    grid = ("--grid-text", 1, "--grid-video", 1)
    code, _, _ = command(capsys, *words, "--kinds", "grey", "--steps", 1, *grid)
    output = tmp_path / "out"
    assert code == 0 and (output / "grid.png").is_file()
    assert (output / "index.html").read_text().count("data:image/png") == 2


def test_the_best_point_passes_most_and_then_has_the_highest_psnr():
    def results(share, db):
        return {"all": {"passed": {"share": share}, "psnr": {"db": db}}}

    points = [(1.0, 1.0), (2.0, 1.0), (2.0, 1.5)]
    values = (results(0.5, 40), results(0.9, 20), results(0.9, 25))
    report = dict(zip(map(guidance_grid.name, points), values, strict=True))
    assert guidance_grid.best(report, points) == (2.0, 1.5)


def test_settings_that_only_one_run_has_are_named(tmp_path):
    bind_to_settings(tmp_path / "out", {"model": "a", "old": 1})
    with pytest.raises(UserError, match=r"\(old differ\)"):
        bind_to_settings(tmp_path / "out", {"model": "a"})


def test_engine_editors_receive_both_captions():
    truth, tasks = world.triplet(world.sample_spec(0, 0, size=16, frames=2)), []

    def edit(batch):
        tasks.extend(batch)
        return [[truth.edited]]

    assert np.array_equal(engine_editors.editor(edit, 7)(truth), truth.edited)
    (task,) = tasks
    assert task.caption == truth.source_caption and task.seed == 7
    assert task.edited_captions == (truth.edited_caption,)
    assert np.array_equal(task.clip, truth.source)
    with pytest.raises(UserError, match="not finite"):
        engine_editors.editor(lambda batch: [[None]], 7)(truth)


def test_engine_editors_are_evaluated_on_the_same_clips(words, tmp_path, capsys, monkeypatch):
    """With an editor that copies: the real ones compile for long, tests/synthesis covers them."""

    def load_editor(base, config, workers):
        return lambda tasks: [[task.clip] for task in tasks]

    monkeypatch.setitem(EDITORS, "shared_noise", load_editor)
    base = factory.save_pipeline(
        tmp_path / "base", factory.tiny_parts(in_channels=4, **factory.ONE_LEVEL)
    )
    recipe = tmp_path / "engine.py"
    recipe.write_text(
        "from ivid2vid_jax.synthesis.config import *\n"
        f"config = SynthesisConfig(base={str(base)!r}, "
        "shared_noise=SharedNoiseConfig(sampling=2))\n"
    )
    editors = ("--editors", "copy", "shared_noise", "--engine", recipe)
    words = (*words, "--kinds", "grey", "--steps", 1, *editors)
    code, err, out = command(capsys, *words)
    assert code == 0, err
    assert "| copy | 1 |" in out and "| shared_noise | 1 |" in out
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["shared_noise"]["sampling"] == 2 and len(record["base"]) == 3
    recipe.write_text(recipe.read_text().replace("sampling=2", "sampling=1"))
    assert "(shared_noise differ)" in command(capsys, *words)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid-text", "2"], "--grid-text and --grid-video go together"),
        (["--kinds", "colur"], "--kinds colur: choose from"),
        (["--editors", "modle"], "'modle'"),
        (["--count", "0"], "--count 0"),
        (
            ["--metrics", "flow", "--identity"],
            "--metrics, --identity: --data shapes has its own metrics",
        ),
        (["--shard", "0/2"], "--shard: --data shapes has its own metrics"),
        (
            ["--experiment", "x.py", "--count", "3"],
            "--count: the experiment's file sets everything but --model and --data",
        ),
        (["--data", "/tmp"], "--data /tmp: is not one of these: 'shapes', a dataset of prepare"),
        (["--model", "/no/where"], "no such model folder"),
    ],
)
def test_errors_of_bad_options(model, tmp_path, capsys, options, message):
    output = tmp_path / "out"
    code, err, _ = command(capsys, "--model", model, "--output", output, *options)
    assert code == 2 and message in err and "Traceback" not in err and not output.exists()
