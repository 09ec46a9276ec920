"""The data engine: videos -> clips -> captions -> instructions -> edits -> scores -> triplets. Each stage can be run alone and goes on where it was.

An item's mark (`synthesis/manifest.py`) hangs on the marks of what it is made from and on its stage's settings, so a stage that is run
again does what is missing or was made of something else, and nothing twice. How many are worked on at once is in no mark: by tests/synthesis/test_editors.py and
tests/synthesis/test_captions.py it changes an edit by at most one grey level, and no caption. Sharded over processes, a stage does its own items alone;
`clips` must be done by all before the others begin, and all before `write`, which is one process's.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.evaluation.clip_scores import CLIPScores, clip_scorer
from ivid2vid_jax.synthesis import captions, instructions
from ivid2vid_jax.synthesis.chat import Chat
from ivid2vid_jax.synthesis.clip_cutting import write
from ivid2vid_jax.synthesis.config import OWN, TRUTH, SynthesisConfig
from ivid2vid_jax.synthesis.editors import EDITORS, EditTask, check_size
from ivid2vid_jax.synthesis.filter import rejection_reason
from ivid2vid_jax.synthesis.manifest import (
    ACCEPTED,
    FAILED,
    REJECTED,
    Manifest,
    fingerprint,
    run_pending,
    run_pending_groups,
    shard_index,
)
from ivid2vid_jax.synthesis.sources import open_source
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, file_sha256, open_pipeline_folder


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit that is to be made. mark: of its making, not of its scores. spec: the shapes world's, else empty."""

    id: str
    clip: str
    video: str
    caption: str
    instruction: str
    edited_caption: str
    edit_type: str
    spec: str
    seed: int
    mark: str


class Engine:
    """The stages over one folder; `run` does those of the config."""

    def __init__(self, config: SynthesisConfig):
        config.check()
        self.config, self.folder, self.shard = config, Path(config.output), config.part()
        self.source = open_source(config)
        if (
            self.folder.exists()
            and any(self.folder.iterdir())
            and not (self.folder / "clips.jsonl").is_file()
            and not any(self.folder.glob("clips-*.jsonl"))
        ):
            raise UserError(
                f"--output {self.folder}: holds other things and was not made by this command; name a new folder"
            )

    def barrier(self, stage: str) -> None:
        """Waits for the other processes of `--shard auto`: the next stage may need what all have made, and one that left would end them all."""
        if self.config.shard == "auto" and self.shard[1] > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"ivid2vid_jax.synthesis.{stage}")

    # ---- stages

    def clips(self) -> None:
        marks, manifest = self.source.marks(), self.manifest("clips")
        with Progress("clips") as progress:
            run_pending(manifest, self.shard_items(marks), self.source.make, progress=progress)
        self.report_stage("clips", marks)
        if not self.manifest("clips").missing(marks) and self.repeats:
            print(
                f"  {len(self.repeats)} clips repeat others and are left out, {' and '.join(next(iter(self.repeats.items())))} among them"
            )

    def captions(self) -> None:
        config, marks = self.config.captions, self.caption_marks
        manifest, mine = self.manifest("captions"), self.shard_items(marks)
        if config.source != "blip":
            run_pending(manifest, mine, self.caption_from_file)
        elif todo := manifest.missing(mine):
            blip = captions.Blip(config)
            with Progress("captions", len(todo)) as progress:

                def work(ids):
                    found = blip([middle(self.clip(id)) for id in ids])
                    progress.bar.update(len(ids))
                    return [
                        (ACCEPTED, {"caption": each, "model": config.model})
                        if each
                        else (REJECTED, {"reason": "BLIP says nothing"})
                        for each in found
                    ]

                run_pending_groups(manifest, mine, batched(sorted(mine), config.batch), work)
        self.report_stage("captions", marks)

    def caption_from_file(self, id: str) -> tuple[str, dict]:
        caption = self.caption_file[id]
        return (
            (ACCEPTED, {"caption": caption, "model": self.config.captions.source})
            if caption
            else (REJECTED, {"reason": "the file has no caption of it"})
        )

    def instructions(self) -> None:
        c, marks, caption_of = self.config, self.instruction_marks, self.caption_of
        manifest, mine = self.manifest("instructions"), self.shard_items(marks)
        if manifest.missing(mine):
            ask = self.proposer()
            with Progress("instructions") as progress:
                run_pending(
                    manifest,
                    mine,
                    lambda id: ask(id, caption_of[id]),
                    c.chat.concurrency if c.instructions == "chat" else 1,
                    progress,
                )
        self.report_stage("instructions", marks)

    def proposer(self):
        """f(clip id, caption) -> (status, facts)."""
        c = self.config
        if c.instructions == OWN:
            return lambda id, caption: (
                ACCEPTED,
                {
                    "caption": caption,
                    "model": OWN,
                    "proposals": [proposal(spec) for spec in self.specs(id)],
                    "refused": [],
                },
            )
        if c.instructions == "chat":
            chat = Chat(c.chat)
            return lambda id, caption: instructions.by_chat(chat, caption, self.types(id))
        if c.instructions == "rules":
            return lambda id, caption: instructions.by_rules(caption, self.types(id), c.seed)

        def look_up(id, caption):
            taken, refused = instructions.filter_proposals(
                self.listed.get(caption, []), caption, c.per_clip
            )
            return instructions.instruction_outcome(
                {"caption": caption, "model": c.instructions}, taken, refused
            )

        return look_up

    def types(self, id: str) -> list[str]:
        """The edit types asked for a clip: by its id, so that they hang on no list and are asked for equally often in the long run."""
        return instructions.target_types(int(fingerprint(id), 16), self.config.per_clip)

    def edits(self) -> None:
        """All edits of a clip by one seed are made together, and of as many clips as the editor takes at once."""
        marks = self.edit_marks
        manifest, mine = (
            self.manifest("edits"),
            {id: each for id, each in marks.items() if self.in_shard(self.jobs[id].clip)},
        )
        if self.config.editor == TRUTH:
            with Progress("edits") as progress:
                run_pending(manifest, mine, self.true_edit, progress=progress)
        elif manifest.missing(mine):
            self.edit_groups(manifest, mine)
        self.report_stage("edits", marks)

    def edit_groups(self, manifest: Manifest, mine: dict[str, str]) -> None:
        editor = EDITORS[self.config.editor](self.base, self.settings, self.config.devices)
        parts: dict[tuple[str, int], list[str]] = {}
        for id in sorted(mine):
            parts.setdefault(self.part(id), []).append(id)
        groups = [
            [id for part in some for id in parts[part]]
            for some in batched(sorted(parts), editor.together)
        ]
        todo, done = set(manifest.missing(mine)), itertools.count()
        waiting = sum(bool(todo.intersection(group)) for group in groups)
        with Progress(f"edits, {editor.together} clips at once") as progress:

            def work(ids: list[str]) -> list[tuple[str, dict]]:
                began, before = time.monotonic(), next(done)
                tasks = []
                for clip, seed in dict.fromkeys(map(self.part, ids)):
                    edits = [self.jobs[id] for id in parts[clip, seed]]
                    tasks.append(
                        EditTask(
                            self.clip(clip),
                            edits[0].caption,
                            tuple(edit.edited_caption for edit in edits),
                            seed,
                        )
                    )
                made = itertools.chain(
                    *editor(
                        tasks, lambda step, steps: progress(before * steps + step, waiting * steps)
                    )
                )
                seconds = round((time.monotonic() - began) / len(ids), 3)
                return [
                    self.edited_as(id, edited, seconds)
                    for id, edited in zip(ids, made, strict=True)
                ]

            run_pending_groups(manifest, mine, groups, work)

    def part(self, id: str) -> tuple[str, int]:
        """The clip and the seed of an edit."""
        return self.jobs[id].clip, self.jobs[id].seed

    def edited_as(self, id: str, edited: np.ndarray | None, seconds: float) -> tuple[str, dict]:
        if edited is None:
            return REJECTED, {"reason": "the net gave numbers that are not finite"}
        write(self.folder / "edits" / f"{id}.npy", edited)
        return ACCEPTED, {
            "editor": self.config.editor,
            "base": self.config.base,
            "seed": self.jobs[id].seed,
            "seconds": seconds,
        }

    def true_edit(self, id: str) -> tuple[str, dict]:
        spec = shapes.Spec.from_json(self.jobs[id].spec)
        write(
            self.folder / "edits" / f"{id}.npy", shapes.render(spec.edited, spec.size, spec.frames)
        )
        return ACCEPTED, {"editor": TRUTH}

    def scores(self) -> None:
        marks = self.score_marks
        manifest, mine = (
            self.manifest("scores"),
            {id: each for id, each in marks.items() if self.in_shard(self.jobs[id].clip)},
        )
        if manifest.missing(mine):
            from ivid2vid_jax.evaluation.clip_scores import load_clip

            judge = clip_scorer(load_clip(self.config.filter.model))

            def work(id):
                edit = self.jobs[id]
                found: CLIPScores = judge(
                    self.clip(edit.clip), self.edited(id), edit.caption, edit.edited_caption
                )
                facts = {
                    "prompt": f"{edit.clip}: {edit.instruction}",
                    "scores": dataclasses.asdict(found),
                    "model": self.config.filter.model,
                }
                reason = rejection_reason(found, self.config.filter)
                return (REJECTED, facts | {"reason": reason}) if reason else (ACCEPTED, facts)

            with Progress("scores") as progress:
                run_pending(manifest, mine, work, progress=progress)
        self.report_stage("scores", marks)

    # ---- what stages are made from

    @cached_property
    def kept(self) -> dict[str, dict]:
        """Id -> facts of the clips that are used, with their video and mark. UserError where a shard has not cut its own yet."""
        marks, manifest = self.source.marks(), self.manifest("clips")
        if missing := manifest.missing(marks):
            raise UserError(
                f"{self.folder}: {len(missing)} of {len(marks)} videos are still to be cut: run --stages clips first"
                + (", of every shard" if self.shard[1] > 1 else "")
            )
        return {
            clip["id"]: clip | {"video": line["id"], "mark": fingerprint(line["mark"], clip["id"])}
            for line in manifest.accepted(marks)
            for clip in line["clips"]
            if clip["id"] not in self.repeats
        }

    @cached_property
    def repeats(self) -> dict[str, str]:
        """Id of a clip that is left out -> that of the one that it repeats; all videos have been cut."""
        return self.source.repeats(self.manifest("clips").accepted(self.source.marks()))

    def marks(self, stage: str) -> dict[str, str]:
        """Id -> mark of the items of a stage, as far as the stages before it have come."""
        return (
            self.source.marks()
            if stage == "clips"
            else getattr(self, f"{stage.removesuffix('s')}_marks")
        )

    @cached_property
    def caption_file(self) -> dict[str, str | None]:
        """Clip -> caption where BLIP is not asked; None where the file has none."""
        if self.config.captions.source == OWN:
            return {id: shapes.caption(self.specs(id)[0].scene) for id in self.kept}
        known = captions.from_file(Path(self.config.captions.source))
        return {id: captions.of_clip(known, id, clip["video"]) for id, clip in self.kept.items()}

    @cached_property
    def caption_marks(self) -> dict[str, str]:
        c = self.config.captions
        if c.source == "blip":
            settings = dataclasses.asdict(
                dataclasses.replace(c, batch=8, model=weights_of(c.model))
            )
            return {id: fingerprint(clip["mark"], settings) for id, clip in self.kept.items()}
        if c.source == OWN:
            return {id: fingerprint(clip["mark"], OWN) for id, clip in self.kept.items()}
        return {
            id: fingerprint(clip["mark"], c.source, self.caption_file[id])
            for id, clip in self.kept.items()
        }

    @cached_property
    def caption_of(self) -> dict[str, str]:
        """Clip -> caption."""
        return {
            line["id"]: line["caption"]
            for line in self.manifest("captions").accepted(self.caption_marks)
        }

    @cached_property
    def listed(self) -> dict[str, list]:
        """Caption -> proposals, of the file of instructions."""
        out: dict[str, list] = {}
        for caption, each in instructions.from_file(Path(self.config.instructions)):
            out.setdefault(" ".join(caption.split()), []).append(each)
        return out

    @cached_property
    def instruction_marks(self) -> dict[str, str]:
        c = self.config
        how = {
            "chat": [c.chat.model, c.chat.temperature, instructions.prompt_hash()],
            "rules": [c.seed],
            OWN: [],
        }.get(c.instructions)

        def of(caption: str) -> list:
            return (
                [dataclasses.astuple(each) for each in self.listed.get(caption, [])]
                if how is None
                else how
            )

        return {
            id: fingerprint(self.kept[id]["mark"], caption, c.instructions, c.per_clip, of(caption))
            for id, caption in self.caption_of.items()
        }

    @cached_property
    def jobs(self) -> dict[str, Edit]:
        """Id -> edit, of every proposal that was taken."""
        c = self.config
        if c.editor == TRUTH:
            how = fingerprint(TRUTH)
        else:
            how = fingerprint(
                c.editor,
                dataclasses.asdict(dataclasses.replace(self.settings, at_once=1)),
                self.base_folder.fingerprint(),
                c.seed,
            )
        lines = self.manifest("instructions").accepted(self.instruction_marks)
        edits = (
            self.job(line, each, how, sample)
            for line in lines
            for each in line["proposals"]
            for sample in range(c.samples)
        )
        return {edit.id: edit for edit in edits}

    def job(self, line: dict, proposal: dict, how: str, sample: int) -> Edit:
        """A sample of a proposal of a clip's line; the first is what it is where it is the only one."""
        clip, words, number = (
            line["id"],
            (proposal["instruction"], proposal["edited_caption"]),
            [sample] if sample else [],
        )
        id = "-".join([f"{clip}.{fingerprint(words)[:8]}", *map(str, number)])
        decides = fingerprint(self.kept[clip]["mark"], line["caption"], words, how, *number)
        spec = proposal.get("spec") or self.spec(clip, proposal["edited_caption"])
        return Edit(
            id,
            clip,
            self.kept[clip]["video"],
            line["caption"],
            *words,
            proposal["edit_type"],
            spec,
            self.seed(clip, *number),
            decides,
        )

    @property
    def edit_marks(self) -> dict[str, str]:
        return {id: edit.mark for id, edit in self.jobs.items()}

    @cached_property
    def score_marks(self) -> dict[str, str]:
        """Of the edits that have been made."""
        config = dataclasses.asdict(
            dataclasses.replace(
                self.config.filter, keep=1, model=weights_of(self.config.filter.model)
            )
        )
        return {
            line["id"]: fingerprint(line["mark"], config)
            for line in self.manifest("edits").accepted(self.edit_marks)
        }

    @cached_property
    def base_folder(self) -> PipelineFolder:
        """The base's, its weights unread. UserError for clips of a size that its nets cannot take."""
        folder = open_pipeline_folder(hub.resolve_model(self.config.base))
        check_size(folder, (self.config.clips.size,) * 2)
        return folder

    @cached_property
    def base(self):
        """The pipeline that edits."""
        from ivid2vid_jax.inference import pipeline

        return pipeline.load(self.config.base, devices=1)

    @property
    def settings(self):
        """The editor's."""
        return getattr(self.config, self.config.editor)

    def spec(self, clip: str, edited_caption: str) -> str:
        """The shapes world's spec of an edit that is known by its words alone; empty for other clips and for edits that this scene cannot be given."""
        if self.config.videos != OWN:
            return ""
        first = self.specs(clip)[0]
        edit = shapes.edit_towards(first.scene, edited_caption)
        return dataclasses.replace(first, edit=edit).to_json() if edit else ""

    def specs(self, clip: str) -> list[shapes.Spec]:
        return [shapes.Spec.from_json(text) for text in self.kept[clip]["specs"]]

    def clip(self, id: str) -> np.ndarray:
        return np.load(self.folder / "clips" / f"{id}.npy")

    def edited(self, id: str) -> np.ndarray:
        return np.load(self.folder / "edits" / f"{id}.npy")

    def seed(self, clip: str, *sample: int) -> int:
        return int(fingerprint(self.config.seed, clip, *sample)[:8], 16)

    def manifest(self, stage: str) -> Manifest:
        return Manifest(self.folder, stage, self.shard)

    def shard_items(self, marks: dict[str, str]) -> dict[str, str]:
        """Of videos or clips, those of this shard."""
        return {id: each for id, each in marks.items() if self.in_shard(id)}

    def in_shard(self, id: str) -> bool:
        return shard_index(id, self.shard)

    def report_stage(self, stage: str, marks: dict[str, str]) -> None:
        """Says on the screen what a stage has come to, all shards together."""
        manifest = self.manifest(stage)
        reasons = manifest.reasons(marks)
        counts = {
            status: sum(number for reason, number in reasons.items() if reason.startswith(status))
            for status in (REJECTED, FAILED)
        }
        accepted = len(manifest.accepted(marks))
        left = len(marks) - accepted - sum(counts.values())
        print(
            f"{stage}: {accepted} accepted, {counts[REJECTED]} rejected, {counts[FAILED]} failed, {left} to do; {manifest.file.name}"
        )
        for reason, number in itertools.islice(reasons.items(), 3):
            print(f"  {number} {reason[:150]}")


def proposal(spec: shapes.Spec) -> dict:
    """The shapes world's own instruction, as a proposal."""
    edited = shapes.caption(spec.edited)
    return {
        "instruction": shapes.instruction(spec.scene, spec.edit),
        "edited_caption": edited,
        "edit_type": spec.edit.kind,
        "spec": spec.to_json(),
    }


def weights_of(model: str):
    """What decides a model: of a folder, whose weights may change under its name, the sha256 of its files; else the name."""
    if not Path(model).expanduser().is_dir():
        return model
    return {
        file.name: file_sha256(file)
        for file in sorted(hub.resolve_model(model).iterdir())
        if file.is_file()
    }


def middle(clip: np.ndarray) -> np.ndarray:
    return clip[len(clip) // 2]


def batched(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
