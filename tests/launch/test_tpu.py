"""launch/tpu.sh: its calls of gcloud."""

import shlex
import subprocess

import pytest

from tests.support.fake_tools import (
    LOCAL_OUTPUT,
    ROOT,
    TRAIN,
    check_error,
    options,
    printed_commands,
)

BASE = ("--name", "mine", "--zone", "z")
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
