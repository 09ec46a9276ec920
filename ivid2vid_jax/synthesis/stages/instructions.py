"""Stage "instructions": captions -> edit proposals."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from ivid2vid_jax.data import shapes
from ivid2vid_jax.synthesis import instructions
from ivid2vid_jax.synthesis.chat import Chat
from ivid2vid_jax.synthesis.config import SHAPES, SynthesisConfig
from ivid2vid_jax.synthesis.fingerprints import fingerprint
from ivid2vid_jax.synthesis.instructions import Proposal
from ivid2vid_jax.synthesis.manifest import ACCEPTED, Manifest, Outcome, run_pending
from ivid2vid_jax.synthesis.stages.captions import CaptionsStage
from ivid2vid_jax.synthesis.stages.clips import ClipsStage
from ivid2vid_jax.synthesis.stages.stage import Stage
from ivid2vid_jax.synthesis.workspace import Workspace
from ivid2vid_jax.utils.progress import Progress


class InstructionsStage(Stage):
    """Items: captioned clips. Fingerprint: the clip, its caption, and what makes the proposals."""

    name = "instructions"

    def __init__(
        self,
        config: SynthesisConfig,
        workspace: Workspace,
        clips: ClipsStage,
        captions: CaptionsStage,
    ):
        super().__init__(config, workspace)
        self.clips, self.captions = clips, captions

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Clip id -> fingerprint."""
        config = self.config
        return {
            id: fingerprint(
                self.clips.clips[id]["mark"],
                caption,
                config.instructions,
                config.per_clip,
                self.method_content(caption),
            )
            for id, caption in self.captions.captions.items()
        }

    def method_content(self, caption: str) -> list:
        """What decides the proposals beside the caption, for the fingerprint."""
        config = self.config
        if config.instructions == "chat":
            return [config.chat.model, config.chat.temperature, instructions.prompt_hash()]
        if config.instructions == "rules":
            return [config.seed]
        if config.instructions == SHAPES:
            return []
        return [dataclasses.astuple(proposal) for proposal in self.listed.get(caption, [])]

    @cached_property
    def listed(self) -> dict[str, list[Proposal]]:
        """Caption -> proposals of the file --instructions."""
        listed: dict[str, list[Proposal]] = {}
        for caption, proposal in instructions.from_file(Path(self.config.instructions)):
            listed.setdefault(" ".join(caption.split()), []).append(proposal)
        return listed

    def process(self, manifest: Manifest, items: Mapping[str, str]) -> None:
        """Makes the proposals; a chat model is asked for several clips at once."""
        propose, captions = self.proposer(), self.captions.captions
        workers = self.config.chat.concurrency if self.config.instructions == "chat" else 1
        with Progress("instructions") as progress:
            run_pending(manifest, items, lambda id: propose(id, captions[id]), workers, progress)

    def proposer(self) -> Callable[[str, str], Outcome]:
        """The function (clip id, caption) -> outcome that --instructions names."""
        config = self.config
        if config.instructions == SHAPES:
            return self.from_specs
        if config.instructions == "chat":
            chat = Chat(config.chat)
            return lambda id, caption: instructions.by_chat(chat, caption, self.target_types(id))
        if config.instructions == "rules":
            return lambda id, caption: instructions.by_rules(
                caption, self.target_types(id), config.seed
            )
        return lambda id, caption: instructions.proposals_outcome(
            {"caption": caption, "model": config.instructions},
            self.listed.get(caption, []),
            config.per_clip,
        )

    def from_specs(self, id: str, caption: str) -> Outcome:
        """The edits that a clip of the shapes world comes with, and their specs."""
        proposals = [
            {
                "instruction": shapes.instruction(spec.scene, spec.edit),
                "edited_caption": shapes.caption(spec.edited),
                "edit_type": spec.edit.kind,
                "spec": spec.to_json(),
            }
            for spec in self.clips.specs(id)
        ]
        facts = {"caption": caption, "model": SHAPES, "proposals": proposals, "refused": []}
        return ACCEPTED, facts

    def target_types(self, id: str) -> list[str]:
        """The edit types to ask for: by the clip's id, so independent of the other clips."""
        return instructions.target_types(int(fingerprint(id), 16), self.config.per_clip)
