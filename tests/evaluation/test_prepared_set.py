"""`evaluate --data` on a dataset of prepare: its held-out rows, measured against the true edits."""

import json

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ivid2vid_jax import prepare
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.evaluation import make_edits
from tests.evaluation.edited_set import command, read_report


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "triplets"
    options = dict(count=16, size=32, frames=3, validation=0.3, workers=1)
    prepare.run(prepare.PrepareArgs(data="shapes", output=folder, **options))
    return folder


@pytest.fixture
def copies(monkeypatch):
    """--model is an editor that changes nothing; returns the instructions of its edits."""
    instructions = []

    def load_editor(args, record):
        return lambda clip, instruction: instructions.append(instruction) or clip

    monkeypatch.setattr(make_edits, "load_editor", load_editor)
    return instructions


def test_edits_of_held_out_rows_are_measured_against_the_true_edits(data, tmp_path, capsys, copies):
    """The numbers are scikit-image's, of the dataset's own pixels."""
    rows = list(open_dataset(data, "validation"))
    assert 1 < len(rows) < 16
    words = ("--model", "x", "--data", data, "--output", tmp_path / "report")
    code, err, out = command(capsys, *words, "--metrics", "psnr_target", "ssim_target", "psnr")
    assert code == 0, err
    assert copies == [row.instruction for row in rows]
    metrics = read_report(tmp_path / "report")["metrics"]
    source, edited = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("source", "edited")
    )
    expected = peak_signal_noise_ratio(edited, source)
    assert metrics["psnr_target"]["numbers"]["edited"]["mean"] == pytest.approx(expected)
    expected = np.mean(
        [
            structural_similarity(
                a, b, channel_axis=-1, gaussian_weights=True, use_sample_covariance=False
            )
            for a, b in zip(edited, source, strict=True)
        ]
    )
    assert metrics["ssim_target"]["numbers"]["edited"]["mean"] == pytest.approx(expected)
    assert metrics["psnr"]["numbers"]["edited"]["mean"] == "inf"
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<span>edit</span><span>true edit</span>" in page and rows[0].id in page
    assert "| PSNR to the true edit | dB |" in out

    assert command(capsys, *words)[0] == 0 and len(copies) == len(rows), "nothing is edited again"
    metrics = read_report(tmp_path / "report")["metrics"]
    masked = [row for row in rows if row.mask is not None and not row.mask.all()]
    assert 0 < metrics["psnr_outside"]["numbers"]["clips"] == len(masked)
    record = json.loads((tmp_path / "report" / "run.json").read_text())
    assert record["split"] == "validation"
    code, err, _ = command(capsys, *words, "--split", "train")
    assert code == 2 and "another evaluation (split differ" in err


def test_a_split_that_is_not_there_is_named(data, tmp_path, capsys, copies):
    words = ("--model", "x", "--output", tmp_path / "report", "--data", data)
    code, err, _ = command(capsys, *words, "--split", "test")
    assert code == 2 and "no split 'test'" in err and "--validation" in err
    assert not (tmp_path / "report").exists() and not copies
