"""Checkpoints: saved states are restored bit for bit, corrupt ones are refused by name."""

import os
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.training.checkpoints import Checkpoints, checksum
from tests.support.checkpoint_state import (
    DATA,
    META,
    abstract,
    assert_same,
    make_state,
    save_states,
)

# orbax drops futures when a file cannot be read
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def restore_error(run, step, target=None):
    """The message of the UserError that restoring raises."""
    with Checkpoints(run) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(step, abstract(make_state() if target is None else target))
    return str(error.value)


def test_a_state_is_restored_bit_for_bit(tmp_path):
    odd = {
        "nan": jnp.array([np.nan, -0.0, np.inf], jnp.bfloat16),
        "half": jnp.ones((2, 3), jnp.float16),
        "flags": jnp.array([True, False]),
    }
    before = make_state(5, **odd).replace(
        ema={"bytes": jnp.arange(5, dtype=jnp.uint8), "small": jnp.array([-3, 4], jnp.int8)}
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, before, DATA, META)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [5] and checkpoints.read_meta(5) == META
        after, data, meta = checkpoints.restore(5, abstract(before))
    assert_same(after, before)
    assert (data, meta) == (DATA, META)
    folder = tmp_path / "checkpoints" / "5"
    items = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert items == ["data", "meta", "state"]


def test_float64_is_restored(tmp_path):
    with jax.enable_x64(True):
        before = {
            "wide": jnp.array([1 / 3, 1e300]),
            "count": jnp.array(2**40),
            "one": jnp.float32(3),
        }
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, before, {}, {})
            checkpoints.wait()
            assert_same(checkpoints.restore(1, abstract(before))[0], before)


def test_arrays_may_be_donated_at_once(tmp_path):
    """The save of step 1 must not see what the next steps write into its buffers."""
    advance = jax.jit(lambda x: x * 0.5 - 1, donate_argnums=0)
    x = advance(jnp.zeros(2_000_000))
    buffer = x.unsafe_buffer_pointer()
    x = advance(x)
    assert x.unsafe_buffer_pointer() == buffer, "without donation this test proves nothing"
    fresh = jax.random.normal(jax.random.key(0), (2_000_000,))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": fresh}, {}, {})
        assert all((checkpoints.folder / str(step)).is_dir() for step in checkpoints.steps()), (
            "an incomplete save counts as complete"
        )
        for _ in range(5):
            fresh = advance(fresh)
        checkpoints.wait()
        after = checkpoints.restore(1, abstract({"x": fresh}))[0]["x"]
    np.testing.assert_array_equal(after, jax.random.normal(jax.random.key(0), (2_000_000,)))


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16", "float16", "int8", "uint8", "int32", "uint32", "float64", "int64"],
)
def test_one_flipped_bit_always_changes_the_checksum(dtype):
    with jax.enable_x64(True):
        raw = np.random.default_rng(0).integers(
            0, 256, 12 * jnp.dtype(dtype).itemsize, dtype=np.uint8
        )
        flips = np.stack(
            [raw, *(raw ^ np.packbits(bit) for bit in np.eye(8 * raw.size, dtype=np.uint8))]
        )
        arrays = flips.view(jnp.dtype(dtype)).reshape(len(flips), 3, 4)
        sums = jax.jit(jax.vmap(checksum))(arrays)
        assert sums.dtype == jnp.uint32 and not (sums[1:] == sums[0]).any()


def test_the_checksum_equals_its_formula_and_depends_on_order():
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    words = x.view(np.uint32).ravel().astype(object)
    assert int(checksum(x)) == sum(int(w) * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    assert int(checksum(x[::-1])) != int(checksum(x))
    assert int(checksum(jnp.array([True, False]))) != int(checksum(jnp.array([False, True])))


DAMAGE = {
    "state: truncated": ("state", lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])),
    "state: a bit": ("state", lambda f: flip(f, f.stat().st_size // 2)),
    "state: missing": ("state", lambda f: f.unlink()),
    "meta: truncated": ("meta", lambda f: f.write_bytes(f.read_bytes()[:40])),
    "meta: a digit": ("meta", lambda f: f.write_text(f.read_text().replace("0.0001", "0.0002"))),
    "meta: other json": ("meta", lambda f: f.write_text("[1]")),
    "data: a digit": ("data", lambda f: f.write_text(f.read_text().replace("192", "193"))),
    "data: missing": ("data", lambda f: shutil.rmtree(f.parent)),
    "state: all missing": (
        "state",
        lambda f: shutil.rmtree(f.parents[1] if f.parent.name == "d" else f.parent),
    ),
}


def flip(path, byte):
    """Flips a bit of a file."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_corrupt_checkpoint_is_refused_with_the_step_of_the_previous_one(tmp_path, kind):
    item, damage = DAMAGE[kind]
    folder = save_states(tmp_path, 10, 20) / "checkpoints" / "20"
    damage(largest_file(folder / item) if item == "state" else folder / item / "metadata")
    message = restore_error(tmp_path, 20)
    assert message.startswith(f"{folder}: ") and message.endswith("--resume 10")
    assert "corrupt" in message and "\n" not in message and len(message) < 600
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        assert_same(checkpoints.restore(10, abstract(make_state()))[0], make_state(10))


def test_a_flipped_bit_in_the_state_names_the_leaf(tmp_path):
    DAMAGE["state: a bit"][1](
        largest_file(save_states(tmp_path, 10) / "checkpoints" / "10" / "state")
    )
    message = restore_error(tmp_path, 10)
    assert "checksum of params/down_blocks.0/conv.1/kernel" in message
    assert "there is no checkpoint before it" in message and "--output" in message


def test_a_bit_flipped_anywhere_is_harmless_or_restore_error(tmp_path):
    """Each file of a checkpoint, at its start, middle and end."""
    folder, original = save_states(tmp_path, 10, 20) / "checkpoints" / "20", tmp_path / "original"
    shutil.copytree(folder, original)
    flips = [
        (file.relative_to(original), part)
        for file in original.rglob("*")
        if file.is_file() and file.stat().st_size
        for part in (0, 0.5, 0.999)
    ]
    refusals = 0
    with Checkpoints(tmp_path) as checkpoints:
        for name, part in flips:
            flip(folder / name, int((folder / name).stat().st_size * part))
            try:
                restored, data, meta = checkpoints.restore(20, abstract(make_state()))
                assert_same(restored, make_state(20))
                assert (data, meta) == (DATA | {"step": 20}, META)
            except UserError as error:
                assert "--resume 10" in str(error)
                refusals += 1
            shutil.copy(original / name, folder / name)
    assert refusals > 10


def test_another_state_is_refused_by_its_leaves(tmp_path):
    save_states(tmp_path, 10)
    message = restore_error(tmp_path, 10, make_state(motion=jnp.zeros(3)))
    missing = "params/motion, opt_state/1/0/mu/motion, opt_state/1/0/nu/motion"
    assert f"missing in it: {missing}" in message and "unexpected" not in message
    message = restore_error(
        tmp_path, 10, make_state().replace(params={"conv_in/bias": jnp.zeros(8)})
    )
    assert "unexpected in it: params/down_blocks.0/conv.1/kernel" in message
    difference = "params/conv_in/bias (saved float32[7], expected float32[8])"
    assert f"other shape or type: {difference}" in message
    half = make_state().replace(
        params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state().params)
    )
    assert "(saved float32[7], expected bfloat16[7])" in restore_error(tmp_path, 10, half)


def test_a_step_without_a_checkpoint(tmp_path):
    save_states(tmp_path, 10, 20)
    assert "no checkpoint of step 15; there are 10, 20" in restore_error(tmp_path, 15)
    assert "there are none" in restore_error(tmp_path / "new", 1)


def test_incomplete_checkpoints_are_removed(tmp_path):
    folder = save_states(tmp_path, 10, 20) / "checkpoints"
    (folder / "20").rename(folder / "20.orbax-checkpoint-tmp")
    assert "there are 10" in restore_error(tmp_path, 20)
    save_states(tmp_path, 30)
    assert sorted(path.name for path in folder.iterdir()) == ["10", "30"]


def test_out_of_memory_is_not_reported_as_corruption(tmp_path, monkeypatch):
    def restore(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    save_states(tmp_path, 10)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(jax.errors.JaxRuntimeError):
        monkeypatch.setattr(checkpoints.manager, "restore", restore)
        checkpoints.restore(10, abstract(make_state()))


def test_the_newest_are_kept_and_an_older_step_cannot_be_saved(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make_state(step), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]
        for step in (3, 4):
            with pytest.raises(ValueError, match=f"step {step} cannot be saved"):
                checkpoints.save(step, make_state(), {}, {})


def test_discarded_checkpoints_are_renamed_and_their_steps_free(tmp_path):
    folder = save_states(tmp_path, 10, 20, 30) / "checkpoints"
    (folder / "30" / "_CHECKPOINT_METADATA").unlink()
    for repetition in range(2):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.discard_after(10)
            assert checkpoints.steps() == [10]
            for step in (20, 30):
                checkpoints.save(step, make_state(step + 1 + repetition), {}, {})
            assert_same(
                checkpoints.restore(30, abstract(make_state()))[0], make_state(31 + repetition)
            )
            assert checkpoints.steps() == [10, 20, 30]
    discarded = {"20.discarded", "30.discarded", "20.discarded1", "30.discarded1"}
    assert {path.name for path in folder.iterdir()} == {"10", "20", "30"} | discarded
    assert all((folder / name / "meta").is_dir() for name in discarded)


def test_sigterm_is_handled_and_the_old_handler_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.preempted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpoints.preempted(2) and checkpoints.preempted(3)
    assert signal.getsignal(signal.SIGTERM) is before
    # outside of the main thread the handler is not touched
    thread = threading.Thread(target=lambda: save_states(tmp_path, 1))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before and (tmp_path / "checkpoints" / "1").is_dir()
