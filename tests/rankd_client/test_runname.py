"""What a run is called where nobody says: one name for a job, however it was launched."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rankd_client import Client
from rankd_client.runname import JOB_VARIABLES, default_run

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "RANKD_RUN")


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in {*LAUNCHED, *(variable for names in JOB_VARIABLES for variable in names)}:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("job", "name"),
    [
        ({"SLURM_JOB_ID": "123", "SLURM_RESTART_COUNT": "1", "SLURM_PROCID": "7"}, "123"),
        ({"SLURM_JOB_ID": "129", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "0"}, "123_0"),
        ({"PBS_JOBID": "123[4].server"}, "123[4].server"),
        ({"LSB_JOBID": "123", "LSB_JOBINDEX": "0"}, "123"),
        ({"LSB_JOBID": "123", "LSB_JOBINDEX": "4"}, "123_4"),
        ({"FLUX_JOB_ID": "f2ab"}, "f2ab"),
        ({"JOB_ID": "123", "SGE_TASK_ID": "undefined"}, "123"),
        ({"JOB_ID": "123", "SGE_TASK_ID": "4"}, "123_4"),
        ({"SLURM_JOB_ID": "1\n\x1b/2" + "3" * 200}, "12" + "3" * 58),
    ],
)
def test_a_batch_job_keeps_its_run(monkeypatch: pytest.MonkeyPatch, job: dict[str, str], name: str) -> None:
    for variable, value in job.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.argv", ["/home/u/train.py", "--lr", "1"])
    assert default_run() == f"train-{name}" == Client().run


def test_a_job_id_of_another_program_names_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_ID", "123")
    assert "123" not in default_run().split("-")


# Two processes of a job, told apart by their environment, and what each calls its run.
TWO = """
import os, subprocess, sys
name = "import rankd_client.runname as r; print(r.default_run())"
for process_rank in "01":
    subprocess.run([sys.executable, "-c", name], env={**os.environ, "RANK": process_rank}, check=True)
"""


@pytest.mark.parametrize(
    "launch",
    [
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "2"},
    ],
)
def test_processes_of_one_launch_on_one_host_share_a_name_that_the_next_does_not_have(launch: dict[str, str]) -> None:
    runs = [
        subprocess.run([sys.executable, "-c", TWO], env={**os.environ, **launch}, capture_output=True, text=True)
        for _ in range(2)
    ]
    first, second = (run.stdout.split() for run in runs)
    assert len(first) == len(second) == 2, runs
    assert len(set(first)) == len(set(second)) == 1 and first != second


def test_processes_on_several_hosts_share_what_they_were_launched_with(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {"RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["/home/u/train.py"])
    assert default_run() == "train-node7-29500"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "exp/42")
    assert default_run() == "train-exp42-node7-29500"


def test_one_process_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert f"-{os.getpid()}-" in default_run()
