"""The benchmark on the shapes world: true edits pass, copies fail, runs go on; and its command."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax import evaluate
from ivid2vid_jax.data import shapes as world
from ivid2vid_jax.evaluation import shapes_benchmark, shapes_report
from ivid2vid_jax.experiments import engine_editors, guidance_grid
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.video import compare
from tests.support import browser, factory
from tests.support.command import run_command
from tests.synthesis.test_editors import ONE_LEVEL

KINDS = ("colour", "remove", "grey", "identity")


def wanted(count=3):
    return list(shapes_benchmark.specs(KINDS, count, 64, 4))


def perfect(truth):
    return truth.edited


def copy(truth):
    return truth.source


def test_the_clips_are_held_out_and_their_own():
    specs = wanted()
    assert [(kind, index) for kind, index, _ in specs] == [
        (kind, index) for kind in KINDS for index in range(3)
    ]
    assert all(
        world.held_out(spec.scene, spec.edit) and spec.edit.kind == kind for kind, _, spec in specs
    )
    assert len({spec.to_json() for _, _, spec in specs}) == len(specs)
    assert [spec for *_, spec in shapes_benchmark.specs(("grey",), 3, 64, 4)] == [
        spec for kind, _, spec in specs if kind == "grey"
    ]  # whatever else is asked


def test_true_edits_pass_and_copies_fail(tmp_path):
    items = shapes_benchmark.run_benchmark(
        {"truth": perfect, "copy": copy}, wanted(), tmp_path / "items.jsonl"
    )
    found = shapes_benchmark.report(items)
    everything = found["truth"]["all"]
    assert (
        everything["passed"]["share"] == 1
        and everything["count"] == 12
        and everything["flicker"]["mean"] == 0
    )
    assert everything["psnr"]["db"] == np.inf and everything["psnr"]["interval"] is None
    assert [found["copy"][kind]["passed"]["share"] for kind in KINDS] == [0, 0, 0, 1]
    assert (
        found["copy"]["colour"]["psnr_outside"]["db"] == np.inf
        and found["copy"]["colour"]["psnr"]["db"] < 40
    )
    assert "psnr_outside" not in found["copy"]["grey"]  # a style may change every pixel
    assert (
        everything["difference"]["mean"] == pytest.approx(everything["difference_truth"]["mean"])
        and everything["difference"]["mean"] > 0
    )


def test_numbers_of_an_item_are_what_they_say(tmp_path):
    """A clip one grey level too bright, and 3 brighter in every other frame."""
    _, _, spec = wanted()[0]
    truth = world.triplet(spec)
    edited = np.asarray(truth.edited, int) + 1
    edited[1::2] += 3
    item = shapes_benchmark.evaluate_edit(
        "x", "colour", 0, spec, truth, edited.clip(0, 255).astype(np.uint8)
    )
    assert item.error == pytest.approx((1 + 16) / 2) and item.error_outside == pytest.approx(
        (1 + 16) / 2, rel=0.05
    )
    static = np.repeat(truth.source[:1], 4, axis=0)
    assert shapes_benchmark.warping_errors(static, static, 255 - static) == [
        pytest.approx(0, abs=1e-6)
    ] * 2 and shapes_benchmark.warping_errors(static[:1], static[:1]) == [None]
    assert item.warping > item.warping_truth > 0, (
        "a clip that flickers does not follow the source's flow"
    )
    assert item.flicker == pytest.approx(3) and abs(item.difference - item.difference_truth) <= 3
    assert shapes_benchmark.psnr(np.array([item.error])) == pytest.approx(
        10 * np.log10(255**2 / 8.5)
    )


def test_nothing_moves_in_a_single_frame():
    (_, _, spec), *_ = shapes_benchmark.specs(("grey",), 1, 64, 1)
    truth = world.triplet(spec)
    item = shapes_benchmark.evaluate_edit("x", "grey", 0, spec, truth, truth.edited)
    assert item.passed and (item.flicker, item.difference, item.difference_truth, item.warping) == (
        0,
        0,
        0,
        None,
    )


def test_a_stopped_run_goes_on(tmp_path):
    file, calls = tmp_path / "items.jsonl", []

    def counting(truth):
        calls.append(truth.id)
        return truth.edited

    first = shapes_benchmark.run_benchmark({"truth": counting}, wanted(2), file)
    file.write_text(file.read_text()[:-20])  # killed within the last line
    seen = []
    again = shapes_benchmark.run_benchmark(
        {"truth": counting, "copy": copy},
        wanted(2),
        file,
        lambda item, *_: seen.append(item),
        lambda done, total: None,
    )
    assert len(calls) == len(first) + 1 and again[: len(first)] == first
    assert (
        len(seen) == 1 + len(first)
        and [item.editor for item in again] == ["truth"] * 8 + ["copy"] * 8
    )
    assert len(shapes_benchmark.read(file)) == 16


def test_the_table_holds_the_numbers(tmp_path):
    text = shapes_benchmark.table(
        shapes_benchmark.report(
            shapes_benchmark.run_benchmark(
                {"truth": perfect, "copy": copy}, wanted(), tmp_path / "items.jsonl"
            )
        )
    )
    lines = text.splitlines()
    assert lines[2].startswith(
        "| truth | 12 | 100.0% [76, 100] | 100.0% | 100.0% | exact | exact | 0.00 |"
    )
    assert lines[3].startswith("| copy | 12 | 25.0% [9, 53] |")
    assert [
        line.split(" | ")[0]
        for line in lines
        if line.startswith(tuple(f"| {kind}" for kind in KINDS))
    ] == [f"| {kind}" for kind in KINDS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny editor, never trained, whose temporal layers do something: no output projection is zero."""
    import flax

    from ivid2vid_jax.training import init_state, run_folder
    from ivid2vid_jax.weights.pipeline_folder import param_initializer, save_folder
    from ivid2vid_jax.weights.random_init import init_params
    from tests.support.tiny_run import tiny

    home = tmp_path_factory.mktemp("model")
    config, rng = tiny(home), np.random.default_rng(0)
    init_state.learn_vocabulary(config, lambda: run_folder.texts(config), home / "tokenizer")
    folder, params = init_state.from_scratch(config, home), {}
    for name, net in folder.models.items():
        flat = {
            path: leaf if leaf.any() else 0.05 * rng.standard_normal(leaf.shape, np.float32)
            for path, leaf in init_params(param_initializer(name, net), 0).items()
        }
        params[name] = flax.traverse_util.unflatten_dict(flat)
    save_folder(home / "editor", folder, params)
    return home / "editor"


def test_the_baseline_without_temporal_layers_sees_one_frame_at_a_time(trained):
    pipe = pipeline.load(trained)
    settings = pipeline.EditSettings(steps=2).resolve(pipe.folder)
    judged = shapes_benchmark.editors(pipe, settings)
    truth = world.triplet(world.sample_spec(0, 0, size=16, frames=2))
    shown = {name: judged[name](truth) for name in judged}
    truth.source[1] = 255 - truth.source[1]
    changed = {name: judged[name](truth) for name in judged}
    assert np.array_equal(shown["per frame"][0], changed["per frame"][0]) and not np.array_equal(
        shown["per frame"][1], changed["per frame"][1]
    )
    assert not np.array_equal(shown["model"][0], changed["model"][0])
    assert np.array_equal(changed["copy"], truth.source) and np.array_equal(
        shown["vae"], changed["vae"]
    )


def command(capsys, *words):
    return run_command(capsys, evaluate.EvaluateArgs, evaluate.run, *words)


def test_the_command_writes_a_report_and_goes_on(trained, tmp_path, capsys):
    output = tmp_path / "out"
    words = [
        "--model",
        trained,
        "--output",
        output,
        "--count",
        1,
        "--kinds",
        "colour",
        "grey",
        "--steps",
        2,
        "--sheets",
        1,
    ]
    code, _, out = command(capsys, *words)
    assert (
        code == 0
        and "| model | 2 |" in out
        and "| per frame | 2 |" in out
        and "| colour | 1 |" in out
    )
    assert (output / "report.md").read_text().strip() in out
    report = json.loads(
        (output / "report.json").read_text(), parse_constant=pytest.fail
    )  # a copy's PSNR is infinite: JSON has no word for it
    assert (
        report["settings"]["steps"] == 2
        and report["report"]["vae"]["all"]["count"] == 2
        and len(report["weights"]) == 3
    )
    assert (
        report["definitions"]["passed"]
        and report["report"]["copy"]["all"]["psnr_outside"]["db"] == "inf"
    )
    page = (output / "index.html").read_text()
    assert (
        page.count("data:image/gif") == 2
        and page.count("data:image/png") == 1
        and not re.search(r'(src|href)="(?!data:)', page)
    )
    assert (
        "<td>per frame</td><td>2</td>" in page
        and "<td>colour</td><td>1</td>" in page
        and "What the numbers are" in page
    )
    with open(output / "items.csv") as file:
        assert [(row["editor"], row["kind"]) for row in csv.DictReader(file)][:2] == [
            ("model", "colour"),
            ("model", "grey"),
        ]
    assert {path.name for path in (output / "clips").iterdir()} == {
        f"{kind}-0{end}" for kind in ("colour", "grey") for end in (".gif", "_sheet.png")
    }
    before = (output / "items.jsonl").read_text()
    assert (
        command(capsys, *words, "--shown", 1)[0] == 0
        and (output / "items.jsonl").read_text() == before
    )
    assert (output / "index.html").read_text().count("data:image/gif") == 1
    code, err, _ = command(capsys, *words, "--text-scale", 3)
    assert (
        code == 2
        and "another evaluation (settings differ)" in err
        and (output / "items.jsonl").read_text() == before
    )


def test_the_page_opens_in_a_browser(tmp_path):
    items, made = (
        shapes_benchmark.run_benchmark(
            {"model": perfect, "copy": copy}, wanted(1), tmp_path / "items.jsonl"
        ),
        tmp_path / "colour-0.gif",
    )
    compare.write_panels(made, [np.zeros((2, 16, 16, 3), np.uint8)] * 3, "black", 8)
    shown = shapes_report.clips(
        items, wanted(1), lambda item: tmp_path / f"{item.kind}-{item.index}.gif", 12
    )
    shapes_report.write(
        tmp_path, {"model": "<perfect>"}, items, shapes_benchmark.report(items), shown
    )
    assert len(shown) == 1 and shown[0][0].endswith("(colour: passed)")
    with browser.page() as page:
        page.goto((tmp_path / "index.html").as_uri())
        assert (
            browser.pictures(page) == [True] * 2
            and page.errors == []
            and page.get_by_text("<perfect>").is_visible()
        )


def test_a_grid_of_styles_alone_is_drawn_by_the_distance_to_the_truth(trained, tmp_path, capsys):
    """A style may change every pixel: nothing lies outside it."""
    output = tmp_path / "grid"
    words = [
        "--model",
        trained,
        "--output",
        output,
        "--count",
        1,
        "--kinds",
        "grey",
        "--steps",
        1,
        "--grid-text",
        1,
        "--grid-video",
        1,
    ]
    code, err, _ = command(capsys, *words)
    assert (
        code == 0
        and (output / "grid.png").is_file()
        and (output / "index.html").read_text().count("data:image/png") == 2
    )


def test_what_an_older_run_has_not_recorded_is_named(tmp_path):
    evaluate.claim(tmp_path / "out", {"model": "a", "old": 1})
    with pytest.raises(UserError, match=r"\(old differ\)"):
        evaluate.claim(tmp_path / "out", {"model": "a"})


def test_a_grid_of_guidance_scales_is_a_picture_and_names_the_best(trained, tmp_path, capsys):
    output = tmp_path / "grid"
    words = [
        "--model",
        trained,
        "--output",
        output,
        "--count",
        1,
        "--kinds",
        "colour",
        "--steps",
        1,
        "--grid-text",
        1,
        3,
        "--grid-video",
        1,
    ]
    code, _, out = command(capsys, *words)
    report = json.loads((output / "report.json").read_text())["report"]
    assert (
        code == 0 and set(report) == {"text 1, video 1", "text 3, video 1"} and "best: text " in out
    )
    assert report["text 1, video 1"]["all"]["psnr"] != report["text 3, video 1"]["all"]["psnr"]
    with Image.open(output / "grid.png") as picture:
        assert picture.width > 1000


def test_editors_of_captions_are_told_both_captions():
    truth, told = world.triplet(world.sample_spec(0, 0, size=16, frames=2)), []

    def edit(tasks):
        told.extend(tasks)
        return [[truth.edited]]

    assert np.array_equal(engine_editors.editor(edit, 7)(truth), truth.edited)
    assert (told[0].caption, told[0].edited_captions, told[0].seed) == (
        truth.source_caption,
        (truth.edited_caption,),
        7,
    )
    assert np.array_equal(told[0].clip, truth.source)
    with pytest.raises(UserError, match="not finite"):
        engine_editors.editor(lambda tasks: [[None]], 7)(truth)


def test_other_ways_of_editing_are_judged_on_the_same_tasks(trained, tmp_path, capsys):
    base, recipe, output = (
        factory.save(tmp_path / "base", factory.tiny(in_channels=4, **ONE_LEVEL)),
        tmp_path / "engine.py",
        tmp_path / "out",
    )
    recipe.write_text(
        f"from ivid2vid_jax.synthesis.config import *\nconfig = SynthesisConfig(base={str(base)!r}, shared_noise=SharedNoiseConfig(sampling=2))\n"
    )
    words = [
        "--model",
        trained,
        "--output",
        output,
        "--count",
        1,
        "--kinds",
        "grey",
        "--steps",
        1,
        "--editors",
        "copy",
        "shared_noise",
        "--engine",
        recipe,
    ]
    code, err, out = command(capsys, *words)
    assert code == 0, err
    assert "| copy | 1 |" in out and "| shared_noise | 1 |" in out
    record = json.loads((output / "run.json").read_text())
    assert record["shared_noise"]["sampling"] == 2 and len(record["base"]) == 3
    recipe.write_text(recipe.read_text().replace("sampling=2", "sampling=1"))
    assert "(shared_noise differ)" in command(capsys, *words)[1]


def test_the_best_point_passes_most_and_then_is_nearest():
    def found(share, db):
        return {"all": {"passed": {"share": share}, "psnr": {"db": db}}}

    points = [(1.0, 1.0), (2.0, 1.0), (2.0, 1.5)]
    report = dict(
        zip(
            map(guidance_grid.name, points),
            (found(0.5, 40), found(0.9, 20), found(0.9, 25)),
            strict=True,
        )
    )
    assert guidance_grid.best(report, points) == (2.0, 1.5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--grid-text", "2"], "--grid-text and --grid-video go together"),
        (["--kinds", "colur"], "--kinds colur: choose from"),
        (["--editors", "modle"], "'modle'"),
        (["--count", "0"], "--count 0"),
        (
            ["--metrics", "flow", "--identity"],
            "--metrics, --identity: the shapes world has its own judge",
        ),
        (["--shard", "0/2"], "--shard: the shapes world has its own judge"),
        (
            ["--experiment", "x.py", "--count", "3"],
            "--count: the experiment's file says all but --model and --data",
        ),
        (["--data", "/tmp"], "--data /tmp: is not one of these: 'shapes', a list"),
        (["--model", "/no/where"], "no such model folder"),
    ],
)
def test_bad_input_is_refused_by_name(trained, tmp_path, capsys, more, message):
    code, err, _ = command(capsys, "--model", trained, "--output", tmp_path / "out", *more)
    assert (
        code == 2 and message in err and "Traceback" not in err and not (tmp_path / "out").exists()
    )
