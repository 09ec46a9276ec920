"""Damaged and malicious files: an error names the problem, and no pickled code runs."""

import resource
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ivid2vid_jax import convert
from ivid2vid_jax.conversion.foreign_formats import open_checkpoint
from ivid2vid_jax.errors import UserError
from tests.conversion.checkpoints import contiguous, import_to, motion_adapter, state_dict
from tests.support import foreign
from tests.support.command import run_command

BLOCK = "down_blocks.0.motion_modules.0.temporal_transformer"


def test_pickled_code_never_runs(tmp_path, tiny, capsys):
    mark, output = tmp_path / "ran", tmp_path / "out"
    contents = [
        {"conv_in.weight": torch.zeros(2), "evil": foreign.Evil(mark)},
        foreign.Evil(mark),
    ]
    for i, content in enumerate(contents):
        file = tmp_path / f"{i}.ckpt"
        torch.save(content, file)
        code, err, _ = run_command(
            capsys, convert.COMMANDS, convert.run, "import", file, output, "--base", tiny
        )
        assert code == 2 and "Traceback" not in err
        assert "nothing of it was run" in err and "open" in err
    assert not mark.exists() and not output.exists()


def enlarge(name, data):
    return bytes(10**7) if name.endswith("/0") else data


def shorten(name, data):
    return data[:10] if name.endswith("/0") else data


@pytest.mark.parametrize(
    ("change", "compression", "message"),
    [
        (enlarge, zipfile.ZIP_DEFLATED, "announces more bytes than it holds"),
        (shorten, zipfile.ZIP_STORED, "are not in the file as they were saved"),
    ],
)
def test_archives_of_wrong_size_are_rejected(motion_file, tmp_path, change, compression, message):
    file = shutil.copy(motion_file, tmp_path / "changed.ckpt")
    foreign.repacked(file, change, compression)
    with pytest.raises(UserError, match=message):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            {f"{BLOCK}.norm.weight": torch.zeros(1).expand(10**12)},
            {},
            "claims more than the file holds",
        ),
        (
            {"x": torch.zeros(3)},
            dict(_use_new_zipfile_serialization=False),
            r"saved by a PyTorch before 1.6",
        ),
        ([torch.zeros(2)], {}, "holds a list, not tensors by name"),
    ],
    ids=["huge", "old format", "list"],
)
def test_other_pickles_are_rejected(tmp_path, content, options, message):
    torch.save(content, tmp_path / "file.pt", **options)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "file.pt")


def test_unknown_and_missing_files_are_rejected(tmp_path):
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"is of no known layout \(it holds a.weight\)"):
        open_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no such file"):
        open_checkpoint(tmp_path / "nothing.ckpt")


def test_unequal_position_tables_are_rejected(tmp_path):
    tensors = foreign.animatediff(state_dict(motion_adapter()))
    tensors[f"{BLOCK}.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"] += 1
    torch.save(tensors, tmp_path / "file.ckpt")
    with pytest.raises(UserError, match="differs from the table of the first attention"):
        open_checkpoint(tmp_path / "file.ckpt")


def test_error_names_a_missing_tensor(tiny, tmp_path):
    tensors = foreign.animatediff(state_dict(motion_adapter()))
    del tensors["down_blocks.1.motion_modules.0.temporal_transformer.proj_in.bias"]
    torch.save(tensors, tmp_path / "file.ckpt")
    with pytest.raises(UserError, match=r"missing down_blocks.1.motion_modules.0.proj_in.bias"):
        import_to(tmp_path / "file.ckpt", tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


def mutate(data: bytes, header_size: int, i: int, rng: np.random.Generator) -> bytes:
    """Truncates a file, or changes its header's length or a few bytes of its header."""
    mutant = bytearray(data)
    has_header = header_size < len(data)
    if i % 4 == 0:
        return bytes(mutant[: rng.integers(0, len(data))])
    if i % 4 == 1 and has_header:
        mutant[:8] = int(rng.integers(0, 2**63)).to_bytes(8, "little")
        return bytes(mutant)
    first_bytes = rng.integers(0, min(header_size, 20_000), 3)
    last_bytes = len(data) - 1 - rng.integers(0, 5_000, 2) * (not has_header)
    for position in np.concatenate([first_bytes, last_bytes]) % header_size:
        mutant[position] = rng.integers(32, 127) if rng.random() < 0.5 else rng.integers(0, 256)
    return bytes(mutant)


def test_mutants_are_read_or_rejected_without_using_memory(motion_file, tmp_path):
    """2,000 mutants, each read or rejected by a UserError; none allocates what it claims."""
    rng = np.random.default_rng(0)
    tensors = foreign.animatediff(state_dict(motion_adapter()))
    save_file(contiguous(tensors), tmp_path / "mm.safetensors")
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"read": 0, "rejected": 0}
    for source in (motion_file, tmp_path / "mm.safetensors"):
        data = source.read_bytes()
        header_size = len(data)
        if source.suffix == ".safetensors":
            header_size = 8 + int.from_bytes(data[:8], "little")
        for i in range(1000):
            file = tmp_path / f"mutant{source.suffix}"
            file.write_bytes(mutate(data, header_size, i, rng))
            try:
                open_checkpoint(file)
                outcomes["read"] += 1
            except UserError as error:
                assert "mutant" in str(error)
                outcomes["rejected"] += 1
    print(outcomes)
    assert outcomes["rejected"] > 1000
    memory_used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before
    assert memory_used < 300_000  # kilobytes
