"""Errors raised for invalid user input. This module imports nothing."""


class PwluDetError(ValueError):
    """Base class of all errors. The message says what is wrong, where, and what is allowed."""


class ConfigError(PwluDetError):
    """A config cannot be used for training, evaluation or export. The message names the key."""


class CheckpointError(PwluDetError):
    """A checkpoint file cannot be read, written or used for the model. The message names the file."""


class DatasetError(PwluDetError):
    """A dataset is missing or damaged. The message names the file and the entry in it."""


def describe(error: BaseException) -> str:
    """The start of an error's message in one line, or the name of its type if it has none."""
    return " ".join(str(error).split())[:1000] or type(error).__name__
