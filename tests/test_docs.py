"""The documentation: links lead somewhere, commands are parsed by the very parsers, options exist, the API reference is today's."""

import dataclasses
import importlib
import json
import re
import runpy
import shlex
import subprocess
import typing
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import tyro

from ivid2vid_jax.utils.cli import config_classes, split_config

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
]
COMMANDS = {
    "train": "TrainConfig",
    "edit": "EditArgs",
    "prepare": "PrepareArgs",
    "evaluate": "EvaluateArgs",
    "plan": "PlanArgs",
    "app": "AppArgs",
    "synthesize": "SynthesisConfig",
    "convert": "COMMANDS",
    "evaluation.study": "StudyArgs",
    "synthesis.calibrate": "CalibrateArgs",
}
OTHERS = {
    "--help",
    "--dry-run",
    "--config",
    "--logdir",
    "--compile",
    "--repeats",
}  # every command's, the launchers', TensorBoard's, the benchmarks'


def arguments(command: str) -> type:
    return getattr(importlib.import_module(f"ivid2vid_jax.{command}"), COMMANDS[command])


def blocks(page: Path) -> list[str]:
    """Commands in the fenced blocks, one a line, comments off."""
    found = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    return [
        line
        for block in found
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
    for path in re.findall(
        r"`((?:configs|launch|docs|tests|ivid2vid_jax)/[\w./*-]+)`", page.read_text()
    ):
        assert list(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_parsed_by_their_parsers(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in blocks(page):
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "-m"] and words[2].startswith("ivid2vid_jax."):
            parsed(words[2].partition(".")[2], words[3:])
        elif words and words[0].startswith("launch/"):
            after = words.index("--") if "--" in words else len(words)
            if words[0] == "launch/host.sh":
                parsed("train", words[1:])
            else:
                done = subprocess.run(
                    [*words[:after], "--dry-run", *words[after:]], capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr
                parsed("train", words[after + 1 :])


def parsed(command: str, words: list[str]) -> None:
    config, words = split_config(words)
    assert config is None or config.is_file(), config
    try:
        tyro.cli(arguments(command), args=words)
    except SystemExit as stop:
        assert stop.code == 0, (command, words)


def options(kind, prefix: str = "") -> set[str]:
    """Every option of a command, of all its subcommands."""
    if not dataclasses.is_dataclass(kind):
        kinds = [
            getattr(each, "__origin__", each) for each in typing.get_args(kind)
        ]  # a union of Annotated classes
        return {option for each in kinds for option in options(each, prefix)}
    found = set()
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            found |= options(field.type, f"{prefix}{field.name}.")
        else:
            found |= {
                f"--{prefix}{negation}{field.name}".replace("_", "-")
                for negation in ("", "no-")[: 1 + (field.type is bool)]
            }
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page):
    known = OTHERS | {option for command in COMMANDS for option in options(arguments(command))}
    known |= set(
        re.findall(
            r"--[a-z-]+", " ".join(path.read_text() for path in (ROOT / "launch").glob("*.sh"))
        )
    )
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text):
        assert option in known or any(each.startswith(f"{option}.") for each in known), (
            option
        )  # `--drop.*` names a group


def test_the_api_reference_is_todays():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["text"]()
    assert (ROOT / "docs" / "api.md").read_text() == made, "renew it: python docs/make_api.py"


def test_the_table_of_plans_is_the_records(tmp_path, monkeypatch):
    """A plan by layers, one that failed, and one that is asked for in this run."""
    made = runpy.run_path(str(ROOT / "docs" / "make_tpu_plan.py"))
    if (ROOT / "docs" / "tpu-plan.json").is_file():
        record = json.loads((ROOT / "docs" / "tpu-plan.json").read_text())
        assert (ROOT / "docs" / "tpu-plan.md").read_text() == made["page"](record), (
            "renew it: python docs/make_tpu_plan.py"
        )
    plan = {
        "held": {"parameters": 3 * 2**30},
        "flops": 2e12,
        "moved": 5e9,
        "sent": {"all-gather": 1e9},
        "whole": False,
        "seconds": 60.0,
    }
    one = {
        "arguments": {"effort": "-1"},
        "plan": plan,
        "seconds_at_peak": {"arithmetic": 0.5, "HBM": 0.25, "interconnect": 0.1},
        "versions": {"jax": "1"},
        "commit": "abc",
        "date": "2026-11-23",
    }
    first, second, third = list(made["plans"]())[:3]
    record = {
        first: one,
        second: {"error": "ran out of memory", "commit": "abc", "date": "2026-11-23"},
    }
    text = made["page"](record)
    assert (
        f"| {first} | by layers, -1 | 3.0 | 2.00 | 5.0 | 1.00 | 0.5000 | 0.2500 | 0.1000 | 0.50 | 60 |"
        in text
    )
    assert f"| {second} | ran out of memory |" in text and f"Not asked yet: {third}" in text
    names = made["main"].__globals__
    monkeypatch.setitem(names, "RECORD", tmp_path / "plan.json")
    monkeypatch.setitem(names, "PAGE", tmp_path / "plan.md")
    monkeypatch.setitem(names, "asked", lambda words: one)
    (tmp_path / "plan.json").write_text(json.dumps(record))
    made["main"]([])
    assert {"plan"} <= set.intersection(
        *map(set, json.loads((tmp_path / "plan.json").read_text()).values())
    ) and second in (tmp_path / "plan.md").read_text()


def test_the_drawing_is_a_drawing():
    assert ElementTree.parse(ROOT / "docs" / "data-flow.svg").getroot().tag.endswith("svg")


def test_every_config_class_is_in_the_reference():
    from ivid2vid_jax.training.config import TrainConfig

    text = (ROOT / "docs" / "api.md").read_text()
    missing = {each.__name__ for each in config_classes(TrainConfig)} - set(
        re.findall(r"^### (\w+)$", text, re.M)
    )
    assert missing <= {
        "UNetConfig",
        "AutoencoderConfig",
        "CLIPTextConfig",
        "CLIPVisionConfig",
        "CLIPConfig",
        "LoaderConfig",
        "DistributedConfig",
        "AutoencoderLossConfig",
    }
