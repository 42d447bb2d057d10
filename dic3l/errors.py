"""The errors that DIC3L raises on purpose. `cli.py` prints them in one line."""


class Dic3lError(Exception):
    """A fact about the user's input, configuration or machine that stops the command.

    The message names what was looked at, what was expected, what was found and what to do.
    """


class ConfigError(Dic3lError):
    """A setting that is unknown, out of range, or at odds with another."""


class CheckpointError(Dic3lError):
    """A checkpoint that is missing, damaged, or of another run."""


class JointError(Dic3lError):
    """What all ranks find out together and stop with, so that the first of them may speak for all."""
