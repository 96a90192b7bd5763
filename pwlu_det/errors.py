"""The errors that this package raises about what a user has given it. This module imports nothing."""


class PwluDetError(ValueError):
    """Base class; the message says what is wrong, where, and what is allowed."""


class ConfigError(PwluDetError):
    """A config that cannot be used for training, evaluation or export; the message names the key."""


class CheckpointError(PwluDetError):
    """A checkpoint file that cannot be read, written, or used for the model at hand; the message names it."""


class DatasetError(PwluDetError):
    """A data set that is missing or damaged; the message names the file and the entry in it."""
