"""The two command lines, `sarsense` and `dic3l`: parse, call, print.

Nothing heavy is imported at module level, so that `--help` and `--version` are instant: a command imports what it
calls. Errors that we raise on purpose are printed in one line (`--debug` shows the traceback) and end with exit
code 1; wrong usage ends with 2, a strict build that refused a scene with 3, a signal with 128 + its number (Ctrl-C:
130, SIGTERM: 143).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from pipelines.commands import corpus, runs, shards, weights

sarsense_app = typer.Typer(
    name="sarsense",
    help="Build, inspect and simulate corpora of SAR tiles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
dic3l_app = typer.Typer(
    name="dic3l",
    help="Pre-train encoders on a SARSense corpus with DIC3L, export and evaluate them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards_app = typer.Typer(help="Look into a corpus: list, count, show, verify.", no_args_is_help=True)
sarsense_app.add_typer(shards_app, name="shards")


def _print_version(package: str, wanted: bool) -> None:
    if wanted:
        from importlib import import_module

        typer.echo(f"{package} {import_module(package).__version__}")
        raise typer.Exit


@sarsense_app.callback()
def _sarsense(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda wanted: _print_version("sarsense", wanted), is_eager=True, help="Print it."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Build, inspect and simulate corpora of SAR tiles."""


@dic3l_app.callback()
def _dic3l(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda wanted: _print_version("dic3l", wanted), is_eager=True, help="Print it."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Pre-train encoders on a SARSense corpus with DIC3L, export and evaluate them."""


for _name, _command in {
    "simulate": corpus.simulate,
    "scan": corpus.scan,
    "build": corpus.build,
    "stats": corpus.stats,
    "diff": corpus.diff,
    "merge": corpus.merge,
    "export": corpus.describe,
    "report": corpus.report,
}.items():
    sarsense_app.command(_name)(_command)

for _name, _command in {
    "diff": corpus.diff,
    "ls": shards.ls,
    "head": shards.head,
    "get": shards.get,
    "stats": shards.stats,
    "map": shards.map_,
    "show": shards.show,
    "browse": shards.browse,
    "verify": shards.verify,
}.items():
    shards_app.command(_name)(_command)

dic3l_app.command("pretrain", epilog=runs.OTHER_SETTINGS)(runs.pretrain)
for _name, _command in {
    "compare": runs.compare,
    "views": runs.views,
    "status": runs.status,
    "plot": runs.plot,
    "export": weights.export,
    "embed": weights.embed,
    "search": weights.search,
    "evaluate": weights.evaluate,
    "predict": weights.predict,
}.items():
    dic3l_app.command(_name)(_command)


def _run(app: Callable[[], None], name: str) -> None:
    """Run an app; print a deliberate error in one line, anything else with its traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from dic3l.errors import ConfigError, Dic3lError
        from pipelines.commands.terminal import safe
        from sarsense.errors import SarsenseError, SettingError

        if debug or not isinstance(error, (Dic3lError, SarsenseError, OSError)):
            raise
        told = str(error)
        if isinstance(error, OSError) and error.strerror:  # a disk or a right that is missing: no fault of the code
            told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                told += "; free the disk or mend it, then run the same command again"
        typer.echo(f"{name}: error: {safe(told)}", err=True)
        sys.exit(2 if isinstance(error, (SettingError, ConfigError)) else 1)


def run_sarsense() -> None:
    _run(sarsense_app, "sarsense")


def run_dic3l() -> None:
    _run(dic3l_app, "dic3l")
