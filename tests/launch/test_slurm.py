"""launch/slurm.sh and launch/job.sbatch: their calls of SLURM's commands."""

import pytest

from tests.support.fake_tools import (
    FAKE,
    LAUNCH,
    ROOT,
    TRAIN,
    check_error,
    options,
    printed_commands,
)

NODES = ("--nodes", "2", "--gpus", "8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "2", "--", *TRAIN], "run needs --gpus"),
        (["--nodes", "2", "--gpus", "many", "--", *TRAIN], "--gpus many must be an integer"),
    ],
)
def test_an_error_of_slurm_is_one_line_and_calls_nothing(tools, arguments, message):
    check_error(tools, "slurm.sh", ["run", *arguments], message)


def test_slurm_runs_one_process_per_gpu(tools):
    flags = [*NODES, "--partition", "p", "--python", "/v/bin/python"]
    (call,) = tools.calls_of("slurm.sh", "run", *flags, "--", *TRAIN, "a b")
    script = call.index(str(LAUNCH / "job.sbatch"))
    assert call[script + 1 :] == [*TRAIN, "a b"]
    sbatch = options(call[:script])
    assert sbatch["--nodes"] == "2" and sbatch["--partition"] == "p"
    assert sbatch["--ntasks-per-node"] == sbatch["--gpus-per-node"] == "8"
    assert sbatch["--export"] == "ALL,PYTHON=/v/bin/python" and sbatch["--chdir"] == str(ROOT)


def test_slurm_dry_run(tools):
    process = tools.run("slurm.sh", "run", *NODES, "--dry-run", "--", *TRAIN)
    assert printed_commands(process)[0][0] == "sbatch" and not tools.calls()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (143, True)])
def test_a_stopped_job_is_queued_again(tools, code, requeued):
    (tools.folder / "bin" / "srun").write_text(FAKE.replace("case", f"exit {code}\ncase", 1))
    process = tools.run("job.sbatch", *TRAIN)
    first, *rest = tools.calls()
    assert process.returncode == code
    assert first == ["srun", "--kill-on-bad-exit=0", "launch/host.sh", *TRAIN]
    assert rest == ([["scontrol", "requeue", "7"]] if requeued else [])
    script = (LAUNCH / "job.sbatch").read_text()
    assert "#SBATCH --requeue" in script and "#SBATCH --signal=TERM@120" in script
