"""launch/gke.sh: its calls of kubectl, and the manifest."""

import re

import pytest
import yaml

from tests.support.fake_tools import LOCAL_OUTPUT, TRAIN, check_error

ACCELERATOR = ("--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4")
SLICE = ("--name", "mine", "--image", "i", *ACCELERATOR)


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
