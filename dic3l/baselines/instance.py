"""Baselines of one vector a view: SimCLR, BYOL, SimSiam, Barlow Twins. Losses are lightly's.

- SimCLR: Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020, eq. 1: each
  view finds the other of its tile among all views of the batch.
- BYOL: Grill et al., "Bootstrap your own latent", NeurIPS 2020, eq. 2: a predictor tells what the average of the
  network makes of the other view.
- SimSiam: Chen and He, "Exploring simple Siamese representation learning", CVPR 2021, eq. 2: the same without an
  average, gradients of the other view stopped.
- Barlow Twins: Zbontar et al., "Barlow Twins: self-supervised learning via redundancy reduction", ICML 2021, eq. 1: the
  cross-correlation of both views over the batch becomes the identity.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from dic3l import distributed
from dic3l.base import StepBatch
from dic3l.baselines.skeleton import Baseline, Mlp, Part, pooled
from dic3l.config import MethodConfig
from dic3l.encoder import Encoder
from dic3l.errors import ConfigError
from dic3l.groups import Division
from dic3l.precision import full_precision, without_autocast

_BARLOW_WEIGHT = 5e-3
"""lambda of the paper: of what is off the diagonal"""


class InstanceNetwork(nn.Module):
    """Encoder, projector, and a predictor where the method has one."""

    def __init__(self, encoder: Encoder, projector: Mlp, predictor: Mlp | None) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """Views uint8 (n, 1, h, w) -> projections of both, then predictions of both where there is a predictor: (n, D)
        each, float32."""
        vectors = [self.projector(pooled(self.encoder(views)[4])) for views in (first, second)]
        if self.predictor is not None:
            vectors += [self.predictor(vector) for vector in vectors]
        return tuple(full_precision(vector) for vector in vectors)


class _Instance(Baseline):
    columns = ("loss",)

    def network(self, encoder: Encoder, config: MethodConfig) -> InstanceNetwork:
        hidden, dim = config.hidden_dim, config.embedding_dim
        return InstanceNetwork(encoder, Mlp((encoder.channels[4], hidden, dim)), None)


class _Coupled(_Instance):
    """The loss is one of all tiles, the same on every rank."""

    averaged, coupled = False, True
    _loss: nn.Module
    """of projections (B, D) of both views of all tiles: a scalar"""

    def part(self, query: nn.Module, views: tuple[Tensor, Tensor], batch: StepBatch, rows: slice) -> Part:
        own = query(*views)
        counts = self.division.counts()
        first, second = (distributed.gather_with_gradient(vectors, counts) for vectors in own)
        with without_autocast(first):
            loss = self._loss(first, second)
        return Part(loss[None], *own)


class SimCLR(_Coupled):
    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__(config, seed, division)
        self._loss = lightly(config.name).NTXentLoss(config.temperature)


class BarlowTwins(_Coupled):
    """Projector of three layers, as published; its width is `hidden_dim`, published: 8192."""

    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__(config, seed, division)
        self._loss = lightly(config.name).BarlowTwinsLoss(_BARLOW_WEIGHT)

    def network(self, encoder: Encoder, config: MethodConfig) -> InstanceNetwork:
        hidden = config.hidden_dim
        return InstanceNetwork(encoder, Mlp((encoder.channels[4], hidden, hidden, hidden)), None)


class BYOL(_Instance):
    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__(config, seed, division)
        self._nearness = lightly(config.name).NegativeCosineSimilarity()

    def network(self, encoder: Encoder, config: MethodConfig) -> InstanceNetwork:
        hidden, dim = config.hidden_dim, config.embedding_dim
        return InstanceNetwork(encoder, Mlp((encoder.channels[4], hidden, dim)), Mlp((dim, hidden, dim)))

    def part(self, query: nn.Module, views: tuple[Tensor, Tensor], batch: StepBatch, rows: slice) -> Part:
        *_, first, second = query(*views)
        targets = self.targets(*views)
        with without_autocast(first):
            # 2 - 2 cos, both ways; lightly's is the mean of -cos over the tiles of the part
            told = 4 + 2 * (self._nearness(first, targets[1]) + self._nearness(second, targets[0]))
        return Part(self.mean(told.expand(len(first)))[None], first, targets[1])


class SimSiam(BYOL):
    """The predictor is a bottleneck of a quarter, the projector has three layers and closes with BatchNorm, as
    published; its width is `hidden_dim`, published: 2048."""

    averaged = False

    def network(self, encoder: Encoder, config: MethodConfig) -> InstanceNetwork:
        hidden = config.hidden_dim
        projector = Mlp((encoder.channels[4], hidden, hidden, hidden), closing_norm=True)
        return InstanceNetwork(encoder, projector, Mlp((hidden, hidden // 4, hidden)))

    def part(self, query: nn.Module, views: tuple[Tensor, Tensor], batch: StepBatch, rows: slice) -> Part:
        *targets, first, second = query(*views)
        targets = [target.detach() for target in targets]
        with without_autocast(first):
            told = (self._nearness(first, targets[1]) + self._nearness(second, targets[0])) / 2
        return Part(self.mean(told.expand(len(first)))[None], first, targets[1])


def lightly(name: str) -> ModuleType:
    """The losses of lightly; ConfigError where it is not installed."""
    try:
        import lightly.loss
    except ImportError as error:
        raise ConfigError(
            f"method.name: {name} takes its loss from lightly, which is not installed: pip install "
            "'sarsense[baselines]'"
        ) from error
    return lightly.loss
