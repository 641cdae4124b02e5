import pytest
import torch
from works import CPU, make

from rankd.config import ConfigError
from rankd.executors import choose_devices
from rankd.executors.batches import SLOTS_PER_DEVICE, BatchExecutor

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("names", ["cuda", "cuda:0", "cuda:0,cuda:1", "cuda:01", "cuda:256", f"cuda:{10**30}"])
def test_devices_without_a_gpu(names: str) -> None:
    assert choose_devices("auto") == choose_devices("cpu") == [CPU]
    with pytest.raises(ConfigError, match=f"device='{names}': expected GPUs; torch sees none"):
        choose_devices(names)


@needs_cuda
def test_all_gpus() -> None:
    assert choose_devices("cuda") == [torch.device("cuda", place) for place in range(torch.cuda.device_count())]


@needs_cuda
def test_devices_with_a_gpu() -> None:
    gpu = torch.device("cuda", 0)
    assert choose_devices("cuda:0") == [gpu]
    executor = make("threads", gpu)
    assert isinstance(executor, BatchExecutor) and (executor.num_slots, executor.num_workers) == (
        SLOTS_PER_DEVICE["cuda"],
        1,
    )
    executor.close()
    absent = f"cuda:{torch.cuda.device_count()}"
    for names in (absent, f"cuda:0,{absent}", "cuda:256", f"cuda:{10**30}"):
        with pytest.raises(ConfigError, match=f"device='{names}'"):
            choose_devices(names)


@needs_cuda
def test_a_gpu_that_is_named_twice_is_one() -> None:
    assert choose_devices("cuda:0,cuda:00,cuda:0") == [torch.device("cuda", 0)]


@needs_cuda
def test_auto_leaves_a_gpu_in_use_alone() -> None:
    ours = torch.ones(1 << 29, device="cuda:0")  # a trainer's 2 GiB
    assert choose_devices("auto") != [torch.device("cuda", 0)]
    del ours
