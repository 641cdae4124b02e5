"""Ways to watch a training that others ship, wandb.watch and torch's asynchronous checkpoints, at the best settings of
their documentation."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from _tap_training import Training, nothing
from _tap_ways import EVERY, Way
from torch import distributed

SHARED_MEMORY = Path("/dev/shm")


class Wandb(Way):
    """`wandb.watch(model, log="parameters")`, offline. Its work is done in a forward hook; hooks of our own before and
    behind that tell what it takes. Between blocks the model is not watched."""

    name = "wandb.watch, offline"
    how = f'log="parameters", log_freq={EVERY}, and one run.log at that cadence'
    default_every = 1000

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(training)
        import wandb

        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
        self._run: Any = wandb.init(mode="offline", dir=directory, project="tap", settings=settings)
        self.num_bytes = sum(p.numel() * p.element_size() for p in training.model.parameters())
        self._handles: list[Any] = []
        self._started = 0.0

    def begin(self) -> None:
        model = self.training.model
        self._handles = [model.register_forward_hook(self._before)]
        self._run.watch(model, log="parameters", log_freq=EVERY)
        self._handles.append(model.register_forward_hook(self._behind))

    def watch(self, step: int) -> None:
        self._run.log({"at": step})

    def end(self) -> None:
        self._run.unwatch(self.training.model)
        for handle in self._handles:
            handle.remove()

    def close(self) -> None:
        self._run.finish()

    def _before(self, *_: object) -> None:
        self._started = time.perf_counter()

    def _behind(self, *_: object) -> None:
        self.elsewhere_seconds += time.perf_counter() - self._started


class AsyncSave(Way):
    """`torch.distributed.checkpoint.async_save` of the weights: staged in the background into pinned shared memory,
    written by a process of its own to memory-backed files; the optimizer waits for the staging, as the documentation
    has it, and a save for the one before."""

    name = "async_save (torch.distributed.checkpoint)"
    default_every = 500  # torchtitan's; torch itself has none

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(training)
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # where the writing process meets us
        store = distributed.FileStore(str(directory / "store"), 1)
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        is_cuda = training.device.type == "cuda"
        options = StagingOptions(is_cuda, True, True, is_cuda)
        self._stager = DefaultStager(options)
        self._buffers: Any = self._stager._state_dict_stager
        self._buffers.close = nothing  # torch 2.11 closes them after the first save, and fails at the second
        needed_bytes = 3 * 4 * training.num_parameters  # staged, the old checkpoint and the new one
        is_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > needed_bytes
        root = SHARED_MEMORY if is_room else directory
        self._target = Path(tempfile.mkdtemp(prefix="tap-", dir=root))
        self.how = f"DefaultStager(pinned={is_cuda}, shared, async), a process writes fp32 weights to {root}"
        self._response: Any = None
        self._state = {name: parameter.detach() for name, parameter in training.model.named_parameters()}
        self.num_bytes = sum(weight.numel() * weight.element_size() for weight in self._state.values())

    def watch(self, step: int) -> None:
        from torch.distributed.checkpoint import FileSystemWriter, async_save
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        self._wait_written()
        self._response = async_save(
            {"model": self._state},
            storage_writer=FileSystemWriter(self._target / "checkpoint", sync_files=False),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self._stager,
        )

    def before_update(self) -> None:
        if self._response is not None and not self._response.staging_completion.done():
            started = time.perf_counter()
            self._response.staging_completion.result()
            self.elsewhere_seconds += time.perf_counter() - started

    def settle(self) -> None:
        self._wait_written()

    def close(self) -> None:
        self._wait_written()
        del self._buffers.close
        self._stager.close()
        distributed.destroy_process_group()
        shutil.rmtree(self._target)

    def _wait_written(self) -> None:
        if self._response is not None:
            self._response.upload_completion.result()


def wandb_version() -> str | None:
    """None where it is not installed."""
    try:
        import wandb
    except ImportError:
        return None
    return str(wandb.__version__)
