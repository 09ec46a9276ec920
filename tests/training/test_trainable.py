"""Which weights are trained: presets and patterns; frozen ones cost no backward pass.

The tests count operations in traced programs; the compiled step of the real networks takes minutes
(`-m slow`).
"""

import dataclasses
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import OptimConfig
from ivid2vid_jax.training.params import flatten, trainable, unflatten
from ivid2vid_jax.training.step import (
    clip_keys,
    learning_rate,
    make_optimizer,
    new_state,
    train_step,
)
from ivid2vid_jax.weights.pipeline_folder import param_shapes
from tests.support.tiny_objective import KEY, random_params


def test_presets(tiny_objective, shapes):
    image_net = dataclasses.replace(tiny_objective.folder.unet, temporal=())
    image_names = {f"unet/{name}" for name in flatten(param_shapes("unet", image_net))}
    unet = {name for name in shapes if name.split("/")[0] == "unet"}
    assert trainable(shapes, ("temporal",)) == unet - image_names and len(unet - image_names) > 20
    assert trainable(shapes, ("unet",)) == unet and trainable(shapes, ("spatial",)) == image_names
    attention = {name for name in unet if {"attn1", "attn2"} & set(name.split("/"))}
    assert trainable(shapes, ("attention",)) == attention and len(attention) > 10
    assert trainable(shapes, ("vae",)) == {name for name in shapes if name.startswith("vae")}
    keys = {name for name in shapes if name.endswith(("attn2/to_k/kernel", "attn2/to_v/kernel"))}
    assert trainable(shapes, (r"attn2/to_[kv]/", "text_encoder")) == keys | {
        name for name in shapes if name.startswith("text_encoder")
    }


@pytest.mark.parametrize("pattern", ["tempral", "attn[", "^down_blocks"])
def test_patterns_that_match_nothing_are_named(shapes, pattern):
    with pytest.raises(UserError, match=r"optim\.trainable") as error:
        trainable(shapes, ("unet", pattern))
    assert pattern in str(error.value) and "temporal" in str(error.value)


def count_operations(jaxpr) -> dict[str, int]:
    """The number of convolutions, matrix products and rematerialised blocks in a jaxpr."""
    counts = dict.fromkeys(("conv_general_dilated", "dot_general", "checkpoint", "remat2"), 0)
    for equation in jaxpr.eqns:
        if equation.primitive.name in counts:
            counts[equation.primitive.name] += 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            for name, count in count_operations(inner).items():
                counts[name] += count
    return counts


def step_operations(tiny_objective, shapes, **changes):
    """(the operations of the training step, the new state as shapes); changes: of OptimConfig."""
    config = OptimConfig(**changes)
    names, optimizer = trainable(shapes, config.trainable), make_optimizer(config, 5)
    trained, frozen = (
        {name: leaf for name, leaf in shapes.items() if (name in names) == is_trained}
        for is_trained in (True, False)
    )
    state = jax.eval_shape(lambda params: new_state(params, optimizer, config, 0), trained)
    step = partial(
        train_step,
        objective=tiny_objective.objective(),
        optimizer=optimizer,
        config=config,
        schedule=learning_rate(config, 5),
    )
    traced = jax.make_jaxpr(step, return_shape=True)
    closed_jaxpr, (new, _) = traced(state, frozen, tiny_objective.batch)
    return count_operations(closed_jaxpr.jaxpr), new


@pytest.fixture(scope="module")
def forward(tiny_objective, shapes):
    """The operations of the losses without gradients."""
    keys = clip_keys(KEY, 0, tiny_objective.batch["serial"])
    objective = tiny_objective.objective()

    def losses(params):
        return objective.losses(unflatten(params), tiny_objective.batch, keys, True)

    return count_operations(jax.make_jaxpr(losses)(shapes).jaxpr)


def unet_operations(tiny_objective, shapes, remat="none"):
    """The operations of one evaluation of the U-Net."""
    objective = tiny_objective.objective(optim__remat=remat)
    unet_shapes = {name: leaf for name, leaf in shapes.items() if name.startswith("unet/")}
    cond = Condition(jnp.zeros((8, 16, 16)), jnp.zeros((8, 2, 8, 8, 4)))

    def denoise(params):
        return objective.denoise(unflatten(params)["unet"], cond.source, jnp.zeros(8), cond)

    return count_operations(jax.make_jaxpr(denoise)(unet_shapes).jaxpr)


def test_frozen_weights_get_no_gradient(tiny_objective, shapes, forward):
    """With only the last convolution trained, the backward pass is one convolution."""
    step, new = step_operations(tiny_objective, shapes, trainable=("^unet/conv_out/",))
    assert forward["conv_general_dilated"] > 30 and forward["dot_general"] > 30
    assert step["conv_general_dilated"] == forward["conv_general_dilated"] + 1
    assert step["dot_general"] == forward["dot_general"]
    names = {"unet/conv_out/kernel", "unet/conv_out/bias"}
    assert new.params.keys() == new.ema.keys() == names
    leaves = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(new.opt_state)
        if leaf.shape
    ]
    assert len(leaves) == 4 and all(any(f"'{name}'" in leaf for name in names) for leaf in leaves)


def test_an_editors_autoencoder_gets_no_gradient(tiny_objective, shapes, forward):
    """Not even if it is among the trained weights, and so not if it is frozen."""
    step, _ = step_operations(tiny_objective, shapes, trainable=("unet", "vae"))
    # Gradients by kernel and input of each convolution; the input of conv_in needs none.
    backward = 2 * unet_operations(tiny_objective, shapes)["conv_general_dilated"] - 1
    assert step["conv_general_dilated"] == forward["conv_general_dilated"] + backward


def test_remat_reaches_the_unet(tiny_objective, shapes):
    plain, block = (unet_operations(tiny_objective, shapes, remat) for remat in ("none", "block"))
    assert plain["checkpoint"] + plain["remat2"] == 0 and block["checkpoint"] + block["remat2"] > 5
    assert plain["dot_general"] == block["dot_general"]


@pytest.mark.slow
def test_the_step_of_the_real_networks(tiny_objective, shapes):
    """Accumulation and remat equal the plain step; frozen weights stay, all trained ones change."""
    weights = random_params(shapes, np.random.default_rng(0))
    names = trainable(shapes, ("unet",))
    frozen = {name: leaf for name, leaf in weights.items() if name not in names}
    frozen_before = jax.device_get(frozen)
    batch = jax.device_put(tiny_objective.batch)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def run_step(accumulation=1, remat="none"):
        # A large eps: without it Adam would amplify rounding errors of gradients near 0.
        config = OptimConfig(lr=0.01, warmup=0, eps=1e-3, accumulation=accumulation)
        optimizer = make_optimizer(config, 5)
        trained = {name: jnp.array(weights[name]) for name in sorted(names)}
        state = new_state(trained, optimizer, config, 0)
        program = CompiledStep(
            tiny_objective.objective(optim__remat=remat),
            optimizer,
            config,
            learning_rate(config, 5),
            jax.tree.map(lambda _: device, state),
            tiny_objective.objective(),
        )
        assert not program.is_compiled_for(batch)
        program.compile(state, frozen, batch)
        assert program.is_compiled_for(batch)
        state, metrics = program(state, frozen, batch)
        return *jax.device_get((state, metrics)), program.flops

    state, metrics, operations = run_step()
    assert operations > 0
    for name, value in frozen_before.items():
        np.testing.assert_array_equal(frozen[name], value, err_msg=name)
    unchanged = [
        name for name in state.params if not (state.params[name] != np.asarray(weights[name])).any()
    ]
    assert unchanged == []
    for changes in (dict(accumulation=2), dict(remat="block")):
        other, other_metrics, other_operations = run_step(**changes)
        # Both iterations of the loop are counted, and the empty text once more; what remat computes
        # again is not.
        rel = 0.02 if "accumulation" in changes else 1e-9
        assert other_operations == pytest.approx(operations, rel=rel)
        for name in ("loss", "noise_loss", "frame_loss", "grad_norm"):
            rel = 2e-6 if "loss" in name else 1e-5
            assert other_metrics[name] == pytest.approx(float(metrics[name]), rel=rel), (
                changes,
                name,
            )
        for part in ("params", "ema"):
            for name, value in getattr(state, part).items():
                np.testing.assert_allclose(
                    getattr(other, part)[name],
                    value,
                    atol=1e-6 * max(1, abs(value).max()),
                    err_msg=f"{changes} {name}",
                )
