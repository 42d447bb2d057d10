"""Settings: what is given wins in order, what is unknown is refused, what is saved reads back."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dic3l import config as settings
from dic3l.config import Config, MethodConfig, TrainConfig, from_toml, preset, resolve, to_toml
from dic3l.errors import ConfigError, Dic3lError


def test_the_paper_preset_is_the_published_command():
    paper = preset("paper")
    assert (paper.method.arch, paper.method.weights) == ("resnet101", "imagenet")
    assert (paper.views.crop_size, paper.train.batch_size, paper.train.epochs, paper.train.steps) == (448, 256, 400, 0)
    assert (paper.optim.lr, paper.optim.sgd_momentum, paper.optim.weight_decay) == (0.03, 0.9, 1e-4)
    assert (paper.method.temperature, paper.method.queue_size, paper.method.momentum) == (0.2, 65536, 0.999)
    method = paper.method
    assert (method.weight_global, method.weight_contour, method.weight_instances) == (0.8, 0.2, 5.0)


def test_what_the_sarsense_preset_changes_in_the_paper_is_what_its_switches_say():
    changed = settings.differences(preset("paper"), preset("sarsense"))
    switches = settings.PRESETS["sarsense"].keys() - settings.PRESETS["paper"].keys()
    assert changed.keys() == switches
    off = resolve("sarsense", options={name: before for name, (before, _) in changed.items()})
    assert off == preset("paper")


def test_the_smoke_preset_needs_no_network_and_its_boxes_fit_its_views():
    smoke = preset("smoke")
    assert (smoke.method.arch, smoke.method.weights) == ("resnet18", "random")
    assert smoke.boxes.min_side <= smoke.views.crop_size / 3


@pytest.mark.parametrize("name", list(settings.PRESETS))
def test_saved_settings_read_back_the_same(name):
    config = preset(name)
    assert from_toml(to_toml(config), "config.toml") == config
    assert to_toml(from_toml(to_toml(config), "config.toml")) == to_toml(config)


@given(
    weights=st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    lr=st.floats(1e-30, 1e30),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_any_text_and_number_survives_toml(weights, lr, seed):
    config = Config(method=MethodConfig(weights=weights), train=TrainConfig(seed=seed))
    config = replace(config, optim=replace(config.optim, lr=lr))
    assert from_toml(to_toml(config), "config.toml") == config
    assert tomllib.loads(to_toml(config))["method"]["weights"] == weights


def test_file_wins_over_preset_options_over_file_and_set_over_options(tmp_path: Path):
    file = tmp_path / "my.toml"
    file.write_text("[train]\nbatch_size = 32\nseed = 1\nlog_every = 5\n[optim]\nlr = 1\n[views]\narea = [0.5, 1]\n")
    config = resolve("smoke", file, {"train.seed": 2, "train.log_every": 6}, ["train.log_every=7"])
    assert (config.train.batch_size, config.train.seed, config.train.log_every) == (32, 2, 7)
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)  # a whole number is a number
    assert config.views.area == (0.5, 1.0)
    assert config.method.arch == "resnet18"  # of the preset


def test_settings_are_judged_together_not_one_by_one():
    config = resolve("smoke", options={"train.batch_size": 12}, assignments=["method.bn_groups=6"])
    assert (config.train.batch_size, config.method.bn_groups) == (12, 6)


def test_who_asks_for_epochs_gets_epochs():
    assert preset("smoke").train.steps > 0
    assert resolve("smoke", options={"train.epochs": 3.0}).train.steps == 0
    assert resolve("smoke", options={"train.epochs": 3.0, "train.steps": 9}).train.steps == 9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("method.archs=x", "--set: unknown setting 'method.archs'; did you mean 'method.arch'?"),
        ("train.lr=0.1", "unknown setting 'train.lr'; did you mean 'optim.lr'?"),
        ("batch_sise=3", "unknown setting 'batch_sise'; did you mean 'train.batch_size'?"),
        ("qqq=3", "unknown setting 'qqq'; `dic3l pretrain --help` lists all settings"),
        ("train.steps", "--set: expected section.key=value, found 'train.steps'"),
        ("train.steps=many", "--set: train.steps: expected a whole number, found 'many'"),
        ("train.steps=1.5", "train.steps: expected a whole number, found 1.5"),
        ("train.seed=true", "train.seed: expected a whole number, found True"),
        ("optim.lr=fast", "optim.lr: expected a number, found 'fast'"),
        ("optim.decay_vectors=1", "optim.decay_vectors: expected true or false, found 1"),
        ("views.area=0.5", r"views.area: expected two numbers \[low, high\], found 0.5"),
        ("method.arch=vgg16", "method.arch: expected one of resnet18, resnet34, resnet50, resnet101, found 'vgg16'"),
        ("views.area=[0.5, 2]", "views.area: expected 0 < smallest <= largest <= 1"),
        ("views.crop_size=8", "views.crop_size: expected at least 32 pixels, found 8"),
        ("boxes.min_side=500", "boxes.min_side: expected at most views.crop_size, which is 96"),
        ("train.batch_size=7", "train.batch_size: expected at least twice method.bn_groups, which is 4, found 7"),
        ("train.accumulate=5", "train.accumulate: expected at most method.bn_groups, which is 4, found 5"),
        ("train.loggers=wandb,neptune", "train.loggers: expected names among wandb, mlflow, found wandb,neptune"),
        ("method.stem=double", "method.stem: expected one of copies, single, found 'double'"),
        ("method.momentum_span=2", "method.momentum_span: expected from 0 to 1, found 2"),
        ("edges.side=97", "edges.side: expected at most views.crop_size, which is 96"),
        ("method.temperature=0", "method.temperature: expected above 0, found 0"),
        ("method.contour_stage=5", "method.contour_stage: expected 1, 2, 3 or 4, found 5"),
        ("optim.lr=nan", "optim.lr: expected above 0, found nan"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(text, told):
    with pytest.raises(ConfigError, match=told) as caught:
        resolve("smoke", assignments=[text])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_settings_are_refused(tmp_path: Path):
    with pytest.raises(Dic3lError, match=r"absent\.toml: settings cannot be read: No such file"):
        resolve(file=tmp_path / "absent.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[train\n")
    with pytest.raises(Dic3lError, match=r"bad\.toml: not TOML"):
        resolve(file=bad)
    bad.write_text("[train]\nsede = 3\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: unknown setting 'train\.sede'; did you mean 'train\.seed'"):
        resolve(file=bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(Dic3lError, match="settings as TOML expected, found no text"):
        resolve(file=bad)
    with pytest.raises(ConfigError, match="--preset: expected one of paper, sarsense, smoke, found 'tiny'"):
        resolve("tiny")


def test_every_setting_has_a_note():
    notes = settings.notes()
    assert list(notes) == settings.names()
    assert all(notes.values())


def test_differences_names_what_differs():
    assert settings.differences(preset("smoke"), preset("smoke")) == {}
    assert settings.differences(preset("smoke"), resolve("smoke", options={"train.seed": 4})) == {"train.seed": (0, 4)}
