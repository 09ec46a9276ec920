"""The command `ivid2vid`, and what all commands share: help, names of other tools."""

import subprocess
import sys
import typing

import pytest

import ivid2vid_jax
from ivid2vid_jax import __main__ as command
from ivid2vid_jax import edit, evaluate, prepare, synthesize, train
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.diffusion.samplers import SAMPLERS
from ivid2vid_jax.utils import cli, help_text, names
from ivid2vid_jax.utils.progress import duration
from tests.support.command import ROOT

SCREEN = 50  # lines


def run(monkeypatch, capsys, *words):
    """Returns (exit code, stdout, stderr) of `ivid2vid WORDS`."""
    monkeypatch.setattr(sys, "argv", ["ivid2vid", *words])
    code = 0
    try:
        command.main()
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def test_without_a_command_all_commands_are_listed(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys)
    assert code == 0
    assert all(f"  {name} " in out for name in command.COMMANDS)


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version")[1] == f"ivid2vid_jax {ivid2vid_jax.__version__}\n"


def test_a_misspelt_command_is_corrected(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "edti")
    assert code == 2 and "did you mean 'edit'?" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("edit make it snow", "'make it snow' belongs to no option; did you mean --instruction"),
        ("train configs/sd15.py", "did you mean --config configs/sd15.py?"),
        ("prepare pairs.csv", "did you mean --data pairs.csv?"),
        ("edit --instruction x --steps four", "--steps four: must be a whole number"),
        ("edit --instruction x --text-scale much", "--text-scale much: must be a number"),
    ],
)
def test_words_and_values_that_do_not_fit_an_option(monkeypatch, capsys, words, message):
    code, out, err = run(monkeypatch, capsys, *words.split())
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and message in err


def test_the_installed_command_edits(tmp_path):
    script = f"{sys.prefix}/bin/ivid2vid"
    words = ["edit", "--prompt", "make it grey", "--num-inference-steps", "0"]
    process = subprocess.run([script, *words], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr == "error: steps 0 must be between 1 and 1000\n"


COMMANDS = {
    "edit": edit,
    "train": train,
    "prepare": prepare,
    "evaluate": evaluate,
    "synthesize": synthesize,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_help_all_has_every_option(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    _, short, _ = run(monkeypatch, capsys, name, "--help")
    _, full, _ = run(monkeypatch, capsys, name, "--help-all")
    assert f"usage: ivid2vid {name}" in short
    assert len(short.splitlines()) <= SCREEN
    for option in COMMANDS[name].COMMON:
        assert f"│ {option}" in short and f"│ {option}" in full
    assert len(full.splitlines()) > len(short.splitlines())
    for text in (short, full):
        assert "None)" not in text and "{None}" not in text
        widths = {len(line) for line in text.splitlines() if line.startswith(("│", "╭", "╰"))}
        assert widths == {80}


def test_help_and_docs_name_every_sampler(monkeypatch, capsys):
    """Help is made from the table of scheduler classes; only docs repeat the names."""
    assert tuple(names.SCHEDULER_CLASSES.values()) == SAMPLERS
    assert set(names.SAMPLERS.values()) <= set(SAMPLERS)
    for name in ("edit", "evaluate"):
        _, text, _ = run(monkeypatch, capsys, name, "--help-all")
        entry = text.partition("--sampler ")[2].partition("│ --")[0]
        assert all(sampler in entry for sampler in SAMPLERS), entry
    for page in ("editing.md", "from-stable-diffusion.md"):
        text = (ROOT / "docs" / page).read_text()
        assert all(f"`{sampler}`" in text or f" {sampler}`" in text for sampler in SAMPLERS), page


def test_help_explains_every_mode_of_the_frame_difference(monkeypatch, capsys):
    _, text, _ = run(monkeypatch, capsys, "train", "--help-all")
    entry = text.partition("--loss.frame-difference ")[2].partition("│ --")[0]
    for mode in typing.get_args(typing.get_type_hints(LossConfig)["frame_difference"]):
        assert mode == "none" or f"{mode}:" in entry, (mode, entry)


def test_tidy_help_keeps_the_width_of_its_lines():
    text = (
        "│ --a {None}|INT  the size (default: None)  │\n"
        "│ --b STR   a name (default:                │\n"
        "│           None)                           │\n"
        "│ --c, --no-c  a switch (default: True)     │\n"
    )
    assert help_text.tidy(text) == (
        "│ --a INT         the size                  │\n"
        "│ --b STR   a name                          │\n"
        "│ --c, --no-c  a switch (default: True)     │\n"
    )


def test_names_of_other_tools_are_options_here():
    argv = [
        "--prompt",
        "x",
        "--guidance-scale=3",
        "--image_guidance_scale",
        "2",
        "--negative-prompt",
    ]
    assert cli.replace_options(argv, names.SETTINGS, warn=False) == [
        *("--instruction", "x", "--text-scale=3", "--video-scale", "2", "--negative"),
    ]
    argv = ["--learning-rate", "1e-4", "--train_batch_size", "4"]
    assert cli.replace_options(argv, names.TRAINING, warn=False) == [
        *("--optim.lr", "1e-4", "--loader.batch", "4"),
    ]


def test_durations_in_words():
    words = [duration(seconds) for seconds in (5, 89, 720, 12_000)]
    assert words == ["5 s", "89 s", "12 min", "3 h 20 min"]
