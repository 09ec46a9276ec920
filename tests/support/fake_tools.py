"""Fakes of the command-line tools of the clouds, which record how the launchers call them."""

import os
import re
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TRAIN = ("--config", "configs/sd15.py", "--output", "gs://b/run")
LOCAL_OUTPUT = ("--", "--output", "runs/x")

# A fake tool answers with the next line of ANSWERS/describe or ANSWERS/ssh; the last line is
# repeated. A line "exit N" is a failure.
FAKE = """#!/usr/bin/env bash
tool=${0##*/}
{ printf '%s\\x1f' "$tool" "$@"; printf '\\x1e'; } > "$RECORD.$$"
cat "$RECORD.$$" >> "$RECORD" # one write, because fakes run in parallel
[ -t 0 ] || [ "$tool" != kubectl ] || cat > "$RECORD.stdin"
case "$tool $*" in
  *describe*) answers=$ANSWERS/describe ;;
  *ssh*) answers=$ANSWERS/ssh ;;
  *) exit 0 ;;
esac
[ -f "$answers" ] || exit 0
line=$(head -1 "$answers")
[ "$(wc -l < "$answers")" -le 1 ] || sed -i 1d "$answers"
[ "${line%% *}" != exit ] || exit "${line##* }"
echo "$line"
"""


class FakeTools:
    """Fakes of the command-line tools of the clouds, and of git, first on the PATH."""

    def __init__(self, folder: Path):
        self.folder, self.record = folder, folder / "record"
        (folder / "bin").mkdir()
        (folder / "answers").mkdir()
        for tool in ("gcloud", "git", "kubectl", "sbatch", "scancel", "srun", "scontrol"):
            path = folder / "bin" / tool
            path.write_text(FAKE)
            path.chmod(0o755)

    def set_answers(self, subcommand: str, *lines: str) -> None:
        file = self.folder / "answers" / subcommand
        file.write_text("".join(f"{line}\n" for line in lines))

    def run(self, script: str, *arguments) -> subprocess.CompletedProcess:
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "ANSWERS": str(self.folder / "answers"),
            "POLL": "0",
            "SLURM_JOB_ID": "7",
        }
        return subprocess.run(
            [LAUNCH / script, *arguments],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def calls(self) -> list[list[str]]:
        """The recorded calls, in order."""
        if not self.record.exists():
            return []
        return [call.split("\x1f")[:-1] for call in self.record.read_text().split("\x1e")[:-1]]

    def calls_of(self, script: str, *arguments) -> list[list[str]]:
        """Runs a script that must succeed; returns all recorded calls."""
        process = self.run(script, *arguments)
        assert process.returncode == 0, process.stderr
        return self.calls()


def options(call: list[str]) -> dict[str, str]:
    """Option -> value, or "" for a switch."""
    return {
        word: "" if following.startswith("--") else following
        for word, following in zip(call, [*call[1:], "--"], strict=True)
        if word.startswith("--")
    }


def printed_commands(process: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that a dry run has printed, split as by a shell."""
    assert process.returncode == 0, process.stderr
    return [
        shlex.split(line)
        for line in process.stdout.splitlines()
        if re.match("(gcloud|kubectl|sbatch|scancel|git) ", line)
    ]


def check_error(tools, script, arguments, message):
    process = tools.run(script, *arguments)
    assert process.returncode == 2 and message in process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert not tools.calls()
