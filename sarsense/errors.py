"""The errors that SARSense raises on purpose. `cli.py` prints them in one line."""


class SarsenseError(Exception):
    """A fact about the user's input or machine that stops the command.

    The message names the file, what was expected, what was found and what to do.
    """


class SceneError(SarsenseError):
    """A raster that cannot become a scene. A build records it as the reason and goes on."""


NOT_FETCHED = "could not be fetched"
CHANGED = "changed while it was read"
"""why a scene is refused for now: the next build tries again"""


class RemoteError(SceneError):
    """A raster that could not be fetched. Recorded as a refusal, and tried again by the next build."""


class CorpusError(SarsenseError):
    """A folder that is not a (whole) corpus, or a corpus that contradicts itself."""


class ShardError(CorpusError):
    """A shard that is missing, truncated, or differs from what the corpus says of it."""


class BadShardError(ShardError):
    """A shard is not what the manifest says, however often it is fetched."""

    def __init__(self, message: str, shard: str) -> None:
        super().__init__(message)
        self.shard = shard


class SettingError(SarsenseError):
    """An option out of range. The command line ends with exit code 2, as for wrong usage."""
