"""`evaluate` on clips on disk: the report and its page, bad input, edits by a model."""

import csv
import dataclasses
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax import evaluate
from ivid2vid_jax.evaluation import clip_scores, evaluate_clips, make_edits
from ivid2vid_jax.evaluation.metrics import METRICS, Pair, measure
from ivid2vid_jax.parallel import runtime
from tests.evaluation.edited_set import EDITS, SOURCE, command, read_report, replace_in, save
from tests.evaluation.test_clip_sets import write_list
from tests.support.clips import static


def test_the_command_writes_json_csv_and_one_page(world, capsys):
    data, edited, output = world
    code, err, out = command(capsys, "--edited", edited, "--data", data, "--output", output)
    assert code == 0, err
    report = read_report(output)
    metrics = report["metrics"]
    assert report["edits"] == report["judged"] == 3
    available = {name for name, metric in METRICS.items() if not metric.needs}
    assert set(metrics) == available - {"psnr_target", "ssim_target"}

    entry = metrics["frame_difference"]
    name = "frame_difference"
    gaps = [measure(Pair(SOURCE, edit), [name])[0][name]["gap"] for edit in EDITS]
    assert (entry["numbers"]["clips"], entry["numbers"]["frames"]) == (3, 9)
    assert entry["numbers"]["gap"]["mean"] == pytest.approx(np.mean(gaps))
    assert entry["numbers"]["edited"]["interval"][0] == 0
    assert entry["definition"] and entry["reference"] and entry["weights"] is None
    outside = metrics["psnr_outside"]
    assert outside["numbers"]["clips"] == 1
    assert outside["without"] == {"the set gives no mask of the edit": 2}

    with (output / "items.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["clip0", "clip1", "clip2"]
    assert rows[0]["psnr.edited"] == "inf" and float(rows[1]["frame_difference.edited"]) == 0

    page = (output / "index.html").read_text()
    assert page.count("data:image/webp") == 3 and page.count("data:image/png") == 1
    assert "keep &lt;it&gt;" in page and not re.search(r'(src|href)="(?!data:)', page)
    assert "| Frame differencing | grey levels |" in out and "evaluated 3 of 3 edits" in out
    assert not list(output.glob(".*"))


def test_metrics_with_weights_are_added_later(world, words, capsys, tiny_clip, fake_inception):
    """CLIP after the others, then Inception without CLIP: run.json keeps both.

    Other weights or another precision of CLIP are refused.
    """
    data, _, output = world
    clip_frames = ("--metrics", "clip_frames", "--clip-model", tiny_clip)
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0
    with_clip = ("--metrics", "ssim", "clip_frames", "--clip-model", tiny_clip)
    assert command(capsys, *words, *with_clip)[0] == 0
    code, err, _ = command(capsys, *words, "--metrics", "kid", "--inception", data / "w.pth")
    assert code == 0, err
    record = json.loads((output / "run.json").read_text())
    assert set(record["weights"]) == {"clip", "inception"}
    page = (output / "index.html").read_text()
    for name in ("ssim", "clip_frames", "kid"):
        entry = read_report(output)["metrics"][name]
        assert entry["numbers"]["clips"] == 3 and f'<tr id="{name}">' in page
        assert entry["weights"] == record["weights"].get(METRICS[name].needs)
    assert record["arithmetic"] == {"clip": "float32"}
    code, err, _ = command(capsys, *words, *clip_frames, "--dtype", "bfloat16")
    assert code == 2 and "another evaluation (arithmetic differ)" in err
    weights = tiny_clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    code, err, _ = command(capsys, *words, *clip_frames)
    assert code == 2 and "another evaluation (weights differ)" in err


def test_earlier_metrics_of_a_changed_clip_are_missing(world, words, capsys):
    """The report keeps them for the other clips, and says which command measures the changed."""
    _, edited, output = world
    assert command(capsys, *words, "--metrics", "ssim", "psnr_outside")[0] == 0
    shutil.rmtree(edited / "clip1")
    save(edited / "clip1", EDITS[0])
    assert command(capsys, *words, "--metrics", "psnr")[0] == 0
    metrics = read_report(output)["metrics"]
    assert metrics["psnr"]["numbers"]["clips"] == 3
    assert metrics["ssim"]["numbers"]["clips"] == 2
    assert "not measured for 1 clips" in metrics["ssim"]["note"]
    assert "run again with --metrics ssim" in metrics["ssim"]["note"]
    assert metrics["psnr_outside"]["without"] == {"the set gives no mask of the edit": 1}


def test_results_come_first_and_hashes_last(world, words, capsys, tiny_clip):
    """Clips are labelled and have their ids; settings and hashes are folded."""
    output = world[2]
    options = ("--metrics", "clip_frames", "--clip-model", tiny_clip, "--shown", 2)
    assert command(capsys, *words, *options)[0] == 0
    page = (output / "index.html").read_text()
    digest = json.loads((output / "run.json").read_text())["weights"]["clip"]["model.safetensors"]
    assert page.index("<h2>Metrics</h2>") < page.index("<h2>Clips</h2>") < page.index("<details>")
    assert page.index(digest[:12]) > page.index("<details>")
    assert "<span>source</span><span>edit</span>" in page and '<p class="id">clip0</p>' in page


def test_clip_scores_do_not_depend_on_the_machine(tiny_clip, monkeypatch):
    """On an accelerator "auto" is bfloat16, except for CLIP scores."""
    monkeypatch.setattr(runtime.jax, "default_backend", lambda: "gpu")
    args = evaluate.EvaluateArgs(clip_model=str(tiny_clip))
    models = evaluate_clips.load_metric_models(args, ["clip_frames"])
    assert models.clip.dtype == np.float32 and not models.errors
    assert clip_scores.load_clip(args.clip_model).dtype == np.float32
    args = dataclasses.replace(args, dtype="bfloat16")
    models = evaluate_clips.load_metric_models(args, ["clip_frames"])
    assert models.clip.dtype == jnp.bfloat16


@pytest.mark.parametrize("case", ["missing", "another file"])
def test_metrics_without_weights_are_left_out(world, words, capsys, tmp_path, case):
    output = world[2]
    file = tmp_path / "w.pth"
    message = "no such file; fetch Inception"
    if case == "another file":
        file.write_bytes(b"another file")
        message = "its sha256 is"
    code, err, out = command(
        capsys,
        *words,
        *("--inception", file, "--clip-model", tmp_path / "none"),
        *("--metrics", "ssim", "clip_text", "fid", "kid"),
    )
    assert code == 2 and "clip_text, fid, kid left out: " in err and message in err
    assert "hf download openai/clip-vit-large-patch14" in err
    metrics = read_report(output)["metrics"]
    assert metrics["ssim"]["numbers"]["clips"] == 3 and message in metrics["fid"]["note"]
    assert "no such model folder" in metrics["clip_text"]["note"]
    assert message in (output / "index.html").read_text()
    assert "| SSIM to the source |" in out and "evaluated 3 of 3" in out

    other = tmp_path / "other"
    only_fid = ("--inception", file, "--metrics", "fid", "--output", other)
    code, err, _ = command(capsys, *words, *only_fid)
    assert code == 2 and message in err and not other.exists(), "no metric is left"


def test_clips_of_different_length_get_a_note(world, words, capsys):
    data, edited, output = world
    for folder, frames in ((data, 16), (edited, 15)):
        save(folder / "long", static(frames, 32))
    write_list(data, [["clip0", "go"], ["long", "go"]])
    code, _, out = command(capsys, *words, "--metrics", "ssim")
    note = "the edited clip has 15 frames, the source 16: the first 15 are compared"
    assert code == 0 and read_report(output)["unlike_lengths"] == {"long": note}
    assert (
        note in (output / "items.csv").read_text() and note in (output / "index.html").read_text()
    )
    assert "1 with clips of different length" in out


def test_metrics_by_edit_type(world, words, capsys):
    data, _, output = world
    rows = [["clip0", "go", "style"], ["clip1", "go", "object"], ["clip2", "go", "object"]]
    write_list(data, rows, ("video", "instruction", "edit_type"))
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0
    types = read_report(output)["by_edit_type"]
    assert {name: summary["ssim"]["clips"] for name, summary in types.items()} == {
        "style": 1,
        "object": 2,
    }
    assert types["style"]["ssim"]["edited"]["mean"] == 1
    assert "<th>object</th>" in (output / "index.html").read_text()


def test_unreadable_clips_are_reported_and_the_rest_is_evaluated(world, words, capsys):
    data, edited, output = world
    (data / "broken.mp4").write_bytes(b"not a video")
    save(data / "long", static(9, 32))
    for i in range(9):
        Image.fromarray(static(1, 32)[0]).save(edited / "clip0" / f"x{i}.png")  # 12 frames now
    save(edited / "long", static(9, 32)[:, :, :20])
    save(edited / "broken", static(2, 32))
    save(data / "still", static(1, 32))
    save(edited / "still", static(1, 32))
    save(data / "unedited", static(2, 32))
    names = ("clip0", "clip1", "broken.mp4", "long", "missing", "still", "unedited")
    write_list(data, [[name, "go"] for name in names])
    code, _, out = command(capsys, *words)
    assert code == 0 and "evaluated 2 of 7 edits, 5 not readable" in out
    report = read_report(output)
    errors = report["not_judged"]
    assert set(errors) == {"clip0", "broken", "long", "missing", "unedited"}
    assert "the source has 3 frames and the edited clip 12" in errors["clip0"]
    assert "is not a video that can be read" in errors["broken"]
    assert "their shapes differ" in errors["long"]
    assert "missing: no such file" in errors["missing"]
    assert "instructions.csv row 6" in errors["missing"]
    assert "no edited clip" in errors["unedited"]
    flow = report["metrics"]["flow"]
    assert flow["without"] == {"a clip of 1 frame has no motion: 2 are needed": 1}
    assert flow["numbers"]["clips"] == 1
    assert "no edited clip" in (output / "index.html").read_text()


@pytest.fixture
def negative(monkeypatch):
    """--model is an editor that inverts clips; returns the instructions of all its edits."""
    instructions = []

    def load_editor(args, record):
        record["model"] = "negative"
        return lambda clip, instruction: instructions.append(instruction) or 255 - clip

    monkeypatch.setattr(make_edits, "load_editor", load_editor)
    return instructions


def test_a_models_edits_are_made_once(world, capsys, negative):
    data, _, output = world
    model = ("--model", "x", "--data", data)
    words = (*model, "--output", output, "--metrics", "frame_difference", "psnr")
    assert command(capsys, *words)[0] == 0
    assert negative == ["keep <it>", "freeze it", "brighter"]
    assert command(capsys, *words)[0] == 0 and len(negative) == 3
    report = read_report(output)
    gap = report["metrics"]["frame_difference"]["numbers"]["gap"]
    assert report["model"] == "negative" and gap["mean"] == pytest.approx(0, abs=1e-6)
    identity = ("--output", output.with_name("same"), "--metrics", "psnr", "--identity")
    assert command(capsys, *model, *identity)[0] == 0
    assert negative[3:] == ["change nothing"] * 3


def test_changed_instructions_and_sources_are_edited_again(world, capsys, negative):
    data, _, output = world
    words = ("--model", "x", "--data", data, "--output", output, "--shown", 0, "--metrics", "psnr")
    assert command(capsys, *words)[0] == 0
    replace_in(data / "instructions.csv", "freeze it", "melt it")
    assert command(capsys, *words)[0] == 0 and negative[3:] == ["melt it"]
    Image.fromarray(static(1, 32)[0]).save(data / "clip2" / "02.png")
    assert command(capsys, *words)[0] == 0 and negative[4:] == ["brighter"]
    assert not list(output.glob("**/.*"))
    assert len(list((output / "edited" / "clip2").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--kinds", "grey", "--grid-text", "1"],
            "--kinds, --grid-text: these are for the shapes world",
        ),
        (["--editors", "model"], "--editors: these are for the shapes world"),
        (["--steps", "5"], "--steps: --edited evaluates finished edits"),
        (
            ["--metrics", "fid", "--inception", "no.pth"],
            "no.pth: no such file; fetch Inception's weights",
        ),
        (["--metrics", "flw"], "--metrics flw: choose from frame_difference"),
        (["--metrics", "clip_text"], "--metrics clip_text needs --clip-model"),
        (["--metrics", "fid"], "--metrics fid needs --inception pt_inception"),
        (["--shard", "2/2"], "--shard 2/2 must be I/N"),
        (["--clip-size", "2"], "--clip-size 2 must be between 8"),
        (["--model", "x"], "choose one"),
        (["--against", "/no/where"], "/no/where: no such folder of edited clips"),
        (["--data", "shapes"], "--edited needs --data"),
        (["--data", "/no/set"], "/no/set: no such file"),
    ],
)
def test_errors_of_bad_options(world, capsys, words, message):
    data, edited, output = world
    code, err, _ = command(capsys, "--edited", edited, "--data", data, "--output", output, *words)
    assert code == 2 and message in err and "Traceback" not in err and not output.exists()
