"""Inception features for FID and KID, as pytorch-fid computes them.

The network is TensorFlow's original as pytorch-fid ported it to PyTorch, and frames are
preprocessed as there. The weights are read from a local file whose hash is checked; nothing is
downloaded.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.versions import install_command
from ivid2vid_jax.weights.pipeline_folder import file_sha256

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE = "pt_inception-2015-12-05-6726825d.pth"
FETCH = f"curl -LO https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
WIDTH = 2048  # of the features
SIDE = 299  # pixels of the network's input
BATCH = 32  # frames
UNPADDED = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3")


class Inception:
    """Inception V3 with the weights of a file.

    Attributes:
        sha256: of the file.
        weights: PyTorch tensors by name.
    """

    def __init__(self, file: Path):
        """Loads the weights, onto the GPU if PyTorch sees one.

        Raises:
            UserError: the file is missing or another one by its hash, or PyTorch is not installed.
        """
        if not file.is_file():
            raise UserError(
                f"{file}: no such file; fetch Inception's weights (92 MB) with: {FETCH}"
            )
        self.sha256 = file_sha256(file)
        if self.sha256 != SHA256:
            raise UserError(
                f"{file}: its sha256 is {self.sha256[:8]}..., that of {FILE} is {SHA256[:8]}...: "
                f"it is another file or incomplete; fetch it with: {FETCH}"
            )
        self.torch = torch = import_torch()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.weights = torch.load(file, map_location=self.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{file}: is not a file of PyTorch weights ({error})") from error

    def features(self, frames: np.ndarray) -> np.ndarray:
        """The global pool's output: uint8 [N, H, W, 3] -> float32 [N, 2048].

        Raises UserError if features are not finite.
        """
        parts = [self.pool(frames[i : i + BATCH]) for i in range(0, len(frames), BATCH)]
        features = np.concatenate(parts)
        if not np.isfinite(features).all():
            count = (~np.isfinite(features).all(-1)).sum()
            raise UserError(
                f"Inception's features of {count} of {len(features)} frames are not finite"
            )
        return features

    def pool(self, frames: np.ndarray) -> np.ndarray:
        """Features of one batch.

        Frames are scaled to [0, 1], resized to 299 x 299 (bilinear, no antialiasing), then scaled
        to [-1, 1].
        """
        torch = self.torch
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
            x = x.permute(0, 3, 1, 2).float() / 255
            x = torch.nn.functional.interpolate(
                x, size=(SIDE, SIDE), mode="bilinear", align_corners=False
            )
            return self.network(2 * x - 1).mean((2, 3)).cpu().numpy()

    # ---- the network: Szegedy et al., arXiv 1512.00567; tensors are [N, C, H, W] ----

    def network(self, x: Any) -> Any:
        """The last convolution's output, [N, 2048, 8, 8]."""
        x = self.convolve(x, "Conv2d_1a_3x3/2", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
        x = self.convolve(self.max_pool(x), "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        x = self.max_pool(x)
        double = numbered("branch3x3dbl", 3)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.concatenate(x, block, "branch1x1", numbered("branch5x5", 2), double)
        x = self.reduce(x, "Mixed_6a", "branch3x3/2", f"{double}/2")
        branches = ["branch1x1", numbered("branch7x7", 3), numbered("branch7x7dbl", 5)]
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.concatenate(x, block, *branches)
        x = self.reduce(
            x, "Mixed_7a", f"{numbered('branch3x3', 2)}/2", f"{numbered('branch7x7x3', 4)}/2"
        )
        x = self.expand(x, "Mixed_7b", self.average_pool(x))
        return self.expand(x, "Mixed_7c", self.torch.nn.functional.max_pool2d(x, 3, 1, 1))

    def concatenate(self, x: Any, block: str, *branches: str) -> Any:
        """Concatenates branches and an average-pooled one."""
        outputs = [self.branch(x, block, layers) for layers in branches]
        outputs.append(self.branch(self.average_pool(x), block, "branch_pool"))
        return self.torch.cat(outputs, 1)

    def reduce(self, x: Any, block: str, *branches: str) -> Any:
        """Concatenates branches of stride 2 and a max-pooled input."""
        outputs = [self.branch(x, block, layers) for layers in branches]
        return self.torch.cat([*outputs, self.max_pool(x)], 1)

    def expand(self, x: Any, block: str, pooled: Any) -> Any:
        """One of the last two blocks, in which two branches fork again."""
        single = self.branch(x, block, "branch3x3_1")
        double = self.branch(x, block, "branch3x3dbl_1 branch3x3dbl_2")
        outputs = [
            self.branch(x, block, "branch1x1"),
            self.branch(single, block, "branch3x3_2a"),
            self.branch(single, block, "branch3x3_2b"),
            self.branch(double, block, "branch3x3dbl_3a"),
            self.branch(double, block, "branch3x3dbl_3b"),
            self.branch(pooled, block, "branch_pool"),
        ]
        return self.torch.cat(outputs, 1)

    def branch(self, x: Any, block: str, layers: str) -> Any:
        """Applies layers of a block, names separated by blanks."""
        return self.convolve(x, *(f"{block}.{layer}" for layer in layers.split()))

    def convolve(self, x: Any, *layers: str) -> Any:
        """Applies convolution, batch norm and ReLU for each name.

        A name that ends in "/2" has stride 2. All but these and UNPADDED keep the size.
        """
        F, weights = self.torch.nn.functional, self.weights
        for layer in layers:
            name, _, stride = layer.partition("/")
            kernel = weights[f"{name}.conv.weight"]
            unpadded = stride or name in UNPADDED
            padding = 0 if unpadded else tuple(side // 2 for side in kernel.shape[2:])
            x = F.conv2d(x, kernel, None, int(stride or 1), padding)
            parts = ("running_mean", "running_var", "weight", "bias")
            x = F.batch_norm(x, *(weights[f"{name}.bn.{part}"] for part in parts), eps=1e-3)
            x = F.relu(x)
        return x

    def average_pool(self, x: Any) -> Any:
        """Mean of 3 x 3 pixels, without those beyond the edge."""
        return self.torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def max_pool(self, x: Any) -> Any:
        """Maximum of 3 x 3 pixels, stride 2."""
        return self.torch.nn.functional.max_pool2d(x, 3, 2)


def numbered(branch: str, count: int) -> str:
    """The names BRANCH_1 to BRANCH_count, separated by blanks."""
    return " ".join(f"{branch}_{i}" for i in range(1, count + 1))


def import_torch() -> Any:
    """The module torch. Raises UserError if PyTorch is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"FID and KID need PyTorch: {install_command('evaluation')}") from error
    return torch
