import resource

import pytest

from rankd.doctor.host import check_clock, check_device, check_host, check_open_files


@pytest.mark.parametrize(("soft", "ok"), [(256, False), (1024, True), (resource.RLIM_INFINITY, True)])
def test_open_files(soft: int, ok: bool) -> None:
    finding = check_open_files(soft, 4096)
    assert finding.ok is ok and ("ulimit -n" in finding.advice) is not ok


@pytest.mark.parametrize(("now", "ok"), [(0.0, False), (1.8e9, True), (5e9, False)])
def test_clock(now: float, ok: bool) -> None:
    assert check_clock(now).ok is ok


def test_device() -> None:
    assert check_device("cpu").text == "a daemon with device=cpu measures on cpu"
    finding = check_device("cuda:77")
    assert not finding.ok and "device='cuda:77'" in finding.text and "nvidia-smi" in finding.advice


def test_this_host_is_looked_at_whole() -> None:
    assert [finding.check for finding in check_host("cpu")] == ["open_files", "clock", "device"]
