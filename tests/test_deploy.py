"""What deploy/ names is there: flags, settings, variables, ports, files; and the scripts do what they say."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib
import typer
import yaml

from rankd.auth import Keyring
from rankd.cli import app
from rankd.config import serve_config
from rankd.store.reader import Reader
from rankd_client.keys import read_secret

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
CLI = typer.main.get_command(app)
PORTS = {"push": 7777, "alerts": 7778, "query": 7779}


def options_of(*verb: str) -> set[str]:
    command: Any = CLI
    for name in verb:
        command = command.commands[name]
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def flags_used(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Verb and flag of each `rankd VERB --flag …` in a text."""
    text = text.replace("\\\n", " ")
    for verb, rest in re.findall(rf"\brankd ((?:{'|'.join(CLI.commands)})\b(?: new\b)?)([^\n`;&|#]*)", text):
        for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest):
            yield tuple(verb.split()), flag


def documents() -> list[dict[str, Any]]:
    files = [path for path in sorted(KUBERNETES.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [item for item in documents() if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def generated(what: str) -> dict[str, list[str]]:
    content = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return {item["name"]: item["files"] for item in content[what]}


def pods() -> dict[str, dict[str, Any]]:
    ray = one("RayCluster", "rankd")["spec"]
    return {
        "daemon": one("Deployment", "rankd")["spec"]["template"],
        "trainer": one("Job", "train")["spec"]["template"],
        "head": ray["headGroupSpec"]["template"],
        "worker": ray["workerGroupSpecs"][0]["template"],
    }


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_flags_and_variables_are_known(path: Path) -> None:
    text = path.read_text()
    assert [(verb, flag) for verb, flag in flags_used(text) if flag not in options_of(*verb)] == []
    sources = [*(ROOT / "rankd").rglob("*.py"), *(ROOT / "client" / "rankd_client").rglob("*.py")]
    known = {name for source in sources for name in re.findall(r"\bRANKD_[A-Z_]+\b", source.read_text())}
    assert set(re.findall(r"\bRANKD_[A-Z_]*[A-Z]\b", text)) <= known


def test_a_flag_that_is_not_there_would_be_seen() -> None:
    assert list(flags_used("srun rankd serve --url x \\\n  --dta y; echo --z")) == [
        (("serve",), "--url"),
        (("serve",), "--dta"),
    ]
    assert "--url" in options_of("serve") and "--dta" not in options_of("serve")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)


def test_the_daemon_of_the_pod_would_start() -> None:
    (container,) = pods()["daemon"]["spec"]["containers"]
    verb, *arguments = container["args"]
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    assert verb == "serve" and {f"--{name}" for name in given} <= options_of("serve")
    assert Path(given.pop("config")).name == generated("configMapGenerator")["rankd-config"][0]
    config = serve_config({**tomllib.loads((KUBERNETES / "rankd.toml").read_text()), **given})
    assert [config.push, config.alerts, config.query] == [f"tcp://0.0.0.0:{port}" for port in PORTS.values()]
    assert config.executor == f"ray://{one('RayCluster', 'rankd')['metadata']['name']}-head-svc:10001"
    probed = [container[name]["exec"]["command"][-1] for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    paths = [re.search(rf"http://{re.escape(config.http)}(/\w+)", command) for command in probed]
    assert [found and found[1] for found in paths] == ["/healthz", "/readyz", "/healthz"]


def test_ports_lead_to_the_daemon() -> None:
    template = pods()["daemon"]
    (container,) = template["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == PORTS
    service = one("Service", "rankd")["spec"]
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == PORTS
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    (trainer,) = pods()["trainer"]["spec"]["containers"]
    environment = {item["name"]: item["value"] for item in trainer["env"]}
    assert environment["RANKD_URL"] == f"tcp://rankd:{PORTS['push']}"


def test_volumes_secrets_and_claims_are_there() -> None:
    secrets, configs = generated("secretGenerator"), generated("configMapGenerator")
    for name, pod in pods().items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        mounted = {mount["name"] for item in containers_of(pod) for mount in item.get("volumeMounts", ())}
        assert mounted == set(volumes), name
        for volume in volumes.values():
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets
            if "configMap" in volume:
                assert volume["configMap"]["name"] in configs
            if "persistentVolumeClaim" in volume:
                one("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    told = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "trainer.yaml"}
    assert set(yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]) == told


def test_only_trainers_reach_push_and_only_the_daemon_reaches_ray() -> None:
    reached: dict[int, list[dict[str, str]]] = {}
    for policy in (item["spec"] for item in documents() if item["kind"] == "NetworkPolicy"):
        for rule in policy.get("ingress", ()):
            peers = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
            for port in [item["port"] for item in rule.get("ports", ())]:
                reached.setdefault(port, []).extend(peers)
    assert one("NetworkPolicy", "nobody-else")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    trainer, subscriber, daemon = {"rankd-part": "trainer"}, {"rankd-part": "subscriber"}, {"app": "rankd"}
    assert reached == {7777: [trainer], 7778: [trainer, subscriber], 7779: [trainer, subscriber], 10001: [daemon]}
    assert pods()["trainer"]["metadata"]["labels"] == trainer
    assert pods()["daemon"]["metadata"]["labels"] == daemon
    (everything,) = one("NetworkPolicy", "ray-nodes")["spec"]["ingress"]
    assert everything == {"from": [{"podSelector": {"matchLabels": {"ray.io/cluster": "rankd"}}}]}


def test_ray_has_the_version_of_the_image_and_its_token_reaches_the_daemon() -> None:
    cluster = one("RayCluster", "rankd")
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert {item["image"] for pod in pods().values() for item in containers_of(pod)} == {"rankd-ray"}
    (container,) = pods()["daemon"]["spec"]["containers"]
    (token,) = [item for item in container["env"] if item["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": cluster["metadata"]["name"], "key": "auth_token"}
    assert cluster["spec"]["authOptions"]["mode"] == "token"


def test_the_daemon_waits_until_the_head_takes_connections() -> None:
    _, wait = pods()["daemon"]["spec"]["initContainers"]
    *python, program = wait["command"]
    (container,) = pods()["daemon"]["spec"]["containers"]
    (address,) = [argument for argument in container["args"] if argument.startswith("--executor=ray://")]
    host, port = address.removeprefix("--executor=ray://").split(":")
    assert python == ["python", "-c"] and f'("{host}", {port})' in program
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        here = program.replace(f'("{host}", {port})', f"{head.getsockname()}").replace("sleep(2)", "sleep(0.05)")
        with subprocess.Popen([sys.executable, "-c", here], stdout=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout is not None
            assert "waiting for" in waiting.stdout.readline() and waiting.poll() is None
            head.listen()
            assert waiting.wait(60) == 0


def mounted(directory: Path, files: list[Path]) -> None:
    """As the kubelet mounts a Secret: links to files that others may read."""
    data = directory / "..2026"
    data.mkdir(parents=True)
    (directory / "..data").symlink_to(data.name)
    for file in files:
        shutil.copy(file, data)
        (data / file.name).chmod(0o444)
        (directory / file.name).symlink_to(f"..data/{file.name}")


def run_first(pod: str, directory: Path) -> None:
    """The init container's commands, with its paths in a directory."""
    shell, option, commands = pods()[pod]["spec"]["initContainers"][0]["command"]
    moved = commands.replace("/run/", f"{directory}/run/").replace("/secrets", f"{directory}/secrets")
    (directory / "run" / "rankd").mkdir(parents=True)
    subprocess.run([shell, option, moved], check=True)


def test_the_keyring_is_usable_after_the_init_container(tmp_path: Path) -> None:
    keys, key = tmp_path / "made" / "keys", tmp_path / "made" / "trainer.key"
    command = [sys.executable, "-m", "rankd", "keys", "new", "trainer", "--keys", str(keys), "-o", str(key)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    made = generated("secretGenerator")
    secrets = {name: [tmp_path / "made" / file for file in files] for name, files in made.items()}
    daemon, trainer = tmp_path / "daemon", tmp_path / "trainer"
    mounted(daemon / "secrets" / "keyring", secrets["rankd-keyring"])
    mounted(daemon / "secrets" / "authorized", secrets["rankd-authorized"])
    run_first("daemon", daemon)
    keyring = Keyring(daemon / "run" / "rankd" / "keys")
    assert keyring.server() == Keyring(keys).server() and keyring.names() == ["trainer"]
    assert keyring.grant("trainer")[0] == Keyring(keys).grant("trainer")[0]
    mounted(trainer / "secrets", secrets["rankd-trainer-key"])
    run_first("trainer", trainer)
    assert read_secret(trainer / "run" / "rankd" / "trainer.key") == read_secret(key)


TRAINING = """
import os, sys, torch, rankd_client
with rankd_client.Client(echo=False, max_overhead=None, strict=True) as client:
    client.push({"w": torch.randn(8, 8)}, step=int(os.environ.get("STEP", "1")))
    sys.exit(0 if client.flush(60.0) else 3)
"""
WHERE_THE_DAEMON_IS_UP = """
import json, os, socket
with open(os.environ["RANKD_URL"].removeprefix("file://")) as file:
    host, port = json.load(file)["push"].removeprefix("tcp://").rsplit(":", 1)
socket.create_connection((host, int(port)), timeout=60).close()
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch job on one host: an srun that runs its command here, train.py, rankd and python."""
    path = tmp_path / "bin"
    path.mkdir()
    programs = {"srun": SRUN}
    for name, module in (("rankd", "-m rankd "), ("python", "")):
        programs[name] = f'#!/bin/bash\nexec {sys.executable} {module}"$@"\n'
    for name, text in programs.items():
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    (tmp_path / "train.py").write_text(TRAINING)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RANKD_", "SLURM_"))}
    of_job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_SUBMIT_DIR": str(tmp_path), "HOME": str(tmp_path)}
    return {**kept, **of_job, "TMPDIR": str(tmp_path / "local"), "PATH": f"{path}:{os.environ['PATH']}"}


def submit(script: str, job: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    directory = job["SLURM_SUBMIT_DIR"]
    Path(job["TMPDIR"]).mkdir(exist_ok=True)
    command = ["bash", str(DEPLOY / script)]
    return subprocess.run(
        command, cwd=directory, env={**job, **more}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.e2e
def test_a_training_without_a_daemon_spools(job: dict[str, str], tmp_path: Path) -> None:
    done = submit("slurm-offline.sh", job)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "rankd-spool").glob("*/*.spool"))


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.parametrize(("script", "kept"), [("slurm-het.sh", "rankd-7/history"), ("slurm.sh", "rankd-7")])
def test_a_job_that_is_requeued_goes_on_with_its_history(
    job: dict[str, str], tmp_path: Path, script: str, kept: str
) -> None:
    command = [sys.executable, "-m", "rankd", "keys", "new", "me", "-o", str(tmp_path / "rankd.key")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=job)
    (tmp_path / "rankd-7.json").write_text('{"push": "tcp://127.0.0.1:1"}')  # of a daemon that was killed
    (tmp_path / "train.py").write_text(WHERE_THE_DAEMON_IS_UP + TRAINING)
    for step in ("1", "2"):
        done = submit(script, job, STEP=step)
        assert done.returncode == 0, done.stderr
        assert "no daemon" not in done.stderr
    with Reader(tmp_path / kept) as reader:
        (run,) = reader.runs()
        assert [row.step for _, row in reader.measurements(run.name)] == [1, 2]
    assert not list((tmp_path / kept).glob("history*/")), "one within the other"


@pytest.mark.e2e
@pytest.mark.parametrize("more", [{"WAIT_SECONDS": "0"}, {}], ids=["in time", "at all"])
def test_where_the_daemon_does_not_come_up_the_job_spools(
    job: dict[str, str], tmp_path: Path, more: dict[str, str]
) -> None:
    done = submit("slurm-het.sh", job, RANKD_CONFIG=str(tmp_path / "missing.toml"), **more)
    assert done.returncode == 0 and "rankd sync" in done.stderr, done.stderr
    assert list((tmp_path / "rankd-7" / "spool").glob("*/*.spool"))
