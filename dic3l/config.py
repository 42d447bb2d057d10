"""Every setting of a pre-training run, as frozen dataclasses. Standard library only, so that `--help` is instant.

A run is a `Config`: a preset, overridden by a TOML file, overridden by the command line (`resolve`). Unknown names are
refused with the nearest known one. The resolved settings are saved as TOML, which gives the same settings when read.
"""

from __future__ import annotations

import ast
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dic3l.errors import ConfigError, Dic3lError

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Precision = Literal["auto", "fp32", "bf16", "fp64"]
Device = Literal["auto", "cpu", "cuda"]
Stem = Literal["copies", "single"]
Contour = Literal["pooled", "edges"]
Render = Literal["auto", "host", "device"]
Compile = Literal["off", "on", "graphs"]
MethodName = Literal[
    "dic3l", "moco_v1", "moco_v2", "simclr", "byol", "simsiam", "barlow_twins", "densecl", "pixpro", "resim"
]
KeyNorm = Literal["shuffled", "averaged"]
Optimiser = Literal["sgd", "lars"]


@dataclass(frozen=True)
class ViewConfig:
    """How a tile becomes two views. Defaults: the published settings (DESIGN section 6)."""

    crop_size: int = 448
    """side of a view in pixels"""
    area: tuple[float, float] = (0.2, 1.0)
    """smallest and largest share of the tile's area that a crop covers"""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """smallest and largest width / height of a crop; drawn log-uniformly"""
    jitter_probability: float = 0.8
    """share of views whose brightness and contrast change"""
    brightness: float = 0.4
    """brightness factor is drawn from 1 -+ this"""
    contrast: float = 0.4
    """contrast factor is drawn from 1 -+ this"""
    blur_probability: float = 0.5
    """share of views that are blurred"""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """standard deviation of the Gaussian blur, in pixels of the view"""
    flip_probability: float = 0.5
    """left-right flip; of a tile with north up, it turns an ascending pass's look into a descending one's"""
    vertical_flip_probability: float = 0.0
    """top-bottom flip; turns the look by some 20 degrees, where a quarter turn would make one that no orbit has"""

    def __post_init__(self) -> None:
        _require(self.crop_size >= 32, "views.crop_size", "at least 32 pixels", self.crop_size)
        _require(0 < self.area[0] <= self.area[1] <= 1, "views.area", "0 < smallest <= largest <= 1", self.area)
        _require(0 < self.aspect[0] <= self.aspect[1], "views.aspect", "0 < smallest <= largest", self.aspect)
        for name in ("jitter_probability", "blur_probability", "flip_probability", "vertical_flip_probability"):
            _require(0 <= getattr(self, name) <= 1, f"views.{name}", "from 0 to 1", getattr(self, name))
        for name in ("brightness", "contrast"):
            _require(getattr(self, name) >= 0, f"views.{name}", "0 or more", getattr(self, name))
        low, high = self.blur_sigma
        _require(0 < low <= high, "views.blur_sigma", "0 < smallest <= largest", self.blur_sigma)


@dataclass(frozen=True)
class SpeckleConfig:
    """What happens to the speckle of a tile before a view is cut from it. Defaults: nothing, as published."""

    mix_probability: float = 0.0
    """share of views anywhere between the speckled and the filtered channel (corpora of --content both)"""
    respeckle_probability: float = 0.0
    """share of views with speckle of their own: the filtered channel times speckle (corpora of --content both)"""
    fewer_looks_probability: float = 0.0
    """share of views with more speckle than the tile: the speckled channel times speckle"""
    looks: tuple[float, float] = (1.0, 16.0)
    """fewest and most looks of the speckle that views are multiplied by; drawn log-uniformly"""
    gain_db: float = 0.0
    """a view's level moves by up to this many dB, up or down"""

    def __post_init__(self) -> None:
        names = ("mix_probability", "respeckle_probability", "fewer_looks_probability")
        shares = [getattr(self, name) for name in names]
        for name, share in zip(names, shares, strict=True):
            _require(0 <= share <= 1, f"speckle.{name}", "from 0 to 1", share)
        expected = "at most 1 together with respeckle_probability and fewer_looks_probability"
        _require(sum(shares) <= 1 + 1e-9, "speckle.mix_probability", expected, shares)
        _require(0.5 <= self.looks[0] <= self.looks[1], "speckle.looks", "0.5 <= fewest <= most", self.looks)
        _require(0 <= self.gain_db <= 20, "speckle.gain_db", "from 0 to 20 dB", self.gain_db)

    @property
    def needs_filtered(self) -> bool:
        return self.mix_probability > 0 or self.respeckle_probability > 0

    @property
    def active(self) -> bool:
        return self.needs_filtered or self.fewer_looks_probability > 0 or self.gain_db > 0


@dataclass(frozen=True)
class BoxConfig:
    """Dynamic Instances: matched boxes in the overlap of two views."""

    count: int = 10
    """P: most boxes an image; fewer (masked) where the overlap is small"""
    min_side: float = 32.0
    """smallest side of a box in both views, in pixels of the view"""
    max_iou: float = 0.5
    """two kept boxes of an image overlap less than this"""
    candidates: int = 500
    """most boxes drawn an image; as many as the published sampler tries: 50 for each of 10"""

    def __post_init__(self) -> None:
        _require(self.count >= 1, "boxes.count", "1 or more", self.count)
        _require(self.min_side > 0, "boxes.min_side", "above 0 pixels", self.min_side)
        _require(0 < self.max_iou <= 1, "boxes.max_iou", "above 0, at most 1", self.max_iou)
        _require(self.candidates >= 1, "boxes.candidates", "1 or more", self.candidates)


@dataclass(frozen=True)
class EdgeConfig:
    """Where the contour branch looks if it looks at edges (`method.contour` = edges)."""

    count: int = 8
    """Q: most edge points an image; fewer (masked) where there are no more"""
    side: float = 16.0
    """side of the square about an edge point whose features are contrasted, in pixels of the coarser view"""
    significance: float = 5.0
    """ratio of averages of an edge, in standard deviations of what speckle alone makes of it"""

    def __post_init__(self) -> None:
        _require(self.count >= 1, "edges.count", "1 or more", self.count)
        _require(self.side > 0, "edges.side", "above 0 pixels", self.side)
        _require(self.significance > 0, "edges.significance", "above 0", self.significance)


@dataclass(frozen=True)
class MethodConfig:
    """DIC3L: network, queues, losses; and the methods that it is compared with, which use of it what they have."""

    name: MethodName = "dic3l"
    """dic3l, or a baseline: moco_v1, moco_v2, simclr, byol, simsiam, barlow_twins, densecl, pixpro or resim"""

    arch: Arch = "resnet50"
    """backbone of torchvision: resnet18, resnet34, resnet50 or resnet101"""
    weights: str = "random"
    """initial backbone: 'random', 'imagenet' (through torchvision) or a path to a state dict"""
    stem: Stem = "copies"
    """copies: the channel three times over, as published; single: one channel, first kernels summed over colours"""
    embedding_dim: int = 128
    """D: length of the vectors that are contrasted"""
    hidden_dim: int = 2048
    """width of the hidden layer of every head"""
    queue_size: int = 65536
    """K, for the global and for the contour queue"""
    queue_share: float = 1.0
    """the queues hold at most this share of the train tiles"""
    momentum: float = 0.999
    """of the momentum encoder"""
    momentum_span: float = 0.0
    """if above 0, the momentum encoder averages over at most this share of the run's steps; not below 0.99 for that"""
    key_norm: KeyNorm = "shuffled"
    """BatchNorm of the keys: of shuffled batches, as published, or running averages, which tell no tile of another"""
    head_layers: int = 2
    """layers of the heads of contrasts: 2, or 1 as in moco_v1"""
    temperature: float = 0.2
    """of both contrasts (the published command says 0.2, the published parser 0.07)"""
    weight_global: float = 0.8
    """of the global contrast in the loss"""
    weight_contour: float = 0.2
    """of the contour contrast in the loss"""
    weight_instances: float = 5.0
    """of the matched boxes in the loss"""
    contour: Contour = "pooled"
    """what the contour branch contrasts: the mean of a feature map, as published, or matched points on edges"""
    contour_stage: int = 3
    """residual stage (1 to 4) whose features the contour branch contrasts; published: 3"""
    bn_groups: int = 8
    """the batch is normalised in this many groups, whatever the number of processes, which is at most that"""

    def __post_init__(self) -> None:
        _require(self.arch in get_args(Arch), "method.arch", f"one of {', '.join(get_args(Arch))}", self.arch)
        for name in ("embedding_dim", "hidden_dim", "queue_size", "bn_groups"):
            _require(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        _require(self.head_layers in (1, 2), "method.head_layers", "1 or 2", self.head_layers)
        kinds = (("name", MethodName), ("stem", Stem), ("contour", Contour), ("key_norm", KeyNorm))
        for name, kind in kinds:
            expected = f"one of {', '.join(get_args(kind))}"
            _require(getattr(self, name) in get_args(kind), f"method.{name}", expected, getattr(self, name))
        _require(0 < self.queue_share <= 1, "method.queue_share", "above 0, at most 1", self.queue_share)
        _require(0 <= self.momentum < 1, "method.momentum", "from 0 to below 1", self.momentum)
        _require(0 <= self.momentum_span <= 1, "method.momentum_span", "from 0 to 1", self.momentum_span)
        _require(self.temperature > 0, "method.temperature", "above 0", self.temperature)
        for name in ("weight_global", "weight_contour", "weight_instances"):
            _require(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        _require(self.contour_stage in (1, 2, 3, 4), "method.contour_stage", "1, 2, 3 or 4", self.contour_stage)

    @property
    def shuffles(self) -> bool:
        """Whether key images change places among groups and processes."""
        return self.key_norm == "shuffled" and self.name in ("dic3l", "moco_v1", "moco_v2")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule (the published one: SGD, cosine to zero, no warm-up)."""

    optimiser: Optimiser = "sgd"
    """sgd, or lars: each matrix steps by a share of its own length (batches of thousands; wants an lr of about 1)"""
    lr: float = 0.03
    """learning rate at a batch of 256; scaled linearly with the batch size"""
    sgd_momentum: float = 0.9
    """momentum of the optimiser"""
    weight_decay: float = 1e-4
    """pull of every step towards 0"""
    decay_vectors: bool = True
    """weight decay also on biases and BatchNorm, as published"""
    warmup_steps: int = 0
    """steps in which the learning rate rises linearly to its peak; at most a tenth of the run"""

    def __post_init__(self) -> None:
        expected = f"one of {', '.join(get_args(Optimiser))}"
        _require(self.optimiser in get_args(Optimiser), "optim.optimiser", expected, self.optimiser)
        _require(self.lr > 0, "optim.lr", "above 0", self.lr)
        _require(0 <= self.sgd_momentum < 1, "optim.sgd_momentum", "from 0 to below 1", self.sgd_momentum)
        _require(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        _require(self.warmup_steps >= 0, "optim.warmup_steps", "0 or more", self.warmup_steps)


LOGGERS = ("wandb", "mlflow")


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, and what is written when."""

    epochs: float = 400.0
    """passes over the train tiles"""
    steps: int = 0
    """optimiser steps; 0: as many as `epochs` say"""
    batch_size: int = 256
    """tiles a step, over all processes"""
    accumulate: int = 1
    """parts in which a process takes its share of the batch, one after another: less memory, the same step"""
    seed: int = 0
    """of weights, queues, order, views and boxes"""
    precision: Precision = "auto"
    """of the networks' arithmetic: fp32, bf16, fp64, or auto: bf16 where the hardware has it, else fp32"""
    device: Device = "auto"
    """cpu, cuda, or auto: CUDA where there is one"""
    log_every: int = 10
    """steps between two lines of metrics.jsonl"""
    checkpoint_every: int = 1000
    """steps between two checkpoints"""
    keep: int = 3
    """newest checkpoints that stay"""
    keep_every: int = 0
    """checkpoints of multiples of so many steps stay too; 0: of none"""
    probe_tiles: int = 512
    """val tiles of the online kNN probe at each checkpoint: two thirds tell the scenes of the others; 0: no probe"""
    loggers: str = ""
    """besides metrics.jsonl and TensorBoard: wandb, mlflow, or both with a comma between"""
    loader_threads: int = 2
    """threads of each process that read tiles and render views"""
    window: int = 0
    """shards whose tiles are mixed with one another, for a corpus in a store that is larger than the disk that keeps
    its shards; 0: all"""
    compile: Compile = "off"
    """both networks by torch.compile; graphs: in CUDA graphs, too. Pays on GPUs, after a minute or more of compiling"""
    render: Render = "auto"
    """where views are made: on the host, on the device (tiles travel there), or auto: on CUDA devices, else the host"""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "train.epochs", "above 0", self.epochs)
        _require(self.steps >= 0, "train.steps", "0 or more", self.steps)
        for name in ("batch_size", "accumulate", "log_every", "checkpoint_every", "keep", "loader_threads"):
            _require(getattr(self, name) >= 1, f"train.{name}", "1 or more", getattr(self, name))
        for name in ("keep_every", "probe_tiles", "window"):
            _require(getattr(self, name) >= 0, f"train.{name}", "0 or more", getattr(self, name))
        for name, kind in (("render", Render), ("compile", Compile)):
            expected = f"one of {', '.join(get_args(kind))}"
            _require(getattr(self, name) in get_args(kind), f"train.{name}", expected, getattr(self, name))
        unknown = [name for name in self.logger_names if name not in LOGGERS]
        _require(not unknown, "train.loggers", f"names among {', '.join(LOGGERS)}", self.loggers)

    @property
    def logger_names(self) -> list[str]:
        return [name.strip() for name in self.loggers.split(",") if name.strip()]


@dataclass(frozen=True)
class Config:
    """All settings of a run. The defaults are the published ones but for the network, which a preset chooses."""

    views: ViewConfig = field(default_factory=ViewConfig)
    speckle: SpeckleConfig = field(default_factory=SpeckleConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        side, crop = self.boxes.min_side, self.views.crop_size
        _require(side <= crop, "boxes.min_side", f"at most views.crop_size, which is {crop}", side)
        _require(self.edges.side <= crop, "edges.side", f"at most views.crop_size, which is {crop}", self.edges.side)
        batch, groups = self.train.batch_size, self.method.bn_groups
        # a group of one image has no statistics of its own
        expected = f"at least twice method.bn_groups, which is {groups}"
        _require(batch >= 2 * groups, "train.batch_size", expected, batch)
        expected = f"at most method.bn_groups, which is {groups}"
        _require(self.train.accumulate <= groups, "train.accumulate", expected, self.train.accumulate)


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, found {found}")


Preset = Literal["paper", "sarsense", "smoke"]
PRESETS: dict[Preset, dict[str, Any]] = {
    # the published command; all else (448 px, temperature 0.2, cosine over 400 epochs, ...) are the defaults above
    "paper": {"method.arch": "resnet101", "method.weights": "imagenet"},
    # the published settings, and what we would change in them, each by its own setting (docs/method.md, ablated there)
    "sarsense": {
        "method.arch": "resnet101",
        "method.weights": "imagenet",
        "method.stem": "single",
        "speckle.mix_probability": 0.3,
        "speckle.respeckle_probability": 0.3,
        "speckle.fewer_looks_probability": 0.1,
        "speckle.gain_db": 2.0,
        "views.vertical_flip_probability": 0.5,
        "method.queue_share": 0.25,
        "method.momentum_span": 0.5,
        "method.contour": "edges",
        "method.contour_stage": 2,
        "method.key_norm": "averaged",
        "optim.decay_vectors": False,
        "optim.warmup_steps": 1000,
    },
    # a few minutes on two CPU cores: small network, small views, a queue for corpora of a thousand tiles
    "smoke": {
        "views.crop_size": 96,
        # gentler than published: in a few hundred steps a network learns nothing from views that share a fifth of a
        # tile and differ by 40 % in level
        "views.area": (0.4, 1.0),
        "views.brightness": 0.2,
        "views.contrast": 0.2,
        "boxes.min_side": 24.0,  # at stride 32 the feature map is 3 x 3
        "method.arch": "resnet18",
        "method.hidden_dim": 512,
        "method.queue_size": 512,
        # a faster key network lets queries tell their key from older ones by its drift: top-1 rises, content is lost
        "method.momentum": 0.996,
        "method.bn_groups": 4,
        "optim.lr": 0.06,
        "optim.warmup_steps": 40,
        "train.steps": 400,
        "train.batch_size": 64,
        "train.checkpoint_every": 100,
    },
}
DEFAULT_PRESET: Preset = "paper"

_ONLY_GLOBAL = {
    "method.weight_global": 1.0,
    "method.weight_contour": 0.0,
    "method.weight_instances": 0.0,
    "method.contour": "pooled",
}
METHODS: dict[MethodName, dict[str, Any]] = {
    "dic3l": {},
    "moco_v1": {**_ONLY_GLOBAL, "method.head_layers": 1, "method.temperature": 0.07},
    "moco_v2": _ONLY_GLOBAL,
    "simclr": {"method.temperature": 0.5, "method.contour": "pooled"},  # as published for batches of hundreds
    **{
        name: {"method.contour": "pooled"} for name in ("byol", "simsiam", "barlow_twins", "densecl", "pixpro", "resim")
    },
}
"""what each method sets of a preset, unless the user says otherwise; tiles, views, network and optimiser stay"""


def names() -> list[str]:
    """Every setting as section.key, in order."""
    sections = get_type_hints(Config)
    return [f"{section}.{item.name}" for section, kind in sections.items() for item in fields(kind)]


def value_of(config: Config, name: str) -> Any:
    """The value of a setting by its section.key."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def notes() -> dict[str, str]:
    """What each setting means, by section.key: the strings beneath the fields above."""
    of_class: dict[str, dict[str, str]] = {}
    for statement in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ClassDef):
            found = of_class[statement.name] = {}
            for before, after in zip(statement.body, statement.body[1:], strict=False):
                if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                    found[ast.unparse(before.target)] = ast.literal_eval(after.value)
    sections = get_type_hints(Config)
    return {f"{s}.{key}": text for s, kind in sections.items() for key, text in of_class[kind.__name__].items()}


# --------------------------------------------------------------------------------------------------- overriding


def preset(name: str) -> Config:
    """The settings of a preset."""
    if name not in PRESETS:
        raise ConfigError(f"--preset: expected one of {', '.join(PRESETS)}, found '{name}'")
    return override(Config(), [(f"preset {name}", PRESETS[name])])


def resolve(
    preset_name: str = DEFAULT_PRESET,
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> Config:
    """Preset, then TOML file, then options by section.key, then 'section.key=value' texts: the later wins."""
    layers: list[tuple[str, Mapping[str, Any]]] = [] if file is None else [(str(file), read_toml(file))]
    layers.append(("command line", options or {}))
    layers.append(("--set", dict(_assignment(text) for text in assignments)))
    return override(preset(preset_name), layers)


def override(config: Config, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> Config:
    """`config` with the values of each layer (where it comes from, {section.key: value}); checked once, at the end."""
    changes: dict[str, dict[str, Any]] = {}
    sections = get_type_hints(Config)
    for source, layer in layers:
        if (name := layer.get("method.name")) in METHODS:
            layer = {**METHODS[name], **layer}
        if "train.epochs" in layer and "train.steps" not in layer:
            layer = {**layer, "train.steps": 0}  # who asks for epochs does not want the steps of an earlier layer
        for name, value in layer.items():
            if name not in names():
                raise ConfigError(f"{source}: unknown setting '{name}'; {_nearest(name)}")
            section, key = name.split(".")
            hint = get_type_hints(sections[section])[key]
            changes.setdefault(section, {})[key] = _coerce(value, hint, f"{source}: {name}")
    return replace(config, **{name: replace(getattr(config, name), **new) for name, new in changes.items()})


def _assignment(text: str) -> tuple[str, Any]:
    """'section.key=value' -> name and value; the value as in TOML, or a plain word."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--set: expected section.key=value, found '{text}'")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _nearest(name: str) -> str:
    known = names()
    same_key = [other for other in known if other.split(".")[1] == name.split(".")[-1]]
    near = same_key or difflib.get_close_matches(name, known, 1)
    if not near:
        keys = difflib.get_close_matches(name.split(".")[-1], [other.split(".")[1] for other in known], 1)
        near = [other for other in known if other.split(".")[1] in keys]
    return f"did you mean '{near[0]}'?" if near else "`dic3l pretrain --help` lists all settings"


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type of its field; ConfigError where it is of another."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{name}: expected one of {', '.join(get_args(hint))}, found {value!r}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ConfigError(f"{name}: expected two numbers [low, high], found {value!r}")
        return tuple(_coerce(item, float, name) for item in value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if type(value) is not hint:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
        raise ConfigError(f"{name}: expected {expected}, found {value!r}")
    return value


# --------------------------------------------------------------------------------------------------------- TOML


def read_toml(path: Path) -> dict[str, Any]:
    """{section.key: value} of a TOML file of settings."""
    try:
        return _flat(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise Dic3lError(f"{path}: settings as TOML expected, found no text ({error})") from error
    except OSError as error:
        raise Dic3lError(f"{path}: settings cannot be read: {error.strerror or error}") from error


def from_toml(text: str, source: str) -> Config:
    """The settings that `to_toml` wrote; defaults where it says nothing. `source`: named in errors."""
    return override(Config(), [(source, _flat(text, source))])


def _flat(text: str, source: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Dic3lError(f"{source}: not TOML: {error}") from error
    flat: dict[str, Any] = {}
    for section, values in content.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat


def to_toml(config: Config) -> str:
    """All settings as TOML, in order: same settings, same text."""
    lines = []
    for section, values in asdict(config).items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one control character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """{section.key: (old value, new value)} of the settings that differ."""
    pairs = {name: (value_of(old, name), value_of(new, name)) for name in names()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
