"""Prints a plan: memory, least time of a step, chip-hours."""

import dataclasses

from ivid2vid_jax.planning.chips import TPUSlice
from ivid2vid_jax.planning.plan_cache import PlanCache
from ivid2vid_jax.planning.step_plan import StepPlan, advice

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class RunEstimate:
    """What a plan's times and cost are computed from."""

    edit: bool  # one edit instead of a training run
    unit: str  # what a step makes, "clips" or "frames"
    amount: float  # how many of them
    steps: int  # of the run
    effort: float  # of the compiler; below 0 the HBM traffic is an upper bound
    efficiency: float  # share of the peak that is reached, 0 to 1
    price: float | None  # dollars per chip-hour


def plan_text(plan: StepPlan, tpu: TPUSlice, run: RunEstimate) -> str:
    """The plan as text, with advice if it does not fit into the memory of a chip."""
    lines = [
        *memory_lines(plan, tpu),
        "",
        *time_lines(plan, tpu, run),
        "",
        chip_hours_line(plan, tpu, run),
    ]
    if plan.memory > tpu.chip.hbm:
        lines += ["", *advice(run.edit)]
    return "\n".join(lines)


def memory_lines(plan: StepPlan, tpu: TPUSlice) -> list[str]:
    """A table of the memory of one chip."""
    proof = (
        "by the compiled program"
        if plan.whole
        else "UNPROVEN: the sum of layers compiled one by one"
    )
    verdict = "fits" if plan.memory <= tpu.chip.hbm else "DOES NOT FIT"
    return [
        f"memory per chip, {proof}",
        *(f"  {name:32s} {size / GIB:8.2f} GiB" for name, size in plan.memory_parts.items()),
        f"  {'sum':32s} {plan.memory / GIB:8.2f} GiB of {tpu.chip.hbm / GIB:.0f}: {verdict}",
    ]


def time_lines(plan: StepPlan, tpu: TPUSlice, run: RunEstimate) -> list[str]:
    """A table of the least times of a step."""
    times = plan.times(tpu.chip)
    amounts = {
        "arithmetic": f"{plan.flops / 1e12:.2f} TFLOP",
        "HBM": f"{plan.hbm_bytes / 1e9:.1f} GB",
        "interconnect": f"{sum(plan.sent.values()) / 1e9:.2f} GB sent",
    }
    slowest = max(times, key=lambda name: times[name])
    notes = {slowest: "  <- bottleneck"}
    if run.effort < 0:
        notes["HBM"] = "  at most: --effort 0 moves less" + (
            "  <- may be the bottleneck" if slowest == "HBM" else ""
        )
    bound = max(seconds for name, seconds in times.items() if run.effort >= 0 or name != "HBM")
    collectives = sorted(plan.sent.items(), key=lambda item: -item[1])
    return [
        f"time per step at the published peaks (cloud.google.com/tpu/docs/{tpu.kind})",
        *(
            f"  {name:14s} {amounts[name]:>16s} {seconds:9.4f} s{notes.get(name, '')}"
            for name, seconds in times.items()
        ),
        *(f"    {kind:20s} {size / 1e9:8.3f} GB" for kind, size in collectives),
        f"  at least {bound:.4f} s per step; "
        f"at most {run.amount / bound:.2f} {run.unit} per second",
    ]


def chip_hours_line(plan: StepPlan, tpu: TPUSlice, run: RunEstimate) -> str:
    """The chip-hours and the cost of a run."""
    slowest = max(plan.times(tpu.chip).values())
    hours = run.steps * slowest / run.efficiency * tpu.count / 3600
    cost = (
        f"{run.price * hours:.3g} dollars at {run.price} per chip-hour"
        if run.price
        else "--price gives the cost (cloud.google.com/tpu/pricing)"
    )
    return (
        f"{'one edit' if run.edit else 'the whole run'}, {run.steps} steps at "
        f"{run.efficiency:.0%} of the peak of the bottleneck: {hours:.3g} chip-hours; {cost}"
    )


def comparison_line(cache: PlanCache) -> str:
    """The difference between the plan by layers and that of the whole program, if both exist."""
    by_layers, whole = cache.load(whole=False), cache.load(whole=True)
    if not (by_layers and whole):
        option = "without" if whole else "with"
        return f"to compare the sum of layers with the whole program, run it {option} --full too"
    pairs = {
        "GiB": (by_layers.memory / GIB, whole.memory / GIB),
        "TFLOP": (by_layers.flops / 1e12, whole.flops / 1e12),
        "GB of HBM": (by_layers.hbm_bytes / 1e9, whole.hbm_bytes / 1e9),
    }
    return "sum of layers and whole program: " + "; ".join(
        f"{a:.2f} and {b:.2f} {unit} ({a / b - 1:+.0%})" for unit, (a, b) in pairs.items()
    )
