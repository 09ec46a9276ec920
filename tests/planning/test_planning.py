"""Plans: counts of operations and bytes, layers of the U-Net, and the command on CPU devices."""

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from ivid2vid_jax import plan
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.attention import attention
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.planning import chips, hlo, programs, report, stages
from ivid2vid_jax.planning.step_plan import StepPlan
from ivid2vid_jax.training import flops
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.utils.cli import recipe_loader
from ivid2vid_jax.weights.pipeline_folder import param_shapes
from tests.support import flops_formula as formula
from tests.support.command import run_command

Shape = jax.ShapeDtypeStruct
SD15 = UNetConfig(in_channels=8, temporal=("conv", "attention"))


def test_products_and_convolutions_are_counted_forward_and_backward():
    x, k = Shape((2, 8, 8, 3), jnp.float32), Shape((3, 3, 3, 5), jnp.float32)

    def conv(x, k, stride=1):
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = 2 * (2 * 8 * 8) * 9 * 3 * 5
    assert flops.count_flops(conv, x, k) == flops.Count(conv=expected)
    for stride in (1, 2):
        loss = partial(lambda x, k, stride: conv(x, k, stride).sum(), stride=stride)
        counted = flops.count_flops(jax.grad(loss, (0, 1)), x, k)
        assert counted.conv == pytest.approx(3 * expected // stride**2, rel=0.25)
    a = Shape((4, 6), jnp.float32)
    assert (
        flops.count_flops(jax.jit(jax.checkpoint(lambda a: jnp.sin(a @ a.T))), a).dot
        == 2 * 4 * 6 * 4
    )


def test_iterations_that_the_compiler_does_not_count_are_counted():
    a = jnp.ones((4, 6))

    def loop(a, length=7):
        return jax.lax.scan(lambda c, _: (c @ a.T @ a, None), a, None, length=length)[0]

    def loops(a):
        return jax.lax.scan(lambda c, _: (loop(c, 5), None), loop(a), None, length=3)[0]

    body = 2 * (2 * 4 * 6 * 4)
    assert flops.count_flops(loop, a) == flops.Count(dot=7 * body, repeated=6 * body)
    for function, iterations in ((loop, 7), (loops, 7 + 3 * 5)):
        compiled = jax.jit(function).lower(a).compile()
        counted = compiled.cost_analysis()["flops"] + flops.count_flops(function, a).uncounted
        assert counted == pytest.approx(iterations * body, rel=0.1)


def test_loops_of_the_compiler_do_not_hide_operations():
    traced = flops.Count(dot=600, conv=200, splash=100, padding=100, repeated=300)
    # the compiler's count, and what it does not count
    assert traced.per_chip(130, chips=4) == 130 + 500 / 4
    # the compiler counts less than an even share, because of loops
    assert traced.per_chip(20, chips=4) == 1000 / 4


def test_splash_attention_is_counted_by_its_formula():
    q, k = Shape((2, 256, 4, 40), jnp.bfloat16), Shape((2, 512, 4, 40), jnp.bfloat16)
    product = 2 * 2 * 4 * 256 * 512 * 40

    def splash(q, k):
        return attention(q, k, k, "splash")

    forward = flops.count_flops(splash, q, k)
    assert forward.splash == 2 * product
    assert forward.padding == pytest.approx(2 * product * 88 / 40, rel=1e-6)
    gradient = jax.grad(lambda q, k: splash(q, k).astype(jnp.float32).sum(), (0, 1))
    assert flops.count_flops(gradient, q, k).splash == (2 + 4 + 3) * product
    # heads as wide as the lanes have another order of axes in memory
    q = Shape((2, 256, 4, 128), jnp.bfloat16)
    unpadded = flops.count_flops(splash, q, q)
    assert (unpadded.splash, unpadded.padding) == (2 * 2 * 2 * 4 * 256 * 256 * 128, 0)


def test_keys_that_splash_attention_reads_again_are_counted():
    """With 4 blocks of queries, the forward kernel reads keys and values four times.

    The program's text shows one of them. An array of 40 x 4096 in 16 bits takes 48 x 4096 in tiles
    of 16 x 128. A single block of keys stays on the chip.
    """
    q, short = Shape((2, 4096, 4, 40), jnp.bfloat16), Shape((2, 1024, 4, 40), jnp.bfloat16)
    keys = 2 * 4 * 48 * 4096 * 2  # bytes
    counted = flops.count_flops(lambda q: attention(q, q, q, "splash"), q)
    assert counted.fetched == 3 * 2 * keys
    assert flops.count_flops(lambda q, k: attention(q, k, k, "splash"), q, short).fetched == 0


# One layer per block, which is traced in half the time.
SHORT_2D = dataclasses.replace(programs.SD15, layers_per_block=1)
SHORT_3D = dataclasses.replace(SD15, layers_per_block=1)
TUNE_A_VIDEO = dataclasses.replace(
    SHORT_2D, temporal=("tune_a_video",), spatial_attention="sparse_causal", group_norm="clip"
)
MOTION = dataclasses.replace(SHORT_2D, temporal=("motion",), use_motion_mid_block=True)
SD21 = dataclasses.replace(
    programs.SD21, in_channels=8, temporal=("conv", "attention"), layers_per_block=1
)


@pytest.mark.parametrize(
    ("config", "impl"),
    [
        (SD15, "xla"),
        (SHORT_3D, "splash"),
        (SHORT_2D, "xla"),
        (SD21, "xla"),
        (TUNE_A_VIDEO, "xla"),
        (MOTION, "xla"),
    ],
    ids=["3D", "3D, splash", "2D", "SD 2.1", "Tune-A-Video", "motion modules"],
)
def test_the_formula_agrees_with_the_count_over_the_jaxpr(config, impl):
    net = InflatedUNet3D(config, impl, dtype=jnp.bfloat16)
    args = (
        Shape((2, 8, 32, 32, config.in_channels), jnp.float32),
        Shape((2,), jnp.int32),
        Shape((2, 77, config.cross_attention_dim), jnp.float32),
    )
    counted = flops.count_flops(
        lambda p, *args: net.apply({"params": p}, *args), param_shapes("unet", config), *args
    )
    assert counted.useful == pytest.approx(formula.unet_forward(config, 2, 8, 32, 32, 77), rel=0.05)


@pytest.mark.slow
def test_every_parameter_belongs_to_one_layer():
    layers = stages.find_stages(
        SHORT_3D,
        Shape((1, 16, 32, 32, 8), jnp.bfloat16),
        Shape((1, 77, 768), jnp.bfloat16),
        ("temporal",),
    )
    count = 0
    for stage in layers:
        params = jax.eval_shape(stage.module.init, jax.random.key(0), *stage.args)["params"]
        count += stage.count * sum(x.size for x in jax.tree.leaves(params))
    assert count == sum(x.size for x in jax.tree.leaves(param_shapes("unet", SHORT_3D)))
    assert {stage.path.split("/")[-1].split(".")[0] for stage in layers if stage.trained} == {
        "transformer_in",
        "temp_convs",
        "temp_attentions",
    }


TEXT = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %g = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %f = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%g), kind=kLoop, calls=%inner
  ROOT %t = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%g, %f)
}

ENTRY %main (a: f32[100,40]) -> f32[100,40] {
  %a = f32[100,40]{1,0:T(8,128)} parameter(0)
  %b = f32[100,40]{1,0:T(8,128)S(1)} copy(%a)
  %c = f32[100,40]{1,0:T(8,128)S(1)} fusion(%b), kind=kLoop, calls=%inner
  %s = (SLICED) slice-start(%a), slice={[0:8], [0:40]}
  %d = f32[8,40]{1,0:T(8,128)S(1)} slice-done(%s)
  %w = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) while(%t0), condition=%cond, body=%body, TRIPS
  %r = f32[100,40]{1,0:T(8,128)} all-reduce(%a), replica_groups=[4,2]<=[8], to_apply=%add
  %x = (f32[25,40]{1,0:T(8,128)}, f32[100,40]{1,0:T(8,128)}) all-gather-start(%a), GROUPS
  ROOT %o = f32[100,40]{1,0:T(8,128)} add(%a, %r)
}
"""
for name, part in {  # parts of long lines
    "SLICED": "(f32[100,40]{1,0:T(8,128)}), f32[8,40]{1,0:T(8,128)S(1)}, s32[]{:S(2)}",
    "TRIPS": 'backend_config={"known_trip_count":{"n":"10"}}',
    "GROUPS": "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
}.items():
    TEXT = TEXT.replace(name, part)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups=[2,2]<=[4], to_apply=%add", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_collectives(groups, expected):
    """The notation is that of XLA: xla/hlo/ir/collective_device_list.h, mesh_and_axis.h."""
    assert hlo.collective_groups("channel_id=1, " + groups, 4) == expected
    assert hlo.group_size(groups, 4) == len(expected[0])


LOOP_TEXT = """HloModule jit_both, is_scheduled=true

%cond (p: (bf16[8,128], u32[])) -> pred[] {
  %n = u32[]{:T(128)} constant(15)
  %p.1 = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

%body (p: (bf16[8,128], u32[])) -> (bf16[8,128], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %p = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %y = bf16[8,128]{1,0:T(8,128)(2,1)} collective-permute(%x), channel_id=3
  %next = u32[]{:T(128)S(6)} add(%i, %two)
  ROOT %t = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) tuple(%y, /*index=1*/%next)
}

ENTRY %main (a: (bf16[8,128], u32[])) -> bf16[8,128] {
  %a = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %w = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) while(%a), condition=%cond, body=%body
  ROOT %o = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%w), index=0
}
"""


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("", "", 8),  # the counter is 0, 2, ... 14
        ("direction=LT", "direction=NE", 1),
        ("add(", "subtract(", 1),
        ("constant(15)", "parameter(1)", 1),
    ],
)
def test_trips_are_read_from_the_condition_of_a_loop(old, new, trips):
    text = LOOP_TEXT.replace(old, new)
    assert hlo.sent_bytes(text, 16) == {"collective-permute": trips * 8 * 128 * 2}


def test_traffic_is_read_from_the_program_text():
    """On-chip arrays are free, tiles are padded, loops count per trip, slices by their size."""
    array = 104 * 128 * 4
    copied, sliced, loop = array, 8 * 128 * 4, 10 * 2 * 8 * 128 * 2
    gathered, reduced, added = 32 * 128 * 4 + array, 2 * array, 3 * array
    assert hlo.hbm_bytes(TEXT) == copied + sliced + loop + reduced + gathered + added
    assert hlo.sent_bytes(TEXT, 8) == {
        "all-reduce": 2 * 16000 * 1 // 2,
        "all-gather": 16000 * 3 // 4,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "v5e:4x4"),
        ("v9:2x2", "v4, v5e"),
        ("v5e:2x2x1", "2 sides, such as v5e:2x2"),
        ("v5p:2x2", "3 sides"),
        ("v5e:axb", "sides"),
    ],
)
def test_an_invalid_slice_is_an_error(name, message):
    with pytest.raises(UserError, match=message):
        chips.TPUSlice(name)


@pytest.fixture
def on_cpu(monkeypatch, tmp_path):
    """The path of a tiny recipe; slices have one CPU device."""
    monkeypatch.setattr(chips.TPUSlice, "devices", lambda self: jax.devices("cpu")[:1])
    monkeypatch.setattr(chips, "cache_folder", lambda: tmp_path / "cache")
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from tests.support.sharded_run import recipe\n\nconfig = recipe('unused')\n")
    return recipe


def make_plan(capsys, recipe, tmp_path, *options) -> tuple[str, dict]:
    """Runs the command; returns its output and the plan of its JSON file."""
    file = tmp_path / "plan.json"
    code, stderr, stdout = run_plan(capsys, recipe, "--price", "2", "--output", file, *options)
    assert code == 0, stderr
    return stdout, json.loads(file.read_text())["plan"]


def run_plan(capsys, recipe, *options) -> tuple[int, str, str]:
    """Runs the command on one chip; returns (exit code, stderr, stdout)."""
    arguments = ["--config", recipe, "--topology", "v5e:1x1", *options]
    return run_command(capsys, plan.PlanArgs, plan.run, *arguments)


@pytest.mark.slow
def test_the_plan_of_a_training_step(on_cpu, tmp_path, capsys):
    """By layers; a second run compiles nothing."""
    stdout, by_layers = make_plan(capsys, on_cpu, tmp_path)
    for words in ("UNPROVEN", "fits", "at least", "chip-hours;", "dollars at 2.0"):
        assert words in stdout
    memory = by_layers["held"]
    assert memory["parameters"] * 2 == pytest.approx(memory["optimiser"], rel=0.01)
    assert by_layers["flops"] > 0 and by_layers["moved"] > 0
    assert "with --full too" in stdout and "at most: --effort 0 moves less" in stdout
    assert make_plan(capsys, on_cpu, tmp_path)[1]["seconds"] < 2


@pytest.mark.parametrize(("effort", "seconds"), [(0, 3.0), (-1, 2.0)])
def test_hbm_traffic_at_low_effort_is_no_lower_bound(effort, seconds):
    """Arithmetic takes 2 s and HBM 3 s.

    With low compiler effort the HBM traffic is an upper bound, so the least time is the
    arithmetic's.
    """
    tpu = chips.TPUSlice("v5e:1x1")
    chip = tpu.chip
    step = StepPlan({"parameters": 1}, 2 * chip.flops, 3 * chip.bandwidth, {}, False, 0.0)
    run = report.RunEstimate(
        edit=False, unit="clips", amount=6, steps=100, effort=effort, efficiency=0.5, price=None
    )
    text = report.plan_text(step, tpu, run)
    assert f"at least {seconds:.4f} s per step; at most {6 / seconds:.2f} clips per second" in text
    assert ("at most: --effort 0" in text) == (effort < 0)
    assert ("at most" in text.partition("per step;")[0]) == (effort < 0)
    assert "0.167 chip-hours" in text  # 100 steps of 3 s at half of the speed


@pytest.mark.slow
def test_a_program_that_exceeds_the_memory_is_an_error_with_advice(on_cpu, monkeypatch, capsys):
    def compile(self, *args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 16.8G of 15.7G hbm\nmore lines")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    code, stderr, _ = run_plan(capsys, on_cpu, "--full")
    assert code == 2 and "Traceback" not in stderr
    assert "Used 16.8G of 15.7G" in stderr and "--remat block" in stderr


def test_the_whole_sampling_step_is_traced(on_cpu):
    """What --edit --full compiles returns latents of the same shape; 3 branches cost 3 times 1."""
    config = recipe_loader(TrainConfig)(on_cpu)
    mesh = make_mesh(MeshConfig(), jax.devices("cpu")[:1])
    folder = programs.planned_folder(config)
    operations = []
    for branches in (1, 3):
        program = programs.editing_program(config, folder, mesh, branches)
        with jax.set_mesh(mesh):
            state = jax.eval_shape(program.function, *program.args)
            operations.append(flops.count_flops(program.function, *program.args).useful)
        assert shapes_of(state) == shapes_of(program.args[1])
    assert operations[1] == pytest.approx(3 * operations[0], rel=0.01)


def shapes_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--edit"]], ids=["training", "editing"])
def test_the_sum_of_layers_agrees_with_the_whole_program(on_cpu, tmp_path, capsys, options):
    _, by_layers = make_plan(capsys, on_cpu, tmp_path, *options)
    stdout, whole = make_plan(capsys, on_cpu, tmp_path, "--full", *options)
    assert "UNPROVEN" not in stdout and "by the compiled program" in stdout
    assert whole["held"]["parameters"] == by_layers["held"]["parameters"]
    assert math.isclose(whole["flops"], by_layers["flops"], rel_tol=0.3)
    assert "sum of layers and whole program: " in stdout and "TFLOP (" in stdout
    # the cached plan, with its compile time
    assert make_plan(capsys, on_cpu, tmp_path, "--full", *options)[1] == whole


def test_the_plan_of_a_sampling_step(on_cpu, capsys):
    code, stderr, stdout = run_plan(capsys, on_cpu, "--edit", "--mesh", "frames=1")
    assert code == 0, stderr
    assert "sampling step" in stdout and "one edit, " in stdout and "optimiser" not in stdout


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--mesh", "rows=2", "--mesh rows=2"),
        ("--efficiency", "2", "--efficiency 2.0"),
        ("--effort", "2", "--effort 2.0"),
        ("--topology", "v5e", "--topology v5e"),
        ("--remat", "some", "remat"),
        ("--size", "65", "size 65"),
    ],
)
def test_an_invalid_option_is_an_error_that_names_it(on_cpu, capsys, option, value, message):
    code, stderr, _ = run_plan(capsys, on_cpu, option, value)
    assert code == 2 and message in stderr and "Traceback" not in stderr


def test_published_models_need_no_files():
    config = dataclasses.replace(TrainConfig(), model="timbrooks/instruct-pix2pix")
    folder = programs.planned_folder(config)
    assert folder.unet.in_channels == 8 and folder.unet.temporal == ("conv", "attention")
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(param_shapes("vae", folder.vae))]
    assert sum(sizes) == 83653863  # Stable Diffusion's autoencoder
