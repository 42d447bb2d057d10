"""The training loop: from tiles and settings to a run folder, one process of one or many.

    dic3l pretrain CORPUS --out RUN --preset smoke                 one process
    dic3l pretrain CORPUS --out RUN --nproc 2                      two of this machine
    torchrun --nproc_per_node 8 -m dic3l pretrain CORPUS --out RUN   the same, by torchrun

A run that is killed and started again with the same command goes on from its newest checkpoint, and has the losses and
weights of a run that was never killed: on CPU in fp32 to the bit. SIGTERM, SIGUSR1 (what SLURM sends before it takes a
machine away, if told to) and Ctrl-C write a checkpoint first.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any
from zlib import crc32

import torch

from dic3l import distributed
from dic3l.base import Method, training_step
from dic3l.checkpoint import (
    Checkpoint,
    CorpusFacts,
    open_run,
    restore_optimiser,
    versions,
    write_config,
    write_text,
)
from dic3l.config import Config, Precision, to_toml
from dic3l.errors import JointError
from dic3l.feed import feed
from dic3l.groups import division
from dic3l.knn import SceneProbe
from dic3l.methods import make_method
from dic3l.monitor import Monitor, Window, health
from dic3l.optim import key_momentum, learning_rate, make_optimiser, peak_rate, queue_length, total_steps
from dic3l.profile import WARM_UP, Profiler, span
from dic3l.stream import Stream, Tiles
from dic3l.writer import CheckpointWriter

_BF16_FLAGS = {"amx_bf16", "bf16"}
"""of x86 and Arm processors that are faster in bfloat16; with avx512_bf16 alone Intel's are slower than in float32:
0.75 of its tiles/s (`python -m benchmarks.step`, where a virtual machine hides AMX)"""
_KEYS_TOLD = 4
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""signals at which a run writes a checkpoint and ends"""


class DivergenceError(JointError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Outcome:
    """How a session of a run ended."""

    steps: int
    """done, over all sessions"""
    total: int
    start: int
    """steps done before this session"""
    seconds: float
    """of this session"""
    tiles_per_s: float
    """of this session"""
    signal: str | None
    """SIGTERM, SIGUSR1 or SIGINT, where one ended it early"""
    metrics: dict[str, Any]
    """the last line's values; empty where there was none"""


def train(
    tiles: Tiles,
    corpus: CorpusFacts,
    config: Config,
    run: Path,
    resume: str,
    device: torch.device,
    probe: SceneProbe | None = None,
    allow_corpus_change: bool = False,
    profiled: int = 0,
) -> Outcome:
    """Train on `tiles` into the folder `run`, as one of the processes of the current group.

    resume, allow_corpus_change: see `dic3l.checkpoint.open_run`; probe: asked at each checkpoint; profiled: steps that
    `dic3l.profile` looks at. Raises ConfigError, CheckpointError, DivergenceError.
    """
    rank, world = distributed.rank(), distributed.world()
    config = replace(config, train=replace(config.train, precision=choose_precision(config.train.precision, device)))
    batch_size, log_every, checkpoint_every = (
        config.train.batch_size,
        config.train.log_every,
        config.train.checkpoint_every,
    )
    stream, resumed = distributed.together(
        lambda: (Stream(tiles, config, rank, world), open_run(run, config, corpus, resume, allow_corpus_change)), device
    )
    total, peak = total_steps(config, len(tiles)), peak_rate(config)
    beginning = torch.tensor([resumed.step if resumed else 0, total, crc32(corpus.digest.encode())], device=device)
    if distributed.differs(beginning.double()):
        raise JointError(
            f"{run}: processes see different checkpoints or corpora (the first: step {resumed.step if resumed else 0}, "
            f"corpus {corpus.digest[:12]}); expected one --out and one corpus on a disk that all machines share"
        )
    method, query, optimiser = networks(config, resumed, device, len(tiles))
    autocast = torch.bfloat16 if config.train.precision == "bf16" else None
    window = Window(method.columns, resumed.window if resumed else None)
    start = done = logged = resumed.step if resumed else 0
    changed = resumed is not None and resumed.corpus["digest"] != corpus.digest
    del resumed  # its tensors have been copied
    if rank == 0 and start < total:  # settings that train nothing are not this run's
        write_config(run, config, corpus)

    metrics: dict[str, Any] = {}
    stopping = False
    with (
        Monitor(run, start, total, config) as monitor,
        _signals() as stop,
        CheckpointWriter(run, config.train) as writer,
        closing(Profiler(run / "profile", profiled if rank == 0 else 0, device)) as profiler,
    ):
        for line in _opening(config, corpus, stream, method, start, total, device, probe):
            monitor.say(line)
        if changed:
            monitor.say("note: the corpus is another one than the checkpoint's: the order of its tiles begins anew")
        began = since = time.monotonic()
        waited = 0.0
        with closing(feed(stream, start, total, device)) as batches:
            while done < total and not stopping:
                asked = time.monotonic()
                with span("data"):
                    step, batch = next(batches)
                waited += time.monotonic() - asked
                if config.train.compile == "graphs":
                    torch.compiler.cudagraph_mark_step_begin()  # what the graphs gave the step before is free
                lr = learning_rate(step, total, peak, config.optim.warmup_steps)
                result = training_step(method, query, batch, optimiser, lr, autocast)
                window.add(result)
                done = step + 1
                monitor.step(done)
                for line in profiler.step():
                    monitor.say(line)

                saving = done % checkpoint_every == 0 or done == total
                logging = done % log_every == 0 or saving
                if not (logging or (stop and world == 1)):
                    continue
                # only here do ranks speak of more than the step, and does the host wait for the device
                rows = window.mean_over_ranks()
                _refuse_nonfinite(window, rows, done, stream, run)
                stopping = _anywhere(bool(stop), device)
                # before a save, the file before it is awaited here, where all ranks hear of its failure together
                if _anywhere(writer.failed(wait=saving or stopping), device):
                    writer.wait()  # the first rank raises why
                    raise JointError("the first process could not write a checkpoint")
                if logging:
                    metrics = {**window.means(rows), "lr": lr, **health(method, result.queries, result.keys)}
                    elapsed = max(time.monotonic() - since, 1e-9)
                    if saving and probe:
                        metrics["knn_scene"] = probe.accuracy(method, config, device, autocast)
                    monitor.log(
                        done,
                        done * batch_size / len(tiles),
                        metrics,
                        {"tiles_per_s": (done - logged) * batch_size / elapsed, "data_wait": waited / elapsed},
                    )
                    window.clear()
                    rows, logged, waited, since = rows[:0], done, 0.0, time.monotonic()
                if saving or stopping:
                    before = time.monotonic()
                    _save(writer, config, corpus, method, optimiser, done, rows)
                    since += time.monotonic() - before  # speed is that of steps
        seconds = time.monotonic() - began
        if profiler.unfinished:
            monitor.say(f"--profile {profiled}: no table, since fewer than {WARM_UP + profiled} steps were left")
    return Outcome(
        steps=done,
        total=total,
        start=start,
        seconds=seconds,
        tiles_per_s=(done - start) * batch_size / max(seconds, 1e-9),
        signal=(stop[0] if stop else "SIGTERM") if stopping and done < total else None,
        metrics=metrics,
    )


def networks(
    config: Config, resumed: Checkpoint | None, device: torch.device, tiles: int
) -> tuple[Method, torch.nn.Module, torch.optim.Optimizer]:
    """The method on its device, the query network as it is trained (in DDP where there are peers), the optimiser.

    tiles: of the corpus. channels_last: convolutions are faster so, on CPU and CUDA.
    """
    settings = replace(
        config.method,
        queue_size=queue_length(config, tiles),
        momentum=key_momentum(config, total_steps(config, tiles)),
    )
    if resumed:
        # initial weights are not looked for again, and of another corpus the queue keeps its length
        settings = replace(settings, weights="random")
        if (keys := resumed.method.get("queue_global.keys")) is not None:
            settings = replace(settings, queue_size=len(keys))
    method = make_method(settings, config.train.seed, division(config, distributed.world()))
    if config.train.precision == "fp64":
        method.double()
    if resumed:
        method.load_state_dict(resumed.method)
    method.to(device)
    method.to(memory_format=torch.channels_last)
    if config.train.compile != "off":
        for network in (method.query, method.key):
            if network is not None:
                network.compile(mode="reduce-overhead" if config.train.compile == "graphs" else None, dynamic=False)
    optimiser = make_optimiser(method.query, config.optim)
    if resumed:
        restore_optimiser(optimiser, resumed.optimiser)
    return method, distributed.wrap_ddp(method.query), optimiser


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """'auto' as what it means on `device`: bf16 where it is computed in hardware, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_flags() & _BF16_FLAGS else "fp32"


def _cpu_flags() -> set[str]:
    """What the processor says it can, where the system tells (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()[2:]}


def _opening(
    config: Config,
    corpus: CorpusFacts,
    stream: Stream,
    method: Method,
    start: int,
    total: int,
    device: torch.device,
    probe: SceneProbe | None,
) -> Iterator[str]:
    """What there is to know before the first step."""
    tiles = len(stream.tiles)
    batch_size, queue, peak = config.train.batch_size, method.config.queue_size, peak_rate(config)
    world = distributed.world()
    yield (
        f"{config.method.arch} from {config.method.weights} weights, {config.train.precision} on {device}, "
        f"{world} process{'es' if world > 1 else ''}; corpus {corpus.name} ({corpus.digest[:12]}), {tiles} train tiles"
    )
    yield (
        f"{total} steps of {batch_size} tiles = {total * batch_size / tiles:.1f} epochs; views of "
        f"{config.views.crop_size} px; learning rate up to {peak:g}; queues of {queue} keys; momentum of the key "
        f"network {method.config.momentum:g}"
    )
    if config.train.accumulate > 1:
        yield f"each batch in {config.train.accumulate} parts: the step is that of the whole batch"
    if probe:
        yield (
            f"kNN probe at each checkpoint: the scene of {len(probe.query_rows)} val tiles, told by "
            f"{len(probe.bank_rows)} others; chance is {probe.chance:.1%}"
        )
    if config.views.crop_size > min(stream.tile_hw):
        yield (
            f"note: views of {config.views.crop_size} px are larger than the tiles of {stream.tile_hw[0]} x "
            f"{stream.tile_hw[1]}: all are enlarged, and their speckle with them; --crop-size {min(stream.tile_hw)} "
            "or less keeps the pixels"
        )
    if start:
        yield f"going on from step {start}" + (": nothing left to do" if start >= total else "")
    if config.train.precision == "bf16" and device.type == "cpu":
        yield "bf16 on CPU: faster than fp32 where the processor has AMX; --precision fp32 is the exact choice"
    if 2 * queue > tiles:
        suited = max(1, tiles // 4)
        yield (
            f"warning: the queue holds {queue} keys, more than half of the {tiles} train tiles: it meets the same tile "
            f"again while its older key is a negative; --queue-size {suited} would suit"
        )
    if start * batch_size < queue:
        yield (
            f"note: the contrast starts near ln(K + 1) = {math.log(queue + 1):.2f} and rises while the queue fills "
            f"with keys of images, over the first {math.ceil(queue / batch_size)} steps: that is as it should be"
        )


def _refuse_nonfinite(window: Window, rows: torch.Tensor, done: int, stream: Stream, run: Path) -> None:
    """rows: losses and gradient of the last steps, (steps, losses + 1). DivergenceError where one is not finite, with
    the tiles of its batch. No checkpoint holds what came of it: all of them are written after this."""
    bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
    if not bad:
        return
    step = done - len(rows) + bad[0]
    keys = [stream.tiles.keys[index] for index in stream.plan(step)[0]]
    told = window.means(rows[bad[0]][None])
    if distributed.rank() == 0:
        content = {"step": step, **{name: str(value) for name, value in told.items()}, "tiles": keys}
        write_text(run / "diverged.json", json.dumps(content, indent=2) + "\n")
    raise DivergenceError(
        f"step {step}: the loss is {told['loss']:.4g}, its gradient's length {told['gradient_norm']:.4g}; tiles of "
        f"the batch: {', '.join(keys[:_KEYS_TOLD])}, ... "
        f"(all in {run / 'diverged.json'}); the last checkpoint is from before: look at those tiles, or start anew "
        "with a lower --lr or --precision fp32"
    )


def _anywhere(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so. All ranks call it together."""
    return bool(distributed.all_reduce(torch.tensor(float(flag), device=device)) > 0)


def _save(
    writer: CheckpointWriter,
    config: Config,
    corpus: CorpusFacts,
    method: Method,
    optimiser: torch.optim.Optimizer,
    done: int,
    rows: torch.Tensor,
) -> None:
    """Begin to write a checkpoint. All ranks call it together, and have to hold the same state; the first one writes.

    The queues and the key network are never sent, so this is where a rank that has gone its own way is found out.
    """
    for name, module in method.held().items():
        values = [value.double().sum() for value in module.state_dict().values() if isinstance(value, torch.Tensor)]
        if distributed.differs(torch.stack(values)):
            raise JointError(
                f"step {done}: processes hold different states ({name}): no checkpoint is written; the one before is "
                "good. This is a defect of the program or of a device: go on from there, with --nproc 1 to be sure"
            )
    if distributed.rank() == 0:
        checkpoint = Checkpoint(
            step=done,
            config=to_toml(config),
            corpus=asdict(corpus),
            method=method.state_dict(),
            optimiser=optimiser.state_dict(),
            window=rows,
            versions=versions(),
        )
        writer.save(checkpoint)


@contextmanager
def _signals() -> Iterator[list[str]]:
    """A list that the first SIGTERM, SIGUSR1 or SIGINT enters by name; a second SIGINT interrupts at once."""
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread is told of signals
        return

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in STOPPING}
    failed = True
    try:
        yield received
        failed = False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if failed and received:  # whoever sent it is owed an end, not what is made of the error
            signal.raise_signal(signal.Signals[received[0]])
