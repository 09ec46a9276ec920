"""The documentation: links and paths exist, commands parse, generated parts are up to date."""

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
from PIL import Image

from ivid2vid_jax.utils import names as option_names
from ivid2vid_jax.utils.cli import config_classes, split_config

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "configs/embedded/README.md",
    ROOT / "ivid2vid_jax/assets/README.md",
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
    "evaluation.ab_study": "StudyArgs",
    "experiments.pack_assets": "PackArgs",
    "synthesis.calibrate": "CalibrateArgs",
}
# Options of every command, of the launchers, of TensorBoard, of the benchmarks, and of tools.
OTHER_OPTIONS = {
    "--help",
    "--help-all",
    "--dry-run",
    "--config",
    "--logdir",
    "--compile",
    "--repeats",
}
TOOL_OPTIONS = {"--check", "--strict"}
README_MAX_LINES = 120
PICTURE_MAX_BYTES = 1_500_000

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def arguments(command: str) -> type:
    """The class of a command's arguments; a command is a module or a package."""
    module = importlib.import_module(f"ivid2vid_jax.{command}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"ivid2vid_jax.{command}.__main__")
    return getattr(module, COMMANDS[command])


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's bash blocks, one per line."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    return [
        line
        for block in blocks
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.strip()
    ]


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
    paths = r"`((?:configs|launch|docs|tests|ivid2vid_jax)/[\w./*-]+)`"
    for path in re.findall(paths, page.read_text()):
        assert list(ROOT.glob(path.rstrip("/"))), path


@each_page
def test_commands_are_parsed_by_their_parsers(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    inline = re.findall(r"`(python -m ivid2vid_jax\.[^`]+)`", page.read_text())
    for line in shell_lines(page) + inline:
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "-m"] and words[2].startswith("ivid2vid_jax."):
            parse(words[2].partition(".")[2], words[3:])
        elif words and words[0] == "launch/host.sh":
            parse("train", words[1:])
        elif words and words[0].startswith("launch/"):
            end = words.index("--") if "--" in words else len(words)
            launcher, training = words[:end], words[end:]
            result = subprocess.run(
                [*launcher, "--dry-run", *training], capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            parse("train", training[1:])


def parse(command: str, words: list[str]) -> None:
    """Parses a command line by the command's own parser; nothing runs."""
    config, words = split_config(words)
    assert config is None or config.is_file(), config
    try:
        tyro.cli(arguments(command), args=words)
    except SystemExit as stop:
        assert stop.code == 0, (command, words)


def options(kind, prefix: str = "") -> set[str]:
    """Every option of a command and of its subcommands."""
    if not dataclasses.is_dataclass(kind):  # a union of Annotated classes
        classes = [getattr(member, "__origin__", member) for member in typing.get_args(kind)]
        return {option for cls in classes for option in options(cls, prefix)}
    names = set()
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            names |= options(field.type, f"{prefix}{field.name}.")
        else:
            negations = ("", "no-") if field.type is bool else ("",)
            for negation in negations:
                names.add(f"--{prefix}{negation}{field.name}".replace("_", "-"))
    return names


@each_page
def test_options_exist(page):
    known = OTHER_OPTIONS | TOOL_OPTIONS
    known |= {option for command in COMMANDS for option in options(arguments(command))}
    known |= {
        f"--{name.replace('_', '-')}" for name in (*option_names.SETTINGS, *option_names.TRAINING)
    }
    for script in (ROOT / "launch").glob("*.sh"):
        known |= set(re.findall(r"--[a-z-]+", script.read_text()))
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    if page.name == "CHANGELOG.md":  # names the old options, too
        text = re.sub(r"`--\S+` is\b", "", text)
    if page.name == "benchmarks.md":
        known |= set(re.findall(r"--[a-z-]+", benchmark_sources()))
    for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text):
        is_group = any(name.startswith(f"{option}.") for name in known)  # as in `--drop.*`
        assert option in known or is_group, option


def benchmark_sources() -> str:
    """The text of all benchmarks."""
    return "".join(path.read_text() for path in (ROOT / "tests" / "benchmarks").glob("*.py"))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_MAX_LINES


def test_repository_stands_alone():
    """No tracked text names a folder beside the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    outside = "../" + "shared"
    search = ["git", "grep", "--untracked", "-lIF", outside]
    result = subprocess.run(search, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stderr
    assert result.stdout.splitlines() == []


def test_picture_of_edits_is_animated_and_small():
    path = ROOT / "docs" / "edits.gif"
    assert path.stat().st_size < PICTURE_MAX_BYTES
    with Image.open(path) as picture:
        assert picture.n_frames > 1


def test_drawing_is_svg():
    root = ElementTree.parse(ROOT / "docs" / "data-flow.svg").getroot()
    assert root.tag.endswith("svg")


def test_contributing_draws_the_layers_of_the_contract():
    """The drawing lists the layers of the import contract, in its order."""
    drawing = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    drawn = [line.split()[0] for line in drawing.splitlines()]
    contract = re.search(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    layers = re.findall(r'"(.*?)"', contract[1])
    assert drawn == ["__main__", "commands", *layers[2:]]
    commands = drawing.splitlines()[1].split()[1:]
    assert commands == layers[1].split(" : ")


def test_contributing_names_symbols_where_they_are():
    """Each symbol of a row of "Where to add things" occurs in a file that the row names."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("## Where to add things")[2].partition("\n## ")[0]
    for row in table.splitlines():
        quoted = re.findall(r"`([^`]+)`", row)
        sources = [ROOT / name for name in quoted if name.endswith(".py")]
        source = "\n".join(path.read_text() for path in sources)
        for symbol in quoted if source else []:
            if re.fullmatch(r"\w+", symbol):
                assert re.search(rf"\b{symbol}\b", source), (symbol, row)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"\b{re.escape(page.name)}$", navigation, re.M), page.name


def test_reference_names_exist():
    for path in re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference.md").read_text(), re.M):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_reference_has_every_config_class():
    from ivid2vid_jax.training.config import TrainConfig

    text = (ROOT / "docs" / "reference.md").read_text()
    listed = set(re.findall(r"^::: \S+\.(\w+)$", text, re.M))
    missing = {cls.__name__ for cls in config_classes(TrainConfig)} - listed
    assert missing == {
        "UNetConfig",
        "AutoencoderConfig",
        "CLIPTextConfig",
        "CLIPVisionConfig",
        "CLIPConfig",
    }


PLAN_RECORD = {
    "arguments": {"effort": "-1"},
    "plan": {
        "held": {"parameters": 3 * 2**30},
        "flops": 2e12,
        "moved": 5e9,
        "sent": {"all-gather": 1e9},
        "whole": False,
        "seconds": 60.0,
    },
    "seconds_at_peak": {"arithmetic": 0.5, "HBM": 0.25, "interconnect": 0.1},
    "versions": {"jax": "1"},
    "commit": "abc",
    "date": "2026-11-23",
}


@pytest.fixture(scope="module")
def plan_script():
    """The names of docs/make_tpu_plan.py."""
    return runpy.run_path(str(ROOT / "docs" / "make_tpu_plan.py"))


def test_tables_of_plans_are_up_to_date(plan_script):
    records = json.loads((ROOT / "docs" / "tpu-plan.json").read_text())
    page = (ROOT / "docs" / "tpu-plan.md").read_text()
    assert plan_script["tables"](records) in page, "renew: python docs/make_tpu_plan.py --page"


def test_tables_show_plans_errors_and_missing_plans(plan_script):
    first, second, third = list(plan_script["plans"]())[:3]
    error = {"error": "ran out of memory", "commit": "abc", "date": "2026-11-23"}
    text = plan_script["tables"]({first: PLAN_RECORD, second: error})
    row = "by layers, -1 | 3.0 | 2.00 | 5.0 | 1.00 | 0.5000 | 0.2500 | 0.1000 | 0.50 | 60"
    assert f"| {first} | {row} | abc |" in text
    assert f"| {second} | ran out of memory |" in text
    assert f"Not computed yet: {third}" in text


def test_missing_plans_are_computed(plan_script, tmp_path, monkeypatch):
    names = plan_script["main"].__globals__
    first, second = list(plan_script["plans"]())[:2]
    error = {"error": "ran out of memory", "commit": "abc", "date": "2026-11-23"}
    record, page = tmp_path / "plan.json", tmp_path / "plan.md"
    record.write_text(json.dumps({first: PLAN_RECORD, second: error}))
    page.write_text((ROOT / "docs" / "tpu-plan.md").read_text())
    monkeypatch.setitem(names, "RECORD", record)
    monkeypatch.setitem(names, "PAGE", page)
    monkeypatch.setitem(names, "run_plan", lambda arguments: PLAN_RECORD)
    plan_script["main"]([])
    records = json.loads(record.read_text())
    assert set(records) == set(plan_script["plans"]())
    assert all("plan" in entry for entry in records.values())
    assert second in page.read_text() and "ran out of memory" not in page.read_text()
