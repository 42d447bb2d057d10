"""Names of methods -> what they are."""

from __future__ import annotations

from dic3l.base import Method
from dic3l.baselines.densecl import DenseCL
from dic3l.baselines.instance import BYOL, BarlowTwins, SimCLR, SimSiam
from dic3l.baselines.pixpro import PixPro
from dic3l.baselines.resim import ReSim
from dic3l.baselines.skeleton import Baseline
from dic3l.config import MethodConfig, MethodName
from dic3l.groups import Division
from dic3l.method import DIC3L

_CLASSES: dict[MethodName, type[DIC3L] | type[Baseline]] = {
    "dic3l": DIC3L,
    "moco_v1": DIC3L,
    "moco_v2": DIC3L,
    "simclr": SimCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "densecl": DenseCL,
    "pixpro": PixPro,
    "resim": ReSim,
}


def make_method(config: MethodConfig, seed: int, division: Division) -> Method:
    """The method that `config` names, with initial weights of `seed`. Raises ConfigError, Dic3lError."""
    return _CLASSES[config.name](config, seed, division)
