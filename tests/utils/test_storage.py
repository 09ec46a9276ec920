"""Folders in buckets: fetched, pushed, trained from and into. The bucket is fsspec's, in memory; orbax's own way to gs:// is not to be had here."""

import json
import shutil

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.training import checkpoints as module
from ivid2vid_jax.training.checkpoints import COMMIT, Checkpoints
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.utils import storage
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights import hub
from tests.test_train import cheap

URL = "memory://bucket/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty bucket, and a machine that knows nothing of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    return fs


def another_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))


def test_a_local_name_is_left_alone(tmp_path):
    assert storage.fetch_folder(str(tmp_path)) == str(tmp_path) and storage.local_path(
        "a/b"
    ).parts == (
        "a",
        "b",
    )
    assert (
        not storage.is_remote(None)
        and not storage.is_remote(tmp_path)
        and storage.is_remote("gs://b/x")
    )
    with storage.mirror_run(str(tmp_path), True) as push:
        push()
    assert list(tmp_path.iterdir()) == []


def test_only_what_has_changed_travels(bucket, monkeypatch):
    bucket.pipe({"/bucket/data/a": b"one", "/bucket/data/sub/b": b"two"})
    moved = []
    monkeypatch.setattr(
        bucket,
        "get_file",
        lambda path, to, get=bucket.get_file: (moved.append(path), get(path, to)),
    )
    folder = storage.local_path("memory://bucket/data")
    assert storage.fetch_folder("memory://bucket/data/") == str(folder)
    assert (
        (folder / "a").read_bytes() == b"one"
        and (folder / "sub" / "b").read_bytes() == b"two"
        and len(moved) == 2
    )
    storage.fetch_folder("memory://bucket/data")
    assert len(moved) == 2
    bucket.pipe("/bucket/data/a", b"six")  # as long as before
    (folder / "sub" / "b").write_bytes(b"spoilt")
    storage.fetch_folder("memory://bucket/data")
    assert (
        (folder / "a").read_bytes() == b"six"
        and (folder / "sub" / "b").read_bytes() == b"two"
        and len(moved) == 4
    )


def test_a_fetch_that_breaks_off_leaves_no_half_file_and_goes_on(bucket, monkeypatch):
    bucket.pipe({"/bucket/data/a": b"one", "/bucket/data/b": b"two"})
    get = bucket.get_file

    def breaks(path, to):
        get(path, to)
        if path.endswith("b"):
            raise OSError("connection reset")

    monkeypatch.setattr(bucket, "get_file", breaks)
    with pytest.raises(
        UserError,
        match=r"memory://bucket/data: could not be fetched \(OSError: connection reset\); look at its name",
    ):
        storage.fetch_folder("memory://bucket/data")
    folder = storage.local_path("memory://bucket/data")
    assert (folder / "a").exists() and not (folder / "b").exists()
    monkeypatch.setattr(bucket, "get_file", get)
    assert storage.fetch_folder("memory://bucket/data") and (folder / "b").read_bytes() == b"two"


def test_an_empty_or_unknown_bucket_is_an_error(bucket):
    with pytest.raises(UserError, match="memory://bucket/none: there is nothing in this folder"):
        storage.fetch_folder("memory://bucket/none")
    with pytest.raises(UserError, match="nosuch://bucket/x: cannot be reached"):
        storage.fetch_folder("nosuch://bucket/x")


def test_what_is_written_goes_to_the_bucket_and_to_the_next_machine(bucket, tmp_path, monkeypatch):
    with storage.mirror_run(URL, True) as push:
        home = storage.local_path(URL)
        for name in ("config.json", "lock", "pipeline/unet/config.json", "checkpoints/1/state"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text("1")
        push()
        (home / "config.json").write_text("2")
    assert sorted(bucket.find("/bucket")) == [
        "/bucket/run/config.json",
        "/bucket/run/pipeline/unet/config.json",
    ]
    assert bucket.cat("/bucket/run/config.json") == b"2"
    another_machine(tmp_path, monkeypatch)
    with storage.mirror_run(URL, False):
        assert (storage.local_path(URL) / "config.json").read_text() == "2" and storage.local_path(
            URL
        ) != home
        (storage.local_path(URL) / "config.json").write_text("3")
    assert bucket.cat("/bucket/run/config.json") == b"2", "only the first process writes"


def test_a_run_in_a_bucket_goes_on_on_another_machine(bucket, tmp_path, monkeypatch):
    """Data from a bucket, the run into one; its checkpoints, which go through orbax and not through fsspec, are in a folder that both machines see."""
    from ivid2vid_jax import prepare
    from ivid2vid_jax.training import loop

    data = tmp_path / "triplets"
    prepare.run(
        prepare.PrepareArgs(
            data="shapes", output=data, count=12, size=16, frames=3, validation=0.3, workers=1
        )
    )
    bucket.put(str(data), "/bucket/triplets", recursive=True)
    shutil.rmtree(data)
    monkeypatch.setattr(
        loop,
        "Checkpoints",
        lambda run, keep: Checkpoints(tmp_path / "seen" / run.partition("://")[2], keep),
    )
    words = dict(data=("memory://bucket/triplets",), checkpoint__pipeline=True)
    train(cheap(URL, **words, steps=2))
    assert {"config.json", "metrics.jsonl", "pipeline", "tensorboard"} <= {
        path.split("/")[3] for path in bucket.find("/bucket/run")
    }
    assert json.loads(bucket.cat("/bucket/run/config.json"))["data"] == ["memory://bucket/triplets"]
    another_machine(tmp_path, monkeypatch)
    run = train(cheap(URL, **words, steps=4))
    assert [line["step"] for line in read_metrics(run, "train")] == [1, 2, 3, 4]
    assert json.loads(bucket.cat("/bucket/run/pipeline/training.json")) == {"step": 4}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    home = hub.resolve_model(URL)
    assert (
        home.name == "pipeline" and (home / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    )


def test_in_a_bucket_a_checkpoint_without_its_mark_is_none(tmp_path, monkeypatch):
    """There orbax writes under the final name and commits by a file; here it commits by a rename, so the marks are made by hand."""
    monkeypatch.setattr(module, "is_bucket", lambda folder: True)
    state = {"a": jnp.arange(4.0)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {}, {})
            checkpoints.wait()
            (tmp_path / "checkpoints" / str(step) / COMMIT).touch()
        (tmp_path / "checkpoints" / "3" / "state").mkdir(parents=True)
        assert checkpoints.steps() == [1, 2]
        found = checkpoints.restore(
            2,
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            ),
        )[0]
        np.testing.assert_array_equal(found["a"], state["a"])
    with Checkpoints(tmp_path):
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}, (
            "what a killed save left is removed"
        )


def test_gs_is_a_bucket_and_a_folder_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(module.folder_of("gs://b/run")) == "gs://b/run/checkpoints" and module.is_bucket(
        module.folder_of("gs://b/run")
    )
    assert str(module.folder_of("run")) == str(
        tmp_path / "run" / "checkpoints"
    ) and not module.is_bucket(module.folder_of("run"))
