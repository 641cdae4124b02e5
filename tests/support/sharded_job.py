"""One process of a training job whose model is sharded, for tests: `sharded_job.py URL DIRECTORY PROCESS SIZE CASE…`.

Each case is a run of its own: it shards a small model, takes two steps of an optimizer, pushes as float32 and flushes.
Afterwards the whole weights, gathered by the framework's own collectives, go into DIRECTORY/CASE.PROCESS.pt.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from sharded_model import Model
from torch import nn

from rankd_client import Client, MegatronAdapter

FLUSH_SECONDS = 60.0
STEP = 7
Weights = dict[str, torch.Tensor]


class Job:
    """What this process is of its job, and where it pushes to."""

    def __init__(self, url: str, directory: Path, process: int, size: int) -> None:
        import torch.distributed as dist

        self.url, self.directory, self.process, self.size = url, directory, process, size
        dist.init_process_group("gloo", f"file://{directory}/meet", rank=process, world_size=size)

    def model(self) -> Model:
        torch.manual_seed(1)
        return Model()

    def train(self, model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        for _ in range(2):
            model(torch.arange(8).view(2, 4)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def push(self, case: str, model: Any, **options: Any) -> Mapping[str, str]:
        """The reasons why this process left something out."""
        options = {"dtype": "float32", "max_overhead": None, "strict": True, "echo": False, **options}
        with Client(case, self.url, **options) as client:
            receipt = client.push(model, STEP)
            assert client.flush(FLUSH_SECONDS), f"{case}: not all was recorded"
        return receipt.skipped

    def keep(self, case: str, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        torch.save({name: weight.clone() for name, weight in weights}, self.directory / f"{case}.{self.process}.pt")


def whole(model: nn.Module) -> Weights:
    """Of a model of DTensors."""
    return {
        name: parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()
        for name, parameter in model.named_parameters()
    }


def ddp(job: Job, case: str) -> None:
    """Behind torch.compile's and activation checkpointing's wrappers too."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = job.model()
    model.layers[1] = checkpoint_wrapper(model.layers[1])
    wrapped = nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job.train(wrapped)
    skipped = job.push(case, wrapped)
    assert (skipped["layers.0.up.weight"] if job.process else "replica") == "replica"
    job.keep(case, ((n.replace("_checkpoint_wrapped_module.", ""), p.detach()) for n, p in model.named_parameters()))


def fsdp2(job: Job, case: str) -> None:
    from torch.distributed.fsdp import fully_shard

    model = job.model()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    job.train(model)
    job.push(case, model)
    job.keep(case, whole(model).items())


def fsdp2_gathered(job: Job, case: str) -> None:
    """Pushed in the middle of a forward pass, while one layer's weights are gathered."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = job.model()
    for layer in model.layers:
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32))
    fully_shard(model)
    job.train(model)
    seen: list[Any] = []

    def look(module: nn.Module, inputs: Any) -> None:
        assert not hasattr(module.up.weight, "placements")
        seen.append(job.push(case, model))

    hook = model.layers[0].register_forward_pre_hook(look)
    with torch.no_grad():
        model(torch.arange(8).view(2, 4))
    hook.remove()
    assert len(seen) == 1
    job.keep(case, whole(model).items())


def mesh_of(job: Job, *names: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    shape = (2,) * (job.size // 2) if len(names) > 1 else (job.size,)
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def hsdp(job: Job, case: str) -> None:
    from torch.distributed.fsdp import fully_shard

    model, mesh = job.model(), mesh_of(job, "replicate", "shard")
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    job.train(model)
    skipped = job.push(case, model)
    assert (skipped["layers.0.up.weight"] if job.process >= 2 else "replica") == "replica"
    job.keep(case, whole(model).items())


def parallelized(model: Model, mesh: Any) -> Model:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    for layer in model.layers:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def tensor_parallel(job: Job, case: str) -> None:
    """The embedding, the convolution and `thin` are whole, in plain tensors in every process."""
    model = parallelized(job.model(), mesh_of(job, "tp"))
    job.train(model)
    job.push(case, model)
    job.keep(case, whole(model).items())


def tensor_parallel_and_ddp(job: Job, case: str) -> None:
    """Over a slice of the job's mesh: the other one has the same."""
    model = parallelized(job.model(), mesh_of(job, "dp", "tp")["tp"])
    skipped = job.push(case, model)
    assert (skipped["layers.0.up.weight"] if job.process >= 2 else "replica") == "replica"
    job.keep(case, whole(model).items())


def fsdp2_and_tensor_parallel(job: Job, case: str) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = mesh_of(job, "dp", "tp")
    model = parallelized(job.model(), mesh["tp"])
    for layer in model.layers:
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    job.push(case, model)
    job.keep(case, whole(model).items())


def stacked(job: Job, case: str) -> None:
    """Matrices of experts in one tensor, cut along each of its dimensions in turn and along two at once."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = mesh_of(job, *(("a", "b") if job.size == 4 else ("a",)))
    cuts: list[Any] = [(Shard(0),), (Shard(1),), (Shard(2),), (Replicate(),)]
    if job.size == 4:
        cuts = [(Shard(0), Shard(2)), (Shard(1), Shard(2)), (Shard(2), Replicate()), (Shard(1), Shard(1))]
    torch.manual_seed(2)
    full = {str(number): torch.randn(6, 5, 8) for number, _ in enumerate(cuts)}
    job.push(case, {name: distribute_tensor(full[name], mesh, cut) for name, cut in zip(full, cuts, strict=True)})
    job.keep(case, full.items())


def fsdp1(job: Job, case: str, **options: Any) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp import StateDictType

    model = job.model()
    options["device_id"] = torch.device("cpu")
    model.layers[0] = FSDP(model.layers[0], **options)
    wrapped = FSDP(model, **options)
    job.train(wrapped)
    skipped = job.push(case, wrapped)
    if "device_mesh" in options:
        assert (skipped["layers.0.up.weight"] if job.process >= 2 else "replica") == "replica"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # state_dict's types are on their way out
        with FSDP.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT):
            job.keep(case, ((n, w) for n, w in wrapped.state_dict().items() if n != "head.weight"))


def fsdp1_flat(job: Job, case: str) -> None:
    fsdp1(job, case, use_orig_params=False)


def fsdp1_orig(job: Job, case: str) -> None:
    fsdp1(job, case, use_orig_params=True)


def fsdp1_hybrid(job: Job, case: str) -> None:
    from torch.distributed.fsdp import ShardingStrategy

    mesh = mesh_of(job, "replicate", "shard")
    fsdp1(job, case, use_orig_params=True, sharding_strategy=ShardingStrategy.HYBRID_SHARD, device_mesh=mesh)


def pipeline(job: Job, case: str) -> None:
    """A stage each, with one layer that both of them number 0; nothing is known to both."""
    model = job.model()
    stage: nn.Module = nn.ModuleDict({"layers": nn.ModuleList([model.layers[job.process]])})
    if job.process == 0:
        stage.embed = model.embed
    job.push(case, stage, adapters=[MegatronAdapter(first_layer=job.process, replica=0)])
    held = (f"layers.{job.process}.", *(("embed.",) if job.process == 0 else ()))
    job.keep(case, ((name, p.detach()) for name, p in model.named_parameters() if name.startswith(held)))


def turns(job: Job, case: str) -> None:
    """More than one push takes: in how many each weight goes says who agrees."""
    from torch.distributed.fsdp import fully_shard

    model = job.model()
    for layer in model.layers:
        fully_shard(layer)
    own = nn.ModuleDict({f"expert{job.process}": nn.Linear(12, 8 + job.process, bias=False), "all": fully_shard(model)})

    class Own:
        def place(self, name: str, tensor: Any) -> Any:
            from rankd_client import Place

            return Place(name, tensor, tuple(tensor.shape), replica=0) if name.startswith("expert") else None

    options = {"dtype": "float32", "max_overhead": None, "strict": True, "echo": False, "adapters": [Own()]}
    with Client(case, job.url, max_push_bytes=600, max_memory_bytes=1 << 20, **options) as client:
        for step in range(20):
            client.push(own, step)
            assert client.flush(FLUSH_SECONDS)
    weights = {name.removeprefix("all."): weight for name, weight in whole(own).items()}
    job.keep(case, ((f"all.{n}" if not n.startswith("expert") else n, w) for n, w in weights.items()))


def killed(job: Job, case: str) -> None:
    """Process 1 dies between two of process 0's pushes, which goes on and hears what became of each of them."""
    from torch.distributed.tensor import DTensor, Shard

    mesh = mesh_of(job, "a")
    weight = DTensor.from_local(torch.randn(4, 8), mesh, [Shard(0)], run_check=False)
    with Client(case, job.url, dtype="float32", max_overhead=None, strict=True, echo=False) as client:
        for step in range(5):
            if job.process and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            assert client.push({"w": weight}, step).num_queued == 1
            assert client.flush(FLUSH_SECONDS)
    sys.stderr.flush()
    os._exit(0)  # a process group that lacks somebody cannot be taken down in order


CASES: dict[str, Callable[[Job, str], None]] = {
    case.__name__: case
    for case in (
        ddp, fsdp1_flat, fsdp1_hybrid, fsdp1_orig, fsdp2, fsdp2_and_tensor_parallel, fsdp2_gathered, hsdp, killed,
        pipeline, stacked, tensor_parallel, tensor_parallel_and_ddp, turns,
    )
}  # fmt: skip


def main() -> None:
    url, directory, process, size, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    job = Job(url, Path(directory), int(process), int(size))
    for case in cases:
        CASES[case.partition(".")[0]](job, case)
    import torch.distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
