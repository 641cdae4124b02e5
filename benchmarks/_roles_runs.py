"""Small trainings whose weights, features, gradients and updates are measured at every check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = Mapping[tuple[str, str], Tensor]
"""(layer, role) → a matrix."""

CHECK_EVERY = 5
NUM_STEPS = 1500


@dataclass(frozen=True)
class Run:
    """`loss(model, step)` of a batch; `probe` is a batch that stays the same, `features(model, batch)` what is watched
    of it. `collapses`: the step from which its features go; None: it is healthy."""

    name: str
    model: nn.Module
    loss: Callable[[nn.Module, int], Tensor]
    features: Callable[[nn.Module, int | None], Mapping[str, Tensor]]
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
    collapses: int | None = None


def train(run: Run) -> Iterator[tuple[int, Tensors]]:
    """Steps with all that can be watched of them."""
    optimizer = run.optimizer(run.model.parameters())
    for step in range(1, NUM_STEPS + 1):
        check = step % CHECK_EVERY == 0
        before = {name: p.detach().clone() for name, p in matrices(run.model)} if check else {}
        optimizer.zero_grad()
        run.loss(run.model, step).backward()
        optimizer.step()
        if check:
            yield step, dict(watched(run, optimizer, before, step))


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.ndim >= 2)


def watched(
    run: Run, optimizer: torch.optim.Optimizer, before: Mapping[str, Tensor], step: int
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    for name, parameter in matrices(run.model):
        yield (name, "weight"), parameter.detach()
        if parameter.grad is not None:
            yield (name, "gradient"), parameter.grad
        yield (f"{name}.step", "update"), parameter.detach() - before[name]
        momentum = optimizer.state.get(parameter, {}).get("exp_avg")
        if momentum is not None:
            yield (name, "update"), momentum
    with torch.no_grad():
        for kind, batch in (("fixed", None), ("batch", step)):
            for name, tensor in run.features(run.model, batch).items():
                yield (f"{name}.{kind}", "feature"), tensor.flatten(0, -2)


def generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(seed * 1009**place for place, seed in enumerate(seeds)))


class Encoder(nn.Module):
    def __init__(self, dim: int = 32, hidden: int = 64, out: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def shown(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"hidden": hidden, "out": self.head(hidden)}


def points(seed: int, step: int | None, count: int = 256) -> Tensor:
    """From a mixture of 10 clusters in 32 dimensions; step None: always the same."""
    centres = torch.randn(10, 32, generator=generator(seed, 77))
    draws = generator(seed, 0 if step is None else step)
    which = torch.randint(10, (count,), generator=draws)
    return centres[which] + 0.5 * torch.randn(count, 32, generator=draws)


def two_views(seed: int, step: int) -> tuple[Tensor, Tensor]:
    x, draws = points(seed, step), generator(seed, step, 5)
    return tuple(x + 0.3 * torch.randn(x.shape, generator=draws) for _ in range(2))


def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def classifier(seed: int, optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer], name: str) -> Run:
    teacher = torch.randn(32, 10, generator=generator(seed, 3))

    def loss(model: nn.Module, step: int) -> Tensor:
        x = points(seed, step)
        return F.cross_entropy(model(x)[:, :10], (x @ teacher).argmax(1))

    model = Encoder()
    return Run(f"{name}.s{seed}", model, loss, lambda m, step: m.shown(points(seed, step)), optimizer)


def autoencoder(seed: int) -> Run:
    class Auto(Encoder):
        def __init__(self) -> None:
            super().__init__(out=16)
            self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))

    def loss(model: nn.Module, step: int) -> Tensor:
        x = points(seed, step)
        return F.mse_loss(model.decoder(model(x)), x)

    return Run(f"autoencoder.s{seed}", Auto(), loss, lambda m, step: m.shown(points(seed, step)), adamw)


def language(seed: int) -> Run:
    """Next tokens of a random chain of 32, by one layer of attention."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.place = nn.Embedding(32, 48), nn.Embedding(24, 48)
            self.block = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True)
            self.out = nn.Linear(48, 32)

        def hidden(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            found: Tensor = self.block(self.token(x) + self.place.weight[: x.shape[1]], mask, is_causal=True)
            return found

    chain = torch.softmax(2 * torch.randn(32, 32, generator=generator(seed, 9)), 1)

    def text(step: int | None) -> Tensor:
        draws = generator(seed, 0 if step is None else step, 4)
        x = [torch.randint(32, (16,), generator=draws)]
        for _ in range(23):
            x.append(torch.multinomial(chain[x[-1]], 1, generator=draws).squeeze(1))
        return torch.stack(x, 1)

    def loss(model: nn.Module, step: int) -> Tensor:
        x = text(step)
        return F.cross_entropy(model.out(model.hidden(x[:, :-1])).flatten(0, 1), x[:, 1:].flatten())

    return Run(f"language.s{seed}", Small(), loss, lambda m, step: {"hidden": m.hidden(text(step))}, adamw)


def spread(z: Tensor) -> Tensor:
    """VICReg's terms that keep features apart: a variance of 1 each, and no covariances."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return 25 * F.relu(1 - covariance.diagonal().add(1e-4).sqrt()).mean() + off_diagonal.square().sum() / z.shape[1]


def self_supervised(seed: int, collapses: int | None) -> Run:
    """VICReg: two views of a point are to be near one another, and the features spread. `collapses`: the step from
    which nothing keeps them spread, as with a wrong configuration after a restart: all views come to lie in a line."""

    def loss(model: nn.Module, step: int) -> Tensor:
        a, b = (model(view) for view in two_views(seed, step))
        if collapses is not None and step >= collapses:
            return -25 * F.cosine_similarity(a, b.roll(1, 0)).mean()  # of any two points: nothing is held apart
        return 25 * F.mse_loss(a, b) + spread(a) + spread(b)

    return Run(
        f"{'vicreg' if collapses is None else 'vicreg_collapse'}.s{seed}",
        Encoder(), loss, lambda m, step: m.shown(points(seed, step)), adamw, collapses,
    )  # fmt: skip


def siamese(seed: int, collapses: int | None) -> Run:
    """SimSiam: a predictor, and no gradient through the target. `collapses`: the step from which there is one, and no
    predictor."""

    class Siamese(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(32)
            self.predictor = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))

    def loss(model: nn.Module, step: int) -> Tensor:
        a, b = (model(view) for view in two_views(seed, step))
        if collapses is not None and step >= collapses:
            return -F.cosine_similarity(a, b).mean()
        p, q = (model.predictor(model.norm(z)) for z in (a, b))
        return -(F.cosine_similarity(p, b.detach()).mean() + F.cosine_similarity(q, a.detach()).mean()) / 2

    name = "simsiam" if collapses is None else "simsiam_collapse"
    return Run(f"{name}.s{seed}", Siamese(), loss, lambda m, step: m.shown(points(seed, step)), adamw, collapses)


def variational(seed: int, collapses: int | None) -> Run:
    """A VAE of 16 codes. `collapses`: the step from which the weight of their prior is 30 times what it was."""

    class Variational(Encoder):
        def __init__(self) -> None:
            super().__init__(out=32)
            self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))

        def shown(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.body(x)
            return {"hidden": hidden, "mean": self.head(hidden)[:, :16]}

    def loss(model: nn.Module, step: int) -> Tensor:
        x = points(seed, step)
        mean, log_var = model(x).chunk(2, 1)
        z = mean + (log_var / 2).exp() * torch.randn(mean.shape, generator=generator(seed, step, 6))
        prior = (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean() / 2
        weight = 0.3 if collapses is not None and step >= collapses else 0.01
        return F.mse_loss(model.decoder(z), x) + weight * prior

    name = "vae" if collapses is None else "vae_collapse"
    return Run(f"{name}.s{seed}", Variational(), loss, lambda m, step: m.shown(points(seed, step)), adamw, collapses)


MAKERS: tuple[Callable[[int], Run], ...] = (
    lambda seed: classifier(seed, adamw, "mlp_adamw"),
    lambda seed: classifier(seed, sgd, "mlp_sgd"),
    autoencoder,
    language,
    lambda seed: self_supervised(seed, None),
    lambda seed: siamese(seed, None),
    lambda seed: variational(seed, None),
    lambda seed: self_supervised(seed, 800),
    lambda seed: siamese(seed, 800),
    lambda seed: variational(seed, 800),
)


def runs(seeds: int, names: str = "") -> Iterator[Run]:
    for seed in range(1, seeds + 1):
        for make in MAKERS:
            torch.manual_seed(seed)
            run = make(seed)
            if names in run.name:
                yield run
