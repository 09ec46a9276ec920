"""What a run of the data engine still takes, before anything runs: chip-hours of editing, and the chat's price."""

import dataclasses
import statistics

import jax
import jax.numpy as jnp

from ivid2vid_jax.diffusion.denoiser import Condition, make_denoiser
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.planning.chips import CHIPS
from ivid2vid_jax.synthesis import instructions
from ivid2vid_jax.synthesis.config import TRUTH
from ivid2vid_jax.synthesis.editors import EDITORS, TuneAVideoConfig, inversion_schedule, steps_left
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.training import flops
from ivid2vid_jax.weights.inflate import unet_param_shapes

EFFICIENCY = (
    0.3  # of a chip's peak that editing reaches; an assumption, until edits have been timed
)
LETTERS = 4  # of a token of English
REPLY = 45  # tokens of one proposal


def estimate(engine: Engine) -> str:
    """A table of what is left to do. Clips that are still to be cut are not counted: run --stages clips first."""
    c, kept = engine.config, engine.kept
    captions, known = engine.manifest("captions"), engine.instruction_marks
    without = {
        id
        for id, each in engine.caption_marks.items()
        if captions.is_done(id, each) and id not in known
    }  # no caption, so no instructions
    asked = engine.manifest("instructions").missing(
        {id: known.get(id, "") for id in kept if id not in without}
    )
    jobs = engine.jobs
    waiting = engine.manifest("edits").missing(engine.edit_marks)
    edits, clips = (
        len(waiting) + len(asked) * c.per_clip * c.samples,
        len({jobs[id].clip for id in waiting} | set(asked)),
    )
    out = [
        f"{len(kept)} clips; to do: instructions for {len(asked)} of them, {edits} edits of {clips}"
    ]
    if c.instructions == "chat" and asked:
        told = (
            sum(
                len(message["content"])
                for message in instructions.messages(
                    " " * 60, list(instructions.TYPES)[: c.per_clip]
                )
            )
            // LETTERS
        )
        tokens = (len(asked) * told, len(asked) * c.per_clip * REPLY)
        price = (tokens[0] * c.chat.price_in + tokens[1] * c.chat.price_out) / 1e6
        cost = (
            f"${price:.2f}"
            if price
            else "price unknown: give --chat.price-in and --chat.price-out, dollars a million tokens"
        )
        minutes = len(asked) / c.chat.per_minute
        out.append(
            f"{c.chat.model}: {len(asked)} requests, {tokens[0]:,} tokens asked and about {tokens[1]:,} answered, {cost}; {minutes:.0f} minutes at least"
        )
    timed = [
        line["seconds"]
        for line in engine.manifest("edits").lines.values()
        if line["id"] in jobs and line["mark"] == jobs[line["id"]].mark and "seconds" in line
    ]
    if timed and edits:
        out.append(
            f"edits made so far took {statistics.mean(timed):.1f} s each: {statistics.mean(timed) * edits / 3600:.2f} hours more on this machine"
        )
    if edits and c.editor != TRUTH:
        work = of_clips(engine, clips, edits)
        out += [f"editing: {work / 1e15:.2f} PFLOP; chip-hours at {EFFICIENCY:.0%} of the peak:"]
        out += [
            f"  {name}: {work / (chip.flops * EFFICIENCY) / 3600:.2f}"
            for name, chip in CHIPS.items()
        ]
    return "\n".join(out)


def of_clips(engine: Engine, clips: int, edits: int) -> float:
    """Floating point operations of tuning, inverting and sampling."""
    c, folder, settings = engine.config, engine.base_folder, engine.settings
    unet = dataclasses.replace(folder.unet, **EDITORS[c.editor].changes)
    side, text = c.clips.size // folder.vae.downscale, folder.text_encoder
    x = jax.ShapeDtypeStruct((1, c.clips.frames, side, side, unet.in_channels), jnp.float32)
    told = jax.ShapeDtypeStruct((1, text.max_position_embeddings, text.hidden_size), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    net = make_denoiser(unet)
    once = flops.count(
        lambda params, x, t, text: net(params, x, t, Condition(text, None)),
        unet_param_shapes(unet),
        x,
        t,
        told,
    ).useful
    sampled = steps_left(settings) * 2 * edits
    inverted = len(inversion_schedule(NoiseSchedule.from_json(folder.scheduler), settings)) * clips
    tuned = 3 * settings.steps * clips if isinstance(settings, TuneAVideoConfig) else 0
    return float(once) * (sampled + inverted + tuned)
