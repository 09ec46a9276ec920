"""What the rest of a run would take: chip-hours of editing, and the chat model's price."""

import dataclasses
import statistics

import jax
import jax.numpy as jnp

from ivid2vid_jax.diffusion.denoiser import Condition, make_denoiser
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.parallel.chips import CHIPS
from ivid2vid_jax.synthesis import instructions
from ivid2vid_jax.synthesis.config import TRUTH
from ivid2vid_jax.synthesis.edit_schedule import inversion_schedule, sampling_steps
from ivid2vid_jax.synthesis.editors import EDITORS, TuneAVideoConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.training import flops
from ivid2vid_jax.weights.inflate import unet_param_shapes

EFFICIENCY = 0.3  # share of a chip's peak FLOP/s that editing reaches (an assumption, not measured)
CAPTION_LETTERS = 60
LETTERS_PER_TOKEN = 4  # of English
TOKENS_PER_PROPOSAL = 45


@dataclasses.dataclass(frozen=True)
class RemainingWork:
    """Numbers of clips in use, clips without instructions, and edits to make of how many clips."""

    clips: int
    unasked_clips: int
    edits: int
    edited_clips: int


def estimate(engine: Engine) -> str:
    """Describes the remaining work, line by line.

    Raises UserError if videos are still to be cut: their clips cannot be counted.
    """
    config, work = engine.config, remaining_work(engine)
    lines = [
        f"{work.clips} clips; to do: instructions for {work.unasked_clips} of them, "
        f"{work.edits} edits of {work.edited_clips}"
    ]
    if config.instructions == "chat" and work.unasked_clips:
        lines.append(chat_price(engine, work))
    seconds = seconds_of_edits(engine)
    if seconds and work.edits:
        mean = statistics.mean(seconds)
        lines.append(
            f"edits made so far took {mean:.1f} s each: {mean * work.edits / 3600:.2f} hours more "
            "on this machine"
        )
    if work.edits and config.editor != TRUTH:
        total = editing_flops(engine, work)
        lines.append(
            f"editing: {total / 1e15:.2f} PFLOP; chip-hours at {EFFICIENCY:.0%} of the peak:"
        )
        lines += [
            f"  {name}: {total / (chip.flops * EFFICIENCY) / 3600:.2f}"
            for name, chip in CHIPS.items()
        ]
    return "\n".join(lines)


def remaining_work(engine: Engine) -> RemainingWork:
    """Counts what is to do, assuming that every proposal to be asked for is accepted."""
    config, clips = engine.config, engine.clips.clips
    captions, known = engine.captions.manifest(), engine.instructions.fingerprints
    without_caption = {
        id
        for id, fingerprint in engine.captions.fingerprints.items()
        if captions.is_done(id, fingerprint) and id not in known
    }
    unasked = engine.instructions.manifest().pending(
        {id: known.get(id, "") for id in clips if id not in without_caption}
    )
    pending = engine.edits.manifest().pending(engine.edits.fingerprints)
    return RemainingWork(
        clips=len(clips),
        unasked_clips=len(unasked),
        edits=len(pending) + len(unasked) * config.per_clip * config.samples,
        edited_clips=len({engine.edits.clip_of(id) for id in pending} | set(unasked)),
    )


def chat_price(engine: Engine, work: RemainingWork) -> str:
    """The number of requests and tokens, their price, and the least time they take."""
    config, requests = engine.config, work.unasked_clips
    types = list(instructions.TYPES)[: config.per_clip]
    prompt = instructions.messages(" " * CAPTION_LETTERS, types)
    letters = sum(len(message["content"]) for message in prompt)
    tokens_in = requests * (letters // LETTERS_PER_TOKEN)
    tokens_out = requests * config.per_clip * TOKENS_PER_PROPOSAL
    price = (tokens_in * config.chat.price_in + tokens_out * config.chat.price_out) / 1e6
    cost = (
        f"${price:.2f}"
        if price
        else "price unknown: give --chat.price-in and --chat.price-out, dollars per million tokens"
    )
    return (
        f"{config.chat.model}: {requests} requests, {tokens_in:,} input and about {tokens_out:,} "
        f"output tokens, {cost}; at least {requests / config.chat.per_minute:.0f} minutes"
    )


def seconds_of_edits(engine: Engine) -> list[float]:
    """The times of the edits that were made with today's settings."""
    fingerprints = engine.edits.fingerprints
    return [
        line["seconds"]
        for line in engine.edits.manifest().lines.values()
        if fingerprints.get(line["id"]) == line["mark"] and "seconds" in line
    ]


def editing_flops(engine: Engine, work: RemainingWork) -> float:
    """Floating-point operations of tuning, inversion and sampling."""
    folder, settings = engine.edits.base_folder, engine.edits.settings
    once = unet_flops(engine)
    sampling = sampling_steps(settings) * 2 * work.edits  # two branches
    inversion = len(inversion_schedule(NoiseSchedule.from_json(folder.scheduler), settings))
    tuning = 3 * settings.steps if isinstance(settings, TuneAVideoConfig) else 0
    return float(once) * (sampling + (inversion + tuning) * work.edited_clips)


def unet_flops(engine: Engine) -> float:
    """Floating-point operations of one evaluation of the editor's U-Net on one clip."""
    config, folder = engine.config, engine.edits.base_folder
    unet = dataclasses.replace(folder.unet, **EDITORS[config.editor].changes)
    side, encoder = config.clips.size // folder.vae.downscale, folder.text_encoder
    x = jax.ShapeDtypeStruct((1, config.clips.frames, side, side, unet.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    text = jax.ShapeDtypeStruct(
        (1, encoder.max_position_embeddings, encoder.hidden_size), jnp.float32
    )
    denoise = make_denoiser(unet)
    return flops.count_flops(
        lambda params, x, t, text: denoise(params, x, t, Condition(text, None)),
        unet_param_shapes(unet),
        x,
        t,
        text,
    ).useful
