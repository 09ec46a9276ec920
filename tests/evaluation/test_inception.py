"""Inception features and FID against pytorch-fid, with the same random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import inception
from ivid2vid_jax.evaluation.distribution_distances import Moments, frechet_distance
from tests.support import inception_reference as reference
from tests.support.clips import moving

COLUMNS = [0, 2, 3, 4]  # features that are not always 0
# Of the last of frames(), by pytorch-fid 0.3.0; tests/support/inception_reference.py renews them.
GOLDEN_FEATURES = [2.440564, 0.0, 0.230736, 0.209476, 1.653322, 3.300017]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / inception.FILE
    torch.save(reference.random_weights(), file)
    return file


@pytest.fixture
def net(weights, monkeypatch):
    monkeypatch.setattr(inception, "SHA256", inception.file_sha256(weights))
    return inception.Inception(weights)


def save(folder, frames):
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i:03d}.png")
    return sorted(folder.iterdir())


def moments(rows) -> Moments:
    result = Moments.of(rows.shape[1])
    result.add(rows[:2])
    result.add(rows[2:])
    return result


def frames() -> np.ndarray:
    """Frames of an odd shape."""
    return moving(1, 0, 3, 40)[:, :, :33]


def sets() -> dict[str, np.ndarray]:
    return {
        "a": moving(1, 0, 12, 40),
        "b": np.concatenate([moving(2, 1, 6, 40, seed=3), moving(0, 3, 6, 40, seed=4)]),
    }


def test_features_equal_pytorch_fids(net, weights, tmp_path):
    """Within 1e-4 of the largest feature."""
    library, score = reference.pytorch_fid()
    with reference.with_weights(torch.load(weights)):
        files = save(tmp_path / "frames", frames())
        model = library.InceptionV3([3])
        expected = score.get_activations(files, model, batch_size=3, num_workers=0)
    features = net.features(frames())
    error = np.abs(features - expected).max() / np.abs(expected).max()
    print(f"Inception features: {error:.1e}; golden: {expected[2, :6].tolist()}")
    assert features.shape == (3, inception.WIDTH) and error < 1e-4
    assert expected.std(0).mean() > 1e-3


def test_features_equal_golden_numbers(net):
    np.testing.assert_allclose(net.features(frames())[2, :6], GOLDEN_FEATURES, atol=1e-3)


def test_the_frechet_distance_equals_pytorch_fids():
    _, score = reference.pytorch_fid()
    a, b = np.random.default_rng(0).normal(size=(2, 300, 40)) * np.linspace(0.1, 3, 40)
    b = b[:, ::-1]
    expected = score.calculate_frechet_distance(
        a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
    )
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)
    assert expected > 1


def test_fid_of_a_few_features_equals_pytorch_fid(net, weights, tmp_path):
    """As below, of four features only, whose covariances six frames determine.

    pytorch-fid's matrix root of all features takes minutes.
    """
    clips = {name: clip[::2] for name, clip in sets().items()}
    library, score = reference.pytorch_fid()
    with reference.with_weights(torch.load(weights)):
        model = library.InceptionV3([3])
        features = [
            score.get_activations(save(tmp_path / name, clip), model, 6, num_workers=0)[:, COLUMNS]
            for name, clip in clips.items()
        ]
    statistics = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in features]
    expected = score.calculate_frechet_distance(*statistics[0], *statistics[1])
    fid = frechet_distance(*(moments(net.features(clip)[:, COLUMNS]) for clip in clips.values()))
    print(f"FID of four features {fid:.6f}, pytorch-fid {expected:.6f}")
    assert fid == pytest.approx(expected, rel=1e-3) and expected > 0.01


@pytest.mark.slow
def test_fid_of_a_folder_equals_pytorch_fid(net, weights, tmp_path):
    """From files to the distance, within 0.01."""
    for name, clip in sets().items():
        save(tmp_path / name, clip)
    _, score = reference.pytorch_fid()
    folders = [str(tmp_path / name) for name in sets()]
    with reference.with_weights(torch.load(weights)):
        expected = score.calculate_fid_given_paths(folders, 6, "cpu", 2048, num_workers=0)
    fid = frechet_distance(*(moments(net.features(clip)) for clip in sets().values()))
    print(f"FID {fid:.6f}, pytorch-fid {expected:.6f}")
    assert fid == pytest.approx(expected, abs=0.01) and expected > 1


def test_errors_of_wrong_files(weights, tmp_path, monkeypatch):
    with pytest.raises(
        UserError,
        match=r"no such file; .*92 MB.*: curl -LO https://github.com/mseitzer",
    ):
        inception.Inception(tmp_path / "none.pth")
    with pytest.raises(
        UserError,
        match=r"its sha256 is .*that of pt_inception-2015-12-05-6726825d\.pth is 6726825d.*: curl",
    ):
        inception.Inception(weights)
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"nothing")
    monkeypatch.setattr(inception, "SHA256", inception.file_sha256(garbage))
    with pytest.raises(UserError, match="is not a file of PyTorch weights"):
        inception.Inception(garbage)


def test_features_that_are_not_finite_are_an_error(net):
    net.weights["Conv2d_1a_3x3.bn.bias"] = torch.full((32,), torch.nan)
    with pytest.raises(UserError, match="features of 2 of 2 frames are not finite"):
        net.features(moving(0, 0, 2, 16))
