"""Folders in buckets: download, upload, training with data and run in a bucket.

The bucket is fsspec's in-memory file system. orbax's access to gs:// cannot be tested here.
"""

import json
import shutil

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.training import checkpoints as module
from ivid2vid_jax.training.checkpoints import COMMIT, Checkpoints
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.utils import storage
from ivid2vid_jax.weights import hub
from tests.test_train import cheap

URL = "memory://bucket/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty bucket, and an empty cache of mirrors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    return fs


def use_another_machine(tmp_path, monkeypatch):
    """Switches to another empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))


def test_a_local_name_is_unchanged(tmp_path):
    assert storage.fetch_folder(str(tmp_path)) == str(tmp_path)
    assert storage.local_path("a/b").parts == ("a", "b")
    assert not storage.is_remote(None) and not storage.is_remote(tmp_path)
    assert storage.is_remote("gs://b/x")
    with storage.mirror_run(str(tmp_path), True) as push:
        push()
    assert list(tmp_path.iterdir()) == []


def test_only_changed_files_are_downloaded(bucket, monkeypatch):
    bucket.pipe({"/bucket/data/a": b"one", "/bucket/data/sub/b": b"two"})
    downloads, get_file = [], bucket.get_file

    def recording_get_file(path, target):
        downloads.append(path)
        get_file(path, target)

    monkeypatch.setattr(bucket, "get_file", recording_get_file)
    folder = storage.local_path("memory://bucket/data")
    assert storage.fetch_folder("memory://bucket/data/") == str(folder)
    assert (folder / "a").read_bytes() == b"one"
    assert (folder / "sub" / "b").read_bytes() == b"two" and len(downloads) == 2
    storage.fetch_folder("memory://bucket/data")
    assert len(downloads) == 2
    bucket.pipe("/bucket/data/a", b"six")  # same size as before
    (folder / "sub" / "b").write_bytes(b"spoilt")
    storage.fetch_folder("memory://bucket/data")
    assert (folder / "a").read_bytes() == b"six"
    assert (folder / "sub" / "b").read_bytes() == b"two" and len(downloads) == 4


def test_an_interrupted_download_leaves_no_partial_file_and_can_be_resumed(bucket, monkeypatch):
    bucket.pipe({"/bucket/data/a": b"one", "/bucket/data/b": b"two"})
    get_file = bucket.get_file

    def failing_get_file(path, target):
        get_file(path, target)
        if path.endswith("b"):
            raise OSError("connection reset")

    monkeypatch.setattr(bucket, "get_file", failing_get_file)
    message = (
        r"memory://bucket/data: could not be fetched \(OSError: connection reset\); check the URL"
    )
    with pytest.raises(UserError, match=message):
        storage.fetch_folder("memory://bucket/data")
    folder = storage.local_path("memory://bucket/data")
    assert (folder / "a").exists() and not (folder / "b").exists()
    monkeypatch.setattr(bucket, "get_file", get_file)
    assert storage.fetch_folder("memory://bucket/data") and (folder / "b").read_bytes() == b"two"


def test_an_empty_or_unknown_bucket_is_an_error(bucket):
    with pytest.raises(UserError, match="memory://bucket/none: there is nothing in this folder"):
        storage.fetch_folder("memory://bucket/none")
    with pytest.raises(UserError, match="nosuch://bucket/x: cannot be reached"):
        storage.fetch_folder("nosuch://bucket/x")


def test_written_files_reach_the_bucket_and_the_next_machine(bucket, tmp_path, monkeypatch):
    with storage.mirror_run(URL, True) as push:
        mirror = storage.local_path(URL)
        for name in ("config.json", "lock", "pipeline/unet/config.json", "checkpoints/1/state"):
            (mirror / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror / name).write_text("1")
        push()
        (mirror / "config.json").write_text("2")
    assert sorted(bucket.find("/bucket")) == [
        "/bucket/run/config.json",
        "/bucket/run/pipeline/unet/config.json",
    ]
    assert bucket.cat("/bucket/run/config.json") == b"2"
    use_another_machine(tmp_path, monkeypatch)
    with storage.mirror_run(URL, False):
        assert storage.local_path(URL) != mirror
        assert (storage.local_path(URL) / "config.json").read_text() == "2"
        (storage.local_path(URL) / "config.json").write_text("3")
    assert bucket.cat("/bucket/run/config.json") == b"2", "only the first process uploads"


def test_a_restart_fetches_what_it_needs(bucket):
    """Not the weights of the pipeline, samples and curves of the run, on every host of a pod."""
    needed = {"config.json", "metrics.jsonl", "tokenizer/vocab.json", "benchmark/after-8.jsonl"}
    needed.add("pipeline/training.json")
    others = {
        "pipeline/unet/diffusion_pytorch_model.safetensors",
        "pipeline/model_index.json",
        "samples/4/0.gif",
        "tensorboard/events",
        "benchmark/clips/0.mp4",
    }
    bucket.pipe({f"/bucket/run/{name}": b"1" for name in needed | others})
    with storage.mirror_run(URL, True):
        mirror = storage.local_path(URL)
        files = {str(path.relative_to(mirror)) for path in mirror.rglob("*") if path.is_file()}
        assert files == needed
    assert {path.removeprefix("/bucket/run/") for path in bucket.find("/bucket/run")} == (
        needed | others
    ), "what is not fetched is not removed"
    storage.fetch_folder(URL)
    assert (mirror / "samples/4/0.gif").is_file()


def test_a_pipeline_in_a_bucket_is_never_a_mixture_of_two(bucket, monkeypatch):
    """A push that is killed halfway leaves no pipeline, and the next push completes it."""
    names = ("model_index.json", "training.json", "unet/1.safetensors", "vae/1.safetensors")

    def write(folder, text):
        for name in names:
            (folder / "pipeline" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "pipeline" / name).write_text(text)
        (folder / "pipeline" / ".tmp-1-0").write_text("half")

    def in_bucket():
        root = "/bucket/run/pipeline/"
        return {path.removeprefix(root): bucket.cat(path) for path in bucket.find(root)}

    put_file = bucket.put_file

    def killed_put_file(file, path):
        if "vae" in path:
            raise KeyboardInterrupt
        put_file(file, path)

    with storage.mirror_run(URL, True) as push:
        write(storage.local_path(URL), "old")
        push()
        assert in_bucket() == dict.fromkeys(names, b"old")
        write(storage.local_path(URL), "newer")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(bucket, "put_file", killed_put_file)
            push()
        assert in_bucket() == {"unet/1.safetensors": b"newer", "vae/1.safetensors": b"old"}
        push()
        assert in_bucket() == dict.fromkeys(names, b"newer")


@pytest.mark.slow
def test_a_run_in_a_bucket_resumes_on_another_machine(bucket, tmp_path, monkeypatch):
    """Data and run are in a bucket.

    Checkpoints are written by orbax and not by fsspec; here both machines share their folder.
    """
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
        lambda run, keep: Checkpoints(tmp_path / "shared" / run.partition("://")[2], keep),
    )
    options = dict(data=("memory://bucket/triplets",), checkpoint__pipeline=True)
    train(cheap(URL, **options, steps=2))
    uploaded = {path.split("/")[3] for path in bucket.find("/bucket/run")}
    assert {"config.json", "metrics.jsonl", "pipeline", "tensorboard"} <= uploaded
    assert json.loads(bucket.cat("/bucket/run/config.json"))["data"] == ["memory://bucket/triplets"]
    use_another_machine(tmp_path, monkeypatch)
    run = train(cheap(URL, **options, steps=4))
    assert [line["step"] for line in read_metrics(run, "train")] == [1, 2, 3, 4]
    assert json.loads(bucket.cat("/bucket/run/pipeline/training.json")) == {"step": 4}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    pipeline = hub.resolve_model(URL)
    assert pipeline.name == "pipeline"
    assert (pipeline / "vae" / "diffusion_pytorch_model.safetensors").is_file()


def test_in_a_bucket_a_checkpoint_without_commit_file_does_not_exist(tmp_path, monkeypatch):
    """In a bucket orbax commits a checkpoint by writing a file.

    In a folder it commits by a rename, so the test writes the commit files.
    """
    monkeypatch.setattr(module, "is_bucket", lambda folder: True)
    state = {"a": jnp.arange(4.0)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {}, {})
            checkpoints.wait()
            (tmp_path / "checkpoints" / str(step) / COMMIT).touch()
        (tmp_path / "checkpoints" / "3" / "state").mkdir(parents=True)
        assert checkpoints.steps() == [1, 2]
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        restored = checkpoints.restore(2, target)[0]
        np.testing.assert_array_equal(restored["a"], state["a"])
    with Checkpoints(tmp_path):
        steps = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert steps == {"1", "2"}, "the remains of an interrupted save are removed"


def test_a_gs_url_is_a_bucket_and_a_path_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote, local = module.checkpoints_folder("gs://b/run"), module.checkpoints_folder("run")
    assert str(remote) == "gs://b/run/checkpoints" and module.is_bucket(remote)
    assert str(local) == str(tmp_path / "run" / "checkpoints") and not module.is_bucket(local)
