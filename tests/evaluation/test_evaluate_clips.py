"""`evaluate` on clips on disk: the report and its page, going on, bad input with the rest still done, FID and KID in parts."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax import evaluate
from ivid2vid_jax.data.readers import ClipSettings
from ivid2vid_jax.evaluation import clip_metrics, evaluate_clips, inception, metrics
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask
from tests.evaluation.test_clip_sets import write_list
from tests.support.clips import moving, static
from tests.support.command import run_command


def save(folder, clip):
    folder.mkdir(parents=True)
    for i, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / f"{i:02d}.png")


@pytest.fixture
def world(tmp_path):
    """Three clips and their edits: a copy, a frozen one, a brighter one; the third has a mask and captions."""
    data, edited = tmp_path / "data", tmp_path / "edited"
    for i, edit in enumerate((moving(1, 0, 3, 32), static(3, 32), moving(1, 0, 3, 32) // 2 + 30)):
        save(data / f"clip{i}", moving(1, 0, 3, 32))
        save(edited / f"clip{i}", edit)
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(data / "mask.png")
    rows = [
        ["clip0", "keep <it>", "", "", ""],
        ["clip1", "freeze it", "", "", ""],
        ["clip2", "brighter", "mask.png", "a", "b"],
    ]
    write_list(data, rows, ("video", "instruction", "mask", "source_caption", "edited_caption"))
    return data, edited, tmp_path / "out"


class Features:
    """Stands for Inception: the mean colour of four quarters."""

    sha256 = "0" * 64
    calls = 0

    def features(self, frames):
        Features.calls += 1
        return (
            frames.reshape(len(frames), 2, 16, 2, 16, 3)
            .mean((2, 4))
            .reshape(len(frames), 12)
            .astype(np.float32)
        )


def command(capsys, *words):
    return run_command(capsys, evaluate.EvaluateArgs, evaluate.run, *words)


def test_the_command_writes_json_csv_and_one_page(world, capsys):
    data, edited, output = world
    code, err, out = command(capsys, "--edited", edited, "--data", data, "--output", output)
    assert code == 0, err
    report = json.loads((output / "report.json").read_text())
    found = report["metrics"]
    assert report["edits"] == report["judged"] == 3 and set(found) == {
        name for name, metric in metrics.METRICS.items() if not metric.needs
    }
    entry = found["frame_difference"]
    values = [
        metrics.measure(metrics.Pair(moving(1, 0, 3, 32), edit), ["frame_difference"])[0][
            "frame_difference"
        ]
        for edit in (moving(1, 0, 3, 32), static(3, 32), moving(1, 0, 3, 32) // 2 + 30)
    ]
    assert (
        entry["numbers"]["clips"] == 3
        and entry["numbers"]["frames"] == 9
        and entry["numbers"]["gap"]["mean"] == pytest.approx(np.mean([v["gap"] for v in values]))
    )
    assert (
        entry["definition"]
        and entry["reference"]
        and entry["weights"] is None
        and entry["numbers"]["edited"]["interval"][0] == 0
    )
    assert found["psnr_outside"]["numbers"]["clips"] == 1 and found["psnr_outside"]["without"] == {
        "the set gives no mask of the edit": 2
    }
    with open(output / "items.csv") as file:
        rows = list(csv.DictReader(file))
    assert (
        [row["id"] for row in rows] == ["clip0", "clip1", "clip2"]
        and rows[0]["psnr.edited"] == "inf"
        and float(rows[1]["frame_difference.edited"]) == 0
    )
    page = (output / "index.html").read_text()
    assert (
        page.count("data:image/webp") == 3
        and page.count("data:image/png") == 1
        and "keep &lt;it&gt;" in page
        and not re.search(r'(src|href)="(?!data:)', page)
    )
    assert (
        "| Frame differencing | grey levels |" in out
        and "judged 3 of 3 edits" in out
        and not list(output.glob(".*"))
    )


def test_a_stopped_run_goes_on_and_measures_only_what_is_missing(world, capsys, monkeypatch):
    data, edited, output = world
    words = ("--edited", edited, "--data", data, "--output", output, "--shown", 0, "--metrics")
    assert command(capsys, *words, "ssim")[0] == 0
    items = output / "items-0.jsonl"
    before = items.read_text()
    items.write_text(before[:-30])  # killed within the last line
    asked, real = [], evaluate_clips.clips.measure
    monkeypatch.setattr(
        clip_metrics, "measure", lambda pair, names: asked.append(tuple(names)) or real(pair, names)
    )
    assert (
        command(capsys, *words, "ssim")[0] == 0
        and asked == [("ssim",)]
        and items.read_text() == before
    )
    assert command(capsys, *words, "ssim", "psnr")[0] == 0 and asked[1:] == [("psnr",)] * 3
    save(edited / "new", static(3, 32))
    (edited / "clip1").rename(edited / "old")
    (edited / "new").rename(edited / "clip1")  # another edit: measured anew
    assert command(capsys, *words, "ssim", "psnr")[0] == 0 and asked[4:] == [("ssim", "psnr")]
    code, err, _ = command(capsys, *words, "ssim", "--clip-size", 16)
    assert code == 2 and "another evaluation (clips differ)" in err


def test_shards_add_up_to_the_whole(world, capsys):
    data, edited, output = world
    words = ("--edited", edited, "--data", data, "--shown", 0, "--metrics", "ssim", "flow")
    for shard in ("0/2", "1/2"):
        code, _, out = command(capsys, *words, "--output", output, "--shard", shard)
        assert code == 0
    assert (
        command(capsys, *words, "--output", output.with_name("whole"))[0] == 0
        and "judged 3 of 3" in out
    )
    split, whole = (
        json.loads((folder / "report.json").read_text())["metrics"]
        for folder in (output, output.with_name("whole"))
    )
    assert split == whole and len(list(output.glob("items-*.jsonl"))) == 2


def test_shards_that_run_together_have_the_whole_report(world, capsys, monkeypatch):
    """The other process judges its clip while this one is at work, and one more while this one writes."""
    data, edited, output = world
    words = (
        "--edited",
        edited,
        "--data",
        data,
        "--output",
        output,
        "--shown",
        0,
        "--metrics",
        "ssim",
    )
    others, write = (
        [
            clip_metrics.ClipItem(f"clip{i}", "", (3, 32, 32), {"ssim": {"edited": 0.5}})
            for i in (1, 2)
        ],
        evaluate_clips.report.write,
    )

    def other_writes(number):
        with open(output / f"items-{number}.jsonl", "a") as out:
            out.write(json.dumps(clip_metrics.dataclasses.asdict(others[number - 1])) + "\n")

    def measure(pair, names):
        other_writes(1)
        return {"ssim": {"edited": 0.5}}, {}

    def slow(*args):
        write(*args)
        if not (output / "items-2.jsonl").exists():
            other_writes(2)

    monkeypatch.setattr(clip_metrics, "measure", measure)
    monkeypatch.setattr(evaluate_clips.report, "write", slow)
    assert command(capsys, *words, "--shard", "0/3")[0] == 0
    assert (
        json.loads((output / "report.json").read_text())["metrics"]["ssim"]["numbers"]["clips"] == 3
    )


def test_a_corrected_caption_is_judged_anew(world, capsys, monkeypatch):
    data, edited, output = world
    asked, real = [], clip_metrics.measure
    monkeypatch.setattr(
        clip_metrics,
        "measure",
        lambda pair, names: asked.append(pair.captions) or real(pair, names),
    )
    words = (
        "--edited",
        edited,
        "--data",
        data,
        "--output",
        output,
        "--shown",
        0,
        "--metrics",
        "ssim",
    )
    assert command(capsys, *words)[0] == 0
    (data / "instructions.csv").write_text(
        (data / "instructions.csv").read_text().replace(",a,b", ",a,c")
    )
    assert command(capsys, *words)[0] == 0 and asked[3:] == [("a", "c")]


def save_tiny_clip(folder):
    from tests.models.test_clip import VISION_TINY, save_clip
    from tests.support import factory

    save_clip(folder, factory.TEXT_TINY, VISION_TINY, 40)
    return folder


def test_weighted_metrics_are_added_later(world, capsys, tmp_path, monkeypatch):
    """CLIP after the others, then Inception without CLIP: the folder remembers both, and another CLIP is refused."""
    data, edited, output = world
    monkeypatch.setattr(inception, "Inception", lambda file: Features())
    words = ("--edited", edited, "--data", data, "--output", output, "--shown", 0)
    clip = save_tiny_clip(tmp_path / "clip")
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0
    assert command(capsys, *words, "--metrics", "ssim", "clip_frames", "--clip-model", clip)[0] == 0
    code, err, _ = command(capsys, *words, "--metrics", "kid", "--inception", data / "w.pth")
    assert code == 0, err
    record = json.loads((output / "run.json").read_text())
    assert set(record["weights"]) == {"clip", "inception"} and record["arithmetic"] == {
        "clip": "float32"
    }
    code, err, _ = command(
        capsys, *words, "--metrics", "clip_frames", "--clip-model", clip, "--dtype", "bfloat16"
    )
    assert code == 2 and "another evaluation (arithmetic differ)" in err
    weights = clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    code, err, _ = command(capsys, *words, "--metrics", "clip_frames", "--clip-model", clip)
    assert code == 2 and "another evaluation (weights differ)" in err


def test_clip_scores_do_not_hang_on_the_machine(world, capsys, tmp_path, monkeypatch):
    """As on an accelerator, where "auto" is bfloat16."""
    from ivid2vid_jax.evaluation import clip_scores
    from ivid2vid_jax.parallel import runtime

    monkeypatch.setattr(runtime.jax, "default_backend", lambda: "gpu")
    args = evaluate.EvaluateArgs(clip_model=str(save_tiny_clip(tmp_path / "clip")))
    found, _, left = evaluate_clips.load_metric_models(args, ["clip_frames"])
    assert (
        found.dtype == np.float32
        and not left
        and clip_scores.load_clip(args.clip_model).dtype == np.float32
    )
    assert (
        evaluate_clips.load_metric_models(
            evaluate.EvaluateArgs(clip_model=args.clip_model, dtype="bfloat16"), ["clip_frames"]
        )[0].dtype
        == clip_scores.jnp.bfloat16
    )


@pytest.mark.parametrize("wrong", ["missing", "another file"])
def test_weights_that_cannot_be_had_leave_their_metrics_out(world, capsys, tmp_path, wrong):
    data, edited, output = world
    file = tmp_path / "w.pth"
    if wrong != "missing":
        file.write_bytes(b"another file")
    said = "no such file; fetch Inception" if wrong == "missing" else "its sha256 is"
    words = (
        "--edited",
        edited,
        "--data",
        data,
        "--output",
        output,
        "--inception",
        file,
        "--clip-model",
        tmp_path / "none",
        "--shown",
        0,
    )
    code, err, out = command(capsys, *words, "--metrics", "ssim", "clip_text", "fid", "kid")
    found = json.loads((output / "report.json").read_text())["metrics"]
    assert (
        code == 2
        and "clip_text, fid, kid left out: " in err
        and said in err
        and "hf download openai/clip-vit-large-patch14" in err
    )
    assert (
        found["ssim"]["numbers"]["clips"] == 3
        and said in found["fid"]["note"]
        and "no such model folder" in found["clip_text"]["note"]
    )
    assert (
        said in (output / "index.html").read_text()
        and "| SSIM to the source |" in out
        and "judged 3 of 3" in out
    )
    code, err, _ = command(
        capsys, *words[:6], "--inception", file, "--metrics", "fid", "--output", tmp_path / "other"
    )
    assert code == 2 and said in err and not (tmp_path / "other").exists(), (
        "nothing would be left to do"
    )


def test_clips_of_unlike_length_are_told(world, capsys):
    data, edited, output = world
    for folder, frames in ((data, 16), (edited, 15)):
        save(folder / "long", static(frames, 32))
    write_list(data, [["clip0", "go"], ["long", "go"]])
    code, _, out = command(
        capsys, "--edited", edited, "--data", data, "--output", output, "--metrics", "ssim"
    )
    note = "the edited clip has 15 frames, the source 16: the first 15 are compared"
    assert code == 0 and json.loads((output / "report.json").read_text())["unlike_lengths"] == {
        "long": note
    }
    assert (
        note in (output / "items.csv").read_text()
        and note in (output / "index.html").read_text()
        and "1 of clips of unlike length" in out
    )


def test_types_of_edit_are_told_apart(world, capsys):
    data, edited, output = world
    write_list(
        data,
        [["clip0", "go", "style"], ["clip1", "go", "object"], ["clip2", "go", "object"]],
        ("video", "instruction", "edit_type"),
    )
    assert (
        command(
            capsys, "--edited", edited, "--data", data, "--output", output, "--metrics", "ssim"
        )[0]
        == 0
    )
    found = json.loads((output / "report.json").read_text())
    assert {kind: each["ssim"]["clips"] for kind, each in found["by_edit_type"].items()} == {
        "style": 1,
        "object": 2,
    }
    assert (
        found["by_edit_type"]["style"]["ssim"]["edited"]["mean"] == 1
        and "<th>object</th>" in (output / "index.html").read_text()
    )


def test_bad_clips_are_named_and_the_rest_is_judged(world, capsys, caplog):
    data, edited, output = world
    (data / "broken.mp4").write_bytes(b"not a video")
    save(data / "long", static(9, 32))
    for i in range(9):
        Image.fromarray(static(1, 32)[0]).save(edited / "clip0" / f"x{i}.png")  # now of 12 frames
    save(edited / "long", static(9, 32)[:, :, :20])
    save(edited / "broken", static(2, 32))
    save(data / "still", static(1, 32))
    save(edited / "still", static(1, 32))
    save(data / "unedited", static(2, 32))
    rows = [
        [name, "go"]
        for name in ("clip0", "clip1", "broken.mp4", "long", "missing", "still", "unedited")
    ]
    write_list(data, rows)
    code, _, out = command(capsys, "--edited", edited, "--data", data, "--output", output)
    report = json.loads((output / "report.json").read_text())
    assert (
        code == 0
        and "judged 2 of 7 edits, 5 could not be" in out
        and set(report["not_judged"]) == {"clip0", "broken", "long", "missing", "unedited"}
    )
    said = report["not_judged"]
    assert (
        "the source has 3 frames and the edited clip 12" in said["clip0"]
        and "is not a video that can be read" in said["broken"]
    )
    assert (
        "their shapes differ" in said["long"]
        and "missing: no such file" in said["missing"]
        and "instructions.csv row 6" in said["missing"]
    )
    assert "no edited clip" in said["unedited"]
    assert (
        report["metrics"]["flow"]["without"] == {"a clip of 1 frame has no motion: 2 are needed": 1}
        and report["metrics"]["flow"]["numbers"]["clips"] == 1
    )
    assert "no edited clip" in (output / "index.html").read_text()


def test_fid_and_kid_in_parts(world, capsys, monkeypatch):
    data, edited, output = world
    weights = data / "w.pth"
    weights.touch()
    monkeypatch.setattr(inception, "Inception", lambda file: Features())
    words = (
        "--edited",
        edited,
        "--data",
        data,
        "--output",
        output,
        "--inception",
        weights,
        "--metrics",
        "fid",
        "kid",
    )
    Features.calls = 0
    assert command(capsys, *words)[0] == 0 and Features.calls == 6
    found = json.loads((output / "report.json").read_text())["metrics"]
    rows = [
        np.concatenate([Features().features(clip) for clip in side])
        for side in zip(
            (moving(1, 0, 3, 32), moving(1, 0, 3, 32)),
            (static(3, 32), moving(1, 0, 3, 32)),
            (moving(1, 0, 3, 32) // 2 + 30, moving(1, 0, 3, 32)),
            strict=True,
        )
    ]
    from scipy import linalg

    A, B = (np.cov(each.astype(float), rowvar=False) for each in rows)
    wanted = (
        np.square(rows[0].mean(0, float) - rows[1].mean(0, float)).sum()
        + np.trace(A + B)
        - 2 * np.sqrt(np.maximum(linalg.eigvals(A @ B).real, 0)).sum()
    )
    assert found["fid"]["numbers"]["edited"] == pytest.approx(wanted, rel=1e-3) and found["fid"][
        "weights"
    ] == {"w.pth": "0" * 64}
    assert (
        "9 frames are too few for the rank of a 12 x 12 covariance" in found["fid"]["note"]
        and found["kid"]["numbers"]["edited_frames"] == 9
    )
    Features.calls = 0
    assert command(capsys, *words)[0] == 0 and Features.calls == 0  # kept


def test_a_source_of_several_edits_counts_once(world):
    data, edited, output = world
    save(edited / "again", static(3, 32))
    tasks = [EvaluationTask(id, data / "clip0", "x") for id in ("clip0", "again")]
    items = list(
        clip_metrics.ClipEvaluator(("fid",), edited, output, ClipSettings(), None, Features())
        .run(tasks)
        .values()
    )
    found = clip_metrics.distances(items, output, ["kid"])[0]["kid"]
    assert (found["edited_frames"], found["source_frames"]) == (6, 3) and found[
        "standard_error_of_subsets"
    ] >= 0


def test_edits_of_one_source_are_no_independent_clips():
    """Four sources with ten edits each that are alike: as uncertain as the four, not as forty; one source tells no interval."""
    values = np.repeat([1.0, 2, 3, 4], 10)
    items = [
        clip_metrics.ClipItem(str(i), "", (1, 8, 8), {"ssim": {"edited": value}})
        for i, value in enumerate(values)
    ]
    sources = {item.id: f"clip{i // 10}" for i, item in enumerate(items)}
    found = clip_metrics.summary(items, ["ssim"], sources)["ssim"]
    four = clip_metrics.summary(items[::10], ["ssim"], sources)["ssim"]
    assert (
        (found["clips"], found["sources"], found["frames"]) == (40, 4, 40)
        and found["edited"] == four["edited"]
        and found["edited"]["mean"] == 2.5
    )
    assert found["edited"]["interval"][0] < 1.6 and found["edited"]["interval"][1] > 3.4
    assert clip_metrics.summary(items[:10], ["ssim"], sources)["ssim"]["edited"]["interval"] is None


def test_nan_features_leave_the_rest(world, capsys, monkeypatch):
    class Broken(Features):
        def features(self, frames):
            raise clip_metrics.UserError("Inception's features of 3 of 3 frames are not finite")

    data, edited, output = world
    monkeypatch.setattr(inception, "Inception", lambda file: Broken())
    code, _, out = command(
        capsys,
        "--edited",
        edited,
        "--data",
        data,
        "--output",
        output,
        "--inception",
        data / "w.pth",
        "--metrics",
        "fid",
        "kid",
        "ssim",
    )
    found = json.loads((output / "report.json").read_text())["metrics"]
    assert (
        code == 0
        and found["fid"]["without"] == {"Inception's features of 3 of 3 frames are not finite": 3}
        and found["ssim"]["numbers"]["clips"] == 3
    )
    assert found["fid"]["note"] == "no clip has features" and "judged 3 of 3" in out


def test_a_models_edits_are_made_once(world, capsys, monkeypatch):
    data, _, output = world
    made = []

    def editor(args, record):
        record["model"] = "negative"
        return lambda clip, instruction: made.append(instruction) or 255 - clip

    monkeypatch.setattr(evaluate_clips, "editor", editor)
    words = (
        "--model",
        "x",
        "--data",
        data,
        "--output",
        output,
        "--metrics",
        "frame_difference",
        "psnr",
    )
    assert command(capsys, *words)[0] == 0 and made == ["keep <it>", "freeze it", "brighter"]
    assert command(capsys, *words)[0] == 0 and len(made) == 3
    report = json.loads((output / "report.json").read_text())
    assert report["model"] == "negative" and report["metrics"]["frame_difference"]["numbers"][
        "gap"
    ]["mean"] == pytest.approx(0, abs=1e-6)
    assert (
        command(
            capsys,
            *words[:4],
            "--output",
            output.with_name("same"),
            "--metrics",
            "psnr",
            "--identity",
        )[0]
        == 0
        and made[3:] == ["change nothing"] * 3
    )


def test_other_instructions_and_sources_are_edited_anew(world, capsys, monkeypatch):
    data, _, output = world
    made = []
    monkeypatch.setattr(
        evaluate_clips,
        "editor",
        lambda args, record: lambda clip, instruction: made.append(instruction) or 255 - clip,
    )
    words = ("--model", "x", "--data", data, "--output", output, "--shown", 0, "--metrics", "psnr")
    assert command(capsys, *words)[0] == 0
    (data / "instructions.csv").write_text(
        (data / "instructions.csv").read_text().replace("freeze it", "melt it")
    )
    assert command(capsys, *words)[0] == 0 and made[3:] == ["melt it"]
    Image.fromarray(static(1, 32)[0]).save(data / "clip2" / "02.png")
    assert (
        command(capsys, *words)[0] == 0
        and made[4:] == ["brighter"]
        and not list(output.glob("**/.*"))
    )
    assert len(list((output / "edited" / "clip2").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--kinds", "grey", "--grid-text", "1"],
            "--kinds, --grid-text: these are for the shapes world",
        ),
        (["--editors", "model"], "--editors: these are for the shapes world"),
        (["--steps", "5"], "--steps: --edited judges finished edits"),
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
def test_bad_input_is_refused_by_name(world, capsys, words, message):
    data, edited, output = world
    code, err, _ = command(capsys, "--edited", edited, "--data", data, "--output", output, *words)
    assert code == 2 and message in err and "Traceback" not in err and not output.exists()
