"""The GKE launcher: what its JobSets say once they are filled in, and that kubectl gets just that."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "launch" / "gke.sh"
JOB = ["--name=c10", "--image=us/p:1", "--claim=runs"]
TPU = [*JOB, "--accelerator=tpu-v6e-slice", "--topology=4x4"]
GPU = [*JOB, "--accelerator=nvidia-h100-80gb", "--hosts=3"]
AWKWARD = ["--config=a b.py", 'say "hi"', "\\", "$(HOME)", "&", "${NAME}", "it's", "ü", ""]


def launch(top: Path, *arguments: str):
    kubectl = top / "bin" / "kubectl"
    kubectl.parent.mkdir(exist_ok=True)
    kubectl.write_text('#!/bin/bash\necho "$*" > arguments\ncat > applied\nexit 7\n')
    kubectl.chmod(0o755)
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments],
        env={"PATH": f"{kubectl.parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        cwd=top,
        capture_output=True,
        text=True,
        timeout=60,
    )


def rendered(top: Path, *arguments: str) -> dict[str, Any]:
    result = launch(top, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    assert not (top / "applied").exists()
    return yaml.safe_load(result.stdout)


def job_of(jobset: dict[str, Any]) -> dict[str, Any]:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def container_of(jobset: dict[str, Any]) -> dict[str, Any]:
    return job_of(jobset)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("topology", "more", "hosts"),
    [("4x4", [], 4), ("2x2x4", [], 4), ("4x8", ["--chips=8"], 4), ("2x2", [], 1)],
)
def test_a_tpu_slice_has_a_pod_for_each_host_of_its_topology(
    tmp_path: Path, topology: str, more: list[str], hosts: int
):
    tpu = [*JOB, "--accelerator=tpu-v6e-slice", f"--topology={topology}"]
    jobset = rendered(tmp_path, *tpu, *more, "--", "--config=a.py")
    job = job_of(jobset)
    assert job["parallelism"] == job["completions"] == hosts
    chips = int(more[0].removeprefix("--chips=")) if more else 4
    assert container_of(jobset)["resources"]["limits"] == {"google.com/tpu": chips}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": topology,
    }


@pytest.mark.parametrize(
    ("name", "accelerator", "shape", "hosts", "chips"),
    [
        ("v4-32", "tpu-v4-podslice", "2x2x4", 4, 4),
        ("v5e:4x4", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5litepod-1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5p:2x2x1", "tpu-v5p-slice", "2x2x1", 1, 4),
        ("v6e-16", "tpu-v6e-slice", "4x4", 4, 4),
    ],
)
def test_the_accelerator_follows_from_the_name_of_a_slice(
    tmp_path: Path, name: str, accelerator: str, shape: str, hosts: int, chips: int
):
    jobset = rendered(tmp_path, *JOB, f"--topology={name}", "--", "--config=a.py")
    assert job_of(jobset)["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert job_of(jobset)["parallelism"] == hosts
    assert container_of(jobset)["resources"]["limits"] == {"google.com/tpu": chips}


def test_each_pod_with_gpus_gets_its_place_by_the_name_of_pod_0(tmp_path: Path):
    jobset = rendered(tmp_path, *GPU, "--chips", "4", "--", "--config=a.py")
    container = container_of(jobset)
    variables = {entry["name"]: entry for entry in container["env"]}
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == "c10-workers-0-0.c10:8476"
    assert variables["JAX_NUM_PROCESSES"]["value"] == "3"
    number = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert number == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}


@pytest.mark.parametrize("target", [TPU, GPU])
def test_wrong_input_ends_the_job_all_else_starts_it_again_and_arguments_arrive_intact(
    tmp_path: Path, target: list[str]
):
    jobset = rendered(tmp_path, *target, "--max-restarts=9", "--", *AWKWARD)
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "c10"
    assert jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 9,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    (rule,) = job_of(jobset)["podFailurePolicy"]["rules"]
    container = container_of(jobset)
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    assert job_of(jobset)["backoffLimit"] == 0
    # Kubernetes reads $(NAME) as a variable, and $$( as the two characters $(.
    assert container["args"] == [argument.replace("$(", "$$(") for argument in AWKWARD]
    assert job_of(jobset)["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_kubectl_applies_what_a_dry_run_prints_and_its_status_is_passed_on(tmp_path: Path):
    arguments = [*TPU, "--namespace=ml", "--", "--config=a.py"]
    printed = launch(tmp_path, "--dry-run", *arguments).stdout
    assert launch(tmp_path, *arguments).returncode == 7
    assert (tmp_path / "applied").read_text() == printed
    assert (tmp_path / "arguments").read_text() == "apply --namespace=ml --filename=-\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TPU[1:], "--name is missing"),
        (["--name=C_10", *TPU[1:]], "--name 'C_10' is not a name in Kubernetes"),
        ([*TPU, "--claim="], "--claim is empty"),
        ([*TPU, "--claim"], "--claim needs a value"),
        ([*TPU, "--zone=z"], "unknown argument '--zone'"),
        ([*TPU, "--hosts=2"], "--hosts is for GPUs"),
        ([*TPU, "--topology=16"], "--topology '16' is not one of a TPU slice"),
        ([*TPU, "--chips=3"], "--chips '3': a topology of 4x4 has 16 chips"),
        ([*TPU, "--accelerator=tpu-v9"], "--accelerator 'tpu-v9' is not one of the TPUs"),
        ([*JOB, "--topology=v6e-17"], "'v6e-17' is not a slice of v6e; did you mean v6e-16"),
        ([*JOB, "--topology=v9-16"], "'v9-16' is not a slice of v4, v5e, v5p or v6e"),
        ([*JOB, "--topology=4x4"], "--accelerator is missing"),
        ([*TPU[:-1], "--topology=v5e-16"], "'v5e-16' is of tpu-v5-lite-podslice, but --accel"),
        (GPU[:-1], "--hosts is missing"),
        ([*GPU, "--topology=4x4"], "--topology is for TPUs"),
        ([*GPU, "--hosts=0"], "--hosts '0' is not a whole number of at least 1"),
        ([*GPU, "--max-restarts=x"], "--max-restarts 'x' is not a whole number"),
        ([*GPU, "--max-restarts=08"], "--max-restarts '08' is not a whole number"),
        (GPU, "the arguments of the command are missing"),
        ([*GPU, "--", "two\nlines"], "has a control character"),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], message: str
):
    result = launch(tmp_path, *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "applied").exists()


def test_help_shows_every_option(tmp_path: Path):
    result = launch(tmp_path, "--help")
    assert result.returncode == 0
    for option in """name image claim accelerator topology hosts chips service-account max-restarts
        namespace dry-run help""".split():
        assert f"  --{option} " in result.stdout
