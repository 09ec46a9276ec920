"""The features of FID and KID: the Inception network of the TensorFlow original as pytorch-fid ported it, in PyTorch, frames prepared as pytorch-fid does.

The weights are read from a local file whose hash is checked; nothing is downloaded.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import file_sha256

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE = "pt_inception-2015-12-05-6726825d.pth"
FETCH = f"curl -LO https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
WIDTH = 2048  # of the features
SIDE = 299  # pixels, of what the network takes
BATCH = 32  # frames
UNPADDED = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3")


class Inception:
    """features(frames): uint8 [N, H, W, 3] -> float32 [N, 2048], the global pool. sha256: of the weights."""

    def __init__(self, file: Path):
        """Raises UserError where the file is missing, another one by its hash, or PyTorch is not installed."""
        if not file.is_file():
            raise UserError(
                f"{file}: no such file; fetch Inception's weights (92 MB) with: {FETCH}"
            )
        self.sha256 = file_sha256(file)
        if self.sha256 != SHA256:
            raise UserError(
                f"{file}: its sha256 is {self.sha256[:8]}..., that of {FILE} is {SHA256[:8]}...: another file, or cut off; fetch it with: {FETCH}"
            )
        self.torch = torch = pytorch()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.weights = torch.load(file, map_location=self.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{file}: is not a file of PyTorch weights ({error})") from error

    def features(self, frames: np.ndarray) -> np.ndarray:
        parts = [self.pool(frames[i : i + BATCH]) for i in range(0, len(frames), BATCH)]
        found = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise UserError(
                f"Inception's features of {(~np.isfinite(found).all(-1)).sum()} of {len(found)} frames are not finite"
            )
        return found

    def pool(self, frames: np.ndarray) -> np.ndarray:
        """One batch: [0, 1], bilinear to 299 x 299 without antialiasing, then [-1, 1]."""
        torch = self.torch
        with torch.inference_mode():
            x = (
                torch.from_numpy(np.ascontiguousarray(frames))
                .to(self.device)
                .permute(0, 3, 1, 2)
                .float()
                / 255
            )
            x = torch.nn.functional.interpolate(
                x, size=(SIDE, SIDE), mode="bilinear", align_corners=False
            )
            return self.network(2 * x - 1).mean((2, 3)).cpu().numpy()

    # ---- the network (Szegedy et al., arXiv 1512.00567), a line a branch ----

    def network(self, x):
        x = self.chain(x, "Conv2d_1a_3x3/2", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
        x = self.chain(self.largest(x), "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        x = self.largest(x)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.join(
                x,
                name,
                "branch1x1",
                "branch5x5_1 branch5x5_2",
                "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
            )
        x = self.reduce(
            x, "Mixed_6a", "branch3x3/2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/2"
        )
        seven = ["branch1x1", numbered("branch7x7", 3), numbered("branch7x7dbl", 5)]
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.join(x, name, *seven)
        x = self.reduce(
            x, "Mixed_7a", "branch3x3_1 branch3x3_2/2", f"{numbered('branch7x7x3', 4)}/2"
        )
        x = self.expand(x, "Mixed_7b", self.mean(x))
        return self.expand(x, "Mixed_7c", self.torch.nn.functional.max_pool2d(x, 3, 1, 1))

    def join(self, x, block: str, *branches: str):
        """Branches side by side, the last of them behind an average."""
        found = [self.chain(x, *names(block, branch)) for branch in branches]
        return self.torch.cat([*found, self.chain(self.mean(x), f"{block}.branch_pool")], 1)

    def reduce(self, x, block: str, *branches: str):
        """Branches that halve the size, beside the largest values."""
        return self.torch.cat(
            [*(self.chain(x, *names(block, branch)) for branch in branches), self.largest(x)], 1
        )

    def expand(self, x, block: str, pooled):
        """The last blocks, whose branches fork once more."""
        three = self.chain(x, f"{block}.branch3x3_1")
        double = self.chain(x, f"{block}.branch3x3dbl_1", f"{block}.branch3x3dbl_2")
        forks = [
            (three, "branch3x3_2a"),
            (three, "branch3x3_2b"),
            (double, "branch3x3dbl_3a"),
            (double, "branch3x3dbl_3b"),
        ]
        ends = [self.chain(each, f"{block}.{name}") for each, name in forks]
        return self.torch.cat(
            [
                self.chain(x, f"{block}.branch1x1"),
                *ends,
                self.chain(pooled, f"{block}.branch_pool"),
            ],
            1,
        )

    def chain(self, x, *layers: str):
        """Convolution, batch norm and ReLU by each name; "/2" after it: stride 2. All keep the size but those of stride 2 and UNPADDED."""
        F, w = self.torch.nn.functional, self.weights
        for layer in layers:
            name, _, stride = layer.partition("/")
            kernel = w[f"{name}.conv.weight"]
            padding = (
                0 if stride or name in UNPADDED else tuple(side // 2 for side in kernel.shape[2:])
            )
            x = F.conv2d(x, kernel, None, int(stride or 1), padding)
            x = F.relu(
                F.batch_norm(
                    x,
                    *(
                        w[f"{name}.bn.{part}"]
                        for part in ("running_mean", "running_var", "weight", "bias")
                    ),
                    eps=1e-3,
                )
            )
        return x

    def mean(self, x):
        """Of 3 x 3; what lies beyond the edge does not count."""
        return self.torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def largest(self, x):
        return self.torch.nn.functional.max_pool2d(x, 3, 2)


def numbered(branch: str, count: int) -> str:
    return " ".join(f"{branch}_{i}" for i in range(1, count + 1))


def names(block: str, branch: str) -> Iterator[str]:
    return (f"{block}.{layer}" for layer in branch.split())


def pytorch():
    """PyTorch; UserError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "FID and KID need PyTorch: pip install 'ivid2vid_jax[evaluation]'"
        ) from error
    return torch
