"""Stage "edits": proposals -> edited clips."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np

from ivid2vid_jax.data import shapes
from ivid2vid_jax.synthesis.clip_editor import ClipEditor, EditTask, check_size
from ivid2vid_jax.synthesis.config import SHAPES, TRUTH, SynthesisConfig
from ivid2vid_jax.synthesis.editors import EDITORS, SharedNoiseConfig, TuneAVideoConfig
from ivid2vid_jax.synthesis.fingerprints import fingerprint, hashed_settings
from ivid2vid_jax.synthesis.manifest import (
    ACCEPTED,
    REJECTED,
    Manifest,
    Outcome,
    run_pending,
    run_pending_groups,
)
from ivid2vid_jax.synthesis.stages.clips import ClipsStage
from ivid2vid_jax.synthesis.stages.instructions import InstructionsStage
from ivid2vid_jax.synthesis.stages.stage import Stage, batched
from ivid2vid_jax.synthesis.workspace import Workspace
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, open_pipeline_folder


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit to make. spec: that of the shapes world, or "" for other clips."""

    id: str
    clip: str
    video: str
    caption: str
    instruction: str
    edited_caption: str
    edit_type: str
    spec: str
    seed: int
    fingerprint: str


class EditsStage(Stage):
    """Items: samples of accepted proposals. Fingerprint: clip, captions, editor, base and seed."""

    name = "edits"

    def __init__(
        self,
        config: SynthesisConfig,
        workspace: Workspace,
        clips: ClipsStage,
        instructions: InstructionsStage,
    ):
        super().__init__(config, workspace)
        self.clips, self.instructions = clips, instructions

    # ---- items

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Edit id -> fingerprint."""
        return {id: edit.fingerprint for id, edit in self.edits.items()}

    def clip_of(self, id: str) -> str:
        """All edits of a clip belong to the same shard."""
        return self.edits[id].clip

    @cached_property
    def edits(self) -> dict[str, Edit]:
        """Id -> edit: `config.samples` of every accepted proposal."""
        edits = (
            self.make_edit(line, proposal, sample)
            for line in self.instructions.accepted()
            for proposal in line["proposals"]
            for sample in range(self.config.samples)
        )
        return {edit.id: edit for edit in edits}

    def make_edit(self, line: dict, proposal: dict, sample: int) -> Edit:
        """A sample of a proposal on a line of the manifest "instructions".

        Sample 0 has the id, the seed and the fingerprint that it has if it is the only one.
        """
        clip, caption = line["id"], line["caption"]
        words = proposal["instruction"], proposal["edited_caption"]
        suffix = [sample] if sample else []
        return Edit(
            id="-".join([f"{clip}.{fingerprint(words)[:8]}", *map(str, suffix)]),
            clip=clip,
            video=self.clips.clips[clip]["video"],
            caption=caption,
            instruction=proposal["instruction"],
            edited_caption=proposal["edited_caption"],
            edit_type=proposal["edit_type"],
            spec=proposal.get("spec") or self.find_spec(clip, proposal["edited_caption"]),
            seed=int(fingerprint(self.config.seed, clip, *suffix)[:8], 16),
            fingerprint=fingerprint(
                self.clips.clips[clip]["mark"], caption, words, self.editor_fingerprint, *suffix
            ),
        )

    @cached_property
    def editor_fingerprint(self) -> str:
        """Of the editor's settings, the base's weights and the seed."""
        config = self.config
        if config.editor == TRUTH:
            return fingerprint(TRUTH)
        return fingerprint(
            config.editor,
            hashed_settings(self.settings) | {"at_once": 1},
            self.base_folder.fingerprint(),
            config.seed,
        )

    def find_spec(self, clip: str, edited_caption: str) -> str:
        """The spec of a shapes-world edit that is known by its caption only.

        Empty for other clips, and for edits that are impossible in this scene.
        """
        if self.config.videos != SHAPES:
            return ""
        first = self.clips.specs(clip)[0]
        edit = shapes.edit_towards(first.scene, edited_caption)
        return dataclasses.replace(first, edit=edit).to_json() if edit else ""

    # ---- the model that edits

    @property
    def settings(self) -> SharedNoiseConfig | TuneAVideoConfig:
        """The editor's settings."""
        return getattr(self.config, self.config.editor)

    @cached_property
    def base_folder(self) -> PipelineFolder:
        """The base's folder; its weights are not read.

        Raises UserError if its networks cannot take clips of this size.
        """
        folder = open_pipeline_folder(hub.resolve_model(self.config.base))
        check_size(folder, (self.config.clips.size,) * 2)
        return folder

    def load_editor(self) -> ClipEditor:
        """The editor with the base's weights."""
        from ivid2vid_jax.inference import pipeline

        base = pipeline.load(self.config.base, devices=1)
        return EDITORS[self.config.editor](base, self.settings, self.config.devices)

    # ---- the work

    def process(self, manifest: Manifest, items: Mapping[str, str]) -> None:
        """Edits the clips, as many at once as the editor takes; true edits are rendered."""
        if self.config.editor == TRUTH:
            with Progress("edits") as progress:
                run_pending(manifest, items, self.render_true_edit, progress=progress)
            return
        editor, jobs = self.load_editor(), self.group_by_job(sorted(items))
        groups = [
            [id for job in batch for id in jobs[job]]
            for batch in batched(sorted(jobs), editor.clips_per_call)
        ]
        pending = set(manifest.pending(items))
        groups = [group for group in groups if pending.intersection(group)]
        finished = itertools.count()
        with Progress(f"edits, {editor.clips_per_call} clips at once") as progress:

            def work(ids: list[str]) -> list[Outcome]:
                first = next(finished)
                return self.edit_group(
                    editor,
                    self.group_by_job(ids),
                    lambda step, steps: progress(first * steps + step, len(groups) * steps),
                )

            run_pending_groups(manifest, items, groups, work)

    def group_by_job(self, ids: Iterable[str]) -> dict[tuple[str, int], list[str]]:
        """(clip, seed) -> ids of the edits that are made together, in the order of `ids`."""
        jobs: dict[tuple[str, int], list[str]] = {}
        for id in ids:
            edit = self.edits[id]
            jobs.setdefault((edit.clip, edit.seed), []).append(id)
        return jobs

    def edit_group(
        self,
        editor: ClipEditor,
        jobs: Mapping[tuple[str, int], list[str]],
        progress: Callable[[int, int], None],
    ) -> list[Outcome]:
        """The outcomes of the edits of several jobs, in order."""
        begin = time.monotonic()
        tasks = []
        for (clip, seed), ids in jobs.items():
            edits = [self.edits[id] for id in ids]
            targets = tuple(edit.edited_caption for edit in edits)
            tasks.append(EditTask(self.workspace.read_clip(clip), edits[0].caption, targets, seed))
        clips = list(itertools.chain(*editor(tasks, progress)))
        ids = list(itertools.chain(*jobs.values()))
        seconds = round((time.monotonic() - begin) / len(ids), 3)
        return [self.store(id, clip, seconds) for id, clip in zip(ids, clips, strict=True)]

    def store(self, id: str, clip: np.ndarray | None, seconds: float) -> Outcome:
        """Writes an edited clip; None stands for one that is not finite."""
        if clip is None:
            return REJECTED, {"reason": "the model's output is not finite"}
        self.workspace.write_edit(id, clip)
        return ACCEPTED, {
            "editor": self.config.editor,
            "base": self.config.base,
            "seed": self.edits[id].seed,
            "seconds": seconds,
        }

    def render_true_edit(self, id: str) -> Outcome:
        """Renders the edited scene of a shapes-world edit."""
        spec = shapes.Spec.from_json(self.edits[id].spec)
        self.workspace.write_edit(id, shapes.render(spec.edited, spec.size, spec.frames))
        return ACCEPTED, {"editor": TRUTH}
