"""Which dataset each training step reads from, and from which position on."""

import dataclasses

import numpy as np

BLOCK_STEPS = 4096  # steps whose streams are sampled together
# Third number of the seeds of this module's generators: other modules use other numbers.
SCHEDULE_RNG = 2

Block = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSchedule:
    """The stream that each step takes its batch from, and its position in that stream.

    Streams are numbered: clips of the first dataset, images of the first dataset, clips of the
    second dataset, and so on. The stream of a step depends on the seed and the step only.

    Attributes:
        seed: of the training run.
        batch: examples that a step takes from its stream.
        weights: [datasets], sampling weights; their sum is 1.
        images: [datasets], share of each dataset's steps that train on one-frame clips.
        origin: the step to start from, that of a saved state or 0.
        starts: [streams] int64, position of each stream at that step.
    """

    seed: int
    batch: int
    weights: np.ndarray
    images: np.ndarray
    origin: int
    starts: np.ndarray
    _blocks: dict[int, Block] = dataclasses.field(default_factory=dict, repr=False)

    def take(self, step: int) -> tuple[int, int]:
        """Returns (stream, position of the batch's first example) of a step."""
        streams, _ = self.block(step // BLOCK_STEPS)
        stream = int(streams[step % BLOCK_STEPS])
        return stream, int(self.positions(step)[stream])

    def positions(self, step: int) -> np.ndarray:
        """[streams] int64: how far each stream has been read before a step."""
        return self.starts + self.batch * (self.counts(step) - self.counts(self.origin))

    def counts(self, step: int) -> np.ndarray:
        """[streams]: steps that read each stream, from the origin's block up to this step."""
        streams, before = self.block(step // BLOCK_STEPS)
        return before + np.bincount(streams[: step % BLOCK_STEPS], minlength=len(self.starts))

    def block(self, number: int) -> Block:
        """The streams of a block's steps, [BLOCK_STEPS], and `counts` at its first step.

        Two threads may compute a block at once; they compute the same.
        """
        if number not in self._blocks:
            before = np.zeros(len(self.starts), np.int64)
            if number > self.origin // BLOCK_STEPS:
                streams, counts = self.block(number - 1)
                before = counts + np.bincount(streams, minlength=len(before))
            rng = np.random.default_rng([self.seed, number, SCHEDULE_RNG])
            u, v = rng.random((2, BLOCK_STEPS))
            dataset = np.searchsorted(np.cumsum(self.weights)[:-1], u, side="right")
            streams = (2 * dataset + (v < self.images[dataset])).astype(np.int16)
            self._blocks[number] = streams, before
        return self._blocks[number]
