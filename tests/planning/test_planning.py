"""Plans: what is counted against what is known; every layer is found; the command, with CPU devices in the place of TPU chips."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax import plan
from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.attention import attention
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.planning import chips, hlo, programs, report, stages
from ivid2vid_jax.training import flops
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.utils.cli import recipe_loader
from ivid2vid_jax.utils.errors import UserError
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

    once = 2 * (2 * 8 * 8) * 9 * 3 * 5
    assert flops.count(conv, x, k) == flops.Count(conv=once)
    for stride in (1, 2):
        forward = once // stride**2
        assert flops.count(
            jax.grad(lambda x, k: conv(x, k, stride).sum(), (0, 1)), x, k
        ).conv == pytest.approx(3 * forward, rel=0.25)
    a = Shape((4, 6), jnp.float32)
    assert flops.count(jax.jit(jax.checkpoint(lambda a: jnp.sin(a @ a.T))), a).dot == 2 * 4 * 6 * 4


def test_what_the_compiler_leaves_out_of_loops_is_counted():
    a = jnp.ones((4, 6))

    def loop(a, length=7):
        return jax.lax.scan(lambda c, _: (c @ a.T @ a, None), a, None, length=length)[0]

    def loops(a):
        return jax.lax.scan(lambda c, _: (loop(c, 5), None), loop(a), None, length=3)[0]

    body = 2 * (2 * 4 * 6 * 4)
    assert flops.count(loop, a) == flops.Count(dot=7 * body, repeated=6 * body)
    for function, turns in ((loop, 7), (loops, 7 + 3 * 5)):
        compiled = jax.jit(function).lower(a).compile()
        assert compiled.cost_analysis()["flops"] + flops.count(
            function, a
        ).uncounted == pytest.approx(turns * body, rel=0.1)


def test_the_compilers_own_loops_do_not_hide_operations():
    traced = flops.Count(dot=600, conv=200, splash=100, padding=100, repeated=300)
    assert traced.on_a_chip(told=130, chips=4) == 130 + 500 / 4  # all that is not in told is known
    assert (
        traced.on_a_chip(told=20, chips=4) == 1000 / 4
    )  # less than an even share: loops hid the rest


def test_splash_attention_is_counted_by_its_formula():
    q, k = Shape((2, 256, 4, 40), jnp.bfloat16), Shape((2, 512, 4, 40), jnp.bfloat16)
    product = 2 * 2 * 4 * 256 * 512 * 40
    forward = flops.count(lambda q, k: attention(q, k, k, "splash"), q, k)
    assert forward.splash == 2 * product and forward.padding == pytest.approx(
        2 * product * 88 / 40, rel=1e-6
    )
    both = flops.count(
        jax.grad(lambda q, k: attention(q, k, k, "splash").astype(jnp.float32).sum(), (0, 1)), q, k
    )
    assert both.splash == (2 + 4 + 3) * product
    turned = flops.count(
        lambda q, k: attention(q, k, k, "splash"),
        Shape((2, 256, 4, 128), jnp.bfloat16),
        Shape((2, 256, 4, 128), jnp.bfloat16),
    )
    assert (turned.splash, turned.padding) == (
        2 * 2 * 2 * 4 * 256 * 256 * 128,
        0,
    )  # whole lanes: the other order of axes in memory


def test_what_splash_attention_reads_again_is_counted():
    """Forward, 4 blocks of queries: keys and values come four times, and 3 times are beyond what the program's text shows. Of 40 x 4,096 in 16 bits
    tiles of 16 x 128 hold 48 x 4,096. A single block of keys stays on the chip.
    """
    q = Shape((2, 4096, 4, 40), jnp.bfloat16)
    assert flops.count(lambda q: attention(q, q, q, "splash"), q).fetched == 3 * 2 * (
        2 * 4 * 48 * 4096 * 2
    )
    short = Shape((2, 1024, 4, 40), jnp.bfloat16)
    assert flops.count(lambda q, k: attention(q, k, k, "splash"), q, short).fetched == 0


TUNE_A_VIDEO = dataclasses.replace(
    programs.SD15, temporal=("tune_a_video",), spatial_attention="sparse_causal", group_norm="clip"
)
MOTION = dataclasses.replace(programs.SD15, temporal=("motion",), use_motion_mid_block=True)
SD21 = dataclasses.replace(programs.SD21, in_channels=8, temporal=("conv", "attention"))


@pytest.mark.parametrize(
    ("config", "impl"),
    [
        (SD15, "xla"),
        (SD15, "splash"),
        (programs.SD15, "xla"),
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
    counted = flops.count(
        lambda p, *args: net.apply({"params": p}, *args), param_shapes("unet", config), *args
    )
    assert counted.useful == pytest.approx(formula.unet_forward(config, 2, 8, 32, 32, 77), rel=0.05)


def test_every_parameter_belongs_to_one_layer():
    found = stages.stages(
        SD15,
        Shape((1, 16, 32, 32, 8), jnp.bfloat16),
        Shape((1, 77, 768), jnp.bfloat16),
        ("temporal",),
    )
    count = 0
    for stage in found:
        params = jax.eval_shape(stage.module.init, jax.random.key(0), *stage.args)["params"]
        count += stage.count * sum(x.size for x in jax.tree.leaves(params))
    assert count == sum(x.size for x in jax.tree.leaves(param_shapes("unet", SD15)))
    assert {stage.path.split("/")[-1].split(".")[0] for stage in found if stage.trained} == {
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
  %s = ((f32[100,40]{1,0:T(8,128)}), f32[8,40]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:8], [0:40]}
  %d = f32[8,40]{1,0:T(8,128)S(1)} slice-done(%s)
  %w = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) while(%t0), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %r = f32[100,40]{1,0:T(8,128)} all-reduce(%a), replica_groups=[4,2]<=[8], to_apply=%add
  %x = (f32[25,40]{1,0:T(8,128)}, f32[100,40]{1,0:T(8,128)}) all-gather-start(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %o = f32[100,40]{1,0:T(8,128)} add(%a, %r)
}
"""


GATHERED = """HloModule jit_both, is_scheduled=true

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


def test_trips_are_read_from_a_loops_condition():
    """0, 2, ... 14: eight; once where the condition is another."""
    assert hlo.sent(GATHERED, 16) == {"collective-permute": 8 * 8 * 128 * 2}
    assert hlo.sent(GATHERED.replace("direction=LT", "direction=NE"), 16) == {
        "collective-permute": 8 * 128 * 2
    }
    assert hlo.sent(GATHERED.replace("add(", "subtract("), 16) == {
        "collective-permute": 8 * 128 * 2
    }
    assert hlo.sent(GATHERED.replace("constant(15)", "parameter(1)"), 16) == {
        "collective-permute": 8 * 128 * 2
    }


def test_traffic_is_read_from_the_compilers_text():
    """Arrays on the chip are free, tiles are padded, loops count their trips, slices what they take out."""
    array = 104 * 128 * 4
    copied, sliced, loop, reduced, added = (
        array,
        8 * 128 * 4,
        10 * 2 * 8 * 128 * 2,
        2 * array,
        3 * array,
    )
    gathered = 32 * 128 * 4 + array
    assert hlo.moved(TEXT) == copied + sliced + loop + reduced + gathered + added
    assert hlo.sent(TEXT, 8) == {"all-reduce": 2 * 16000 * 1 // 2, "all-gather": 16000 * 3 // 4}


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
def test_slices_that_are_none_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        chips.TPUSlice(name)


@pytest.fixture
def on_cpu(monkeypatch, tmp_path):
    """CPU devices in the place of chips, the tiny recipe in that of the default."""
    monkeypatch.setattr(chips.TPUSlice, "devices", lambda self: jax.devices("cpu")[:1] * 1)
    monkeypatch.setattr(chips, "cache_folder", lambda: tmp_path / "cache")
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from tests.support.sharded_run import recipe\n\nconfig = recipe('unused')\n")
    return recipe


def planned(capsys, recipe, tmp_path, *words) -> tuple[str, dict]:
    """(what the command said, the plan it wrote)."""
    words = [
        "--config",
        recipe,
        "--topology",
        "v5e:1x1",
        "--price",
        "2",
        "--output",
        tmp_path / "plan.json",
        *words,
    ]
    code, err, out = run_command(capsys, plan.PlanArgs, plan.run, *words)
    assert code == 0, err
    return out, json.loads((tmp_path / "plan.json").read_text())["plan"]


def test_the_plan_of_a_training_step(on_cpu, tmp_path, capsys):
    """Layer by layer; the second time nothing is compiled."""
    out, layers = planned(capsys, on_cpu, tmp_path)
    assert (
        "UNPROVEN" in out
        and "fits" in out
        and "at least" in out
        and "chip-hours;" in out
        and "dollars at 2.0" in out
    )
    assert (
        layers["held"]["parameters"] * 2 == pytest.approx(layers["held"]["optimiser"], rel=0.01)
        and layers["flops"] > 0
    )
    assert "with --full too" in out
    assert (
        "at most: --effort 0 moves less" in out
        and "at most"
        not in planned(capsys, on_cpu, tmp_path, "--effort", "0")[0].partition("a step;")[0]
    )
    assert planned(capsys, on_cpu, tmp_path)[1]["seconds"] < 2


@pytest.mark.parametrize(("effort", "seconds"), [(0, 3.0), (-1, 2.0)])
def test_traffic_at_low_effort_bounds_nothing(effort, seconds):
    """Arithmetic 2 s, HBM 3 s: with the compiler's low effort a run may move less, so the least time is the arithmetic's."""
    where = chips.TPUSlice("v5e:1x1")
    told = report.StepPlan(
        {"parameters": 1}, 2 * where.chip.flops, 3 * where.chip.bandwidth, {}, False, 0.0
    )
    words = report.plan_text(told, where, "clips", 6, 100, 0.5, None, False, effort)
    assert f"at least {seconds:.4f} s a step; at most {6 / seconds:.2f} clips a second" in words
    assert ("at most: --effort 0" in words) == (
        effort < 0
    ) and "0.167 chip-hours" in words  # 100 steps of 3 s at half of that speed


def test_a_program_that_does_not_fit_is_refused_with_what_helps(
    on_cpu, tmp_path, monkeypatch, capsys
):
    def compile(self, *args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 16.8G of 15.7G hbm\nmore lines")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    code, err, _ = run_command(
        capsys, plan.PlanArgs, plan.run, "--config", on_cpu, "--topology", "v5e:1x1", "--full"
    )
    assert (
        code == 2
        and "Used 16.8G of 15.7G" in err
        and "--remat block" in err
        and "Traceback" not in err
    )


def test_a_sampling_step_is_traced_whole(on_cpu):
    """What --edit --full compiles: it leaves latents as it finds them, and its arithmetic is that of three branches."""
    config = recipe_loader(TrainConfig)(on_cpu)
    mesh = make_mesh(MeshConfig(), jax.devices("cpu")[:1])
    counted = []
    for branches in (1, 3):
        program = programs.editing_program(config, programs.folder_of(config), mesh, branches)
        with jax.set_mesh(mesh):
            after = jax.eval_shape(program.function, *program.args)
            counted.append(flops.count(program.function, *program.args).useful)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), program.args[1]
        )
    assert counted[1] == pytest.approx(3 * counted[0], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("what", [[], ["--edit"]], ids=["training", "editing"])
def test_layers_and_the_whole_agree(on_cpu, tmp_path, capsys, what):
    _, layers = planned(capsys, on_cpu, tmp_path, *what)
    out, whole = planned(capsys, on_cpu, tmp_path, "--full", *what)
    assert "UNPROVEN" not in out and "by the compiled program" in out
    assert whole["held"]["parameters"] == layers["held"]["parameters"] and math.isclose(
        whole["flops"], layers["flops"], rel_tol=0.3
    )
    assert "by layers and whole: " in out and "TFLOP (" in out
    assert (
        planned(capsys, on_cpu, tmp_path, "--full", *what)[1] == whole
    )  # remembered, the seconds that it took among it


def test_the_plan_of_a_sampling_step(on_cpu, capsys):
    code, err, out = run_command(
        capsys,
        plan.PlanArgs,
        plan.run,
        "--config",
        on_cpu,
        "--topology",
        "v5e:1x1",
        "--edit",
        "--mesh",
        "frames=1",
    )
    assert (
        code == 0 and "sampling step" in out and "one edit, " in out and "optimiser" not in out
    ), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mesh", "rows=2"], "--mesh rows=2"),
        (["--efficiency", "2"], "--efficiency 2.0"),
        (["--effort", "2"], "--effort 2.0"),
        (["--topology", "v5e"], "--topology v5e"),
        (["--remat", "some"], "remat"),
        (["--size", "65"], "size 65"),
    ],
)
def test_bad_input_is_refused_by_name(on_cpu, capsys, words, message):
    code, err, _ = run_command(capsys, plan.PlanArgs, plan.run, "--config", on_cpu, *words)
    assert code == 2 and message in err and "Traceback" not in err


def test_known_models_need_no_files():
    config = dataclasses.replace(TrainConfig(), model="timbrooks/instruct-pix2pix")
    folder = programs.folder_of(config)
    assert folder.unet.in_channels == 8 and folder.unet.temporal == ("conv", "attention")
    assert (
        sum(np.prod(x.shape) for x in jax.tree.leaves(param_shapes("vae", folder.vae))) == 83653863
    )  # Stable Diffusion's autoencoder
