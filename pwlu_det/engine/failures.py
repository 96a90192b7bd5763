"""One-line messages for failures of a run that are not bugs."""

from __future__ import annotations

import re

from torch.multiprocessing import ProcessExitedException

from pwlu_det.errors import PwluDetError, describe

_RESUME = "Use --resume to continue from the last checkpoint."


def explain(error: BaseException) -> str | None:
    """Say what has failed: an input, a disk or a data loader worker. Return None for any other error."""
    if isinstance(error, PwluDetError):
        # From a worker, torch puts the whole traceback into the message.
        if "Original Traceback" not in str(error):
            return str(error)
        return re.sub(rf".*{type(error).__name__}: ", "", str(error), flags=re.DOTALL).strip()
    if isinstance(error, (ConnectionError, EOFError)) or "DataLoader worker (pid" in str(error):
        return (
            f"a data loader worker was lost ({describe(error)}). Perhaps it was killed because memory was "
            f"full: fewer workers, DATALOADER.NUM_WORKERS, need less. {_RESUME}"
        )
    return str(error) if isinstance(error, OSError) else None


def explain_exit(error: ProcessExitedException, first_rank: int) -> tuple[str, int]:
    """A message, or "" if the process has printed one, and the exit status for the end of a process.

    Args:
        first_rank: the rank of the first process on this machine.
    """
    if error.exit_code is None or error.exit_code >= 0:
        return "", error.exit_code or 1
    hint = ", which the system sends when the memory is full" if error.signal_name == "SIGKILL" else ""
    message = f"process {first_rank + error.error_index} was killed by {error.signal_name}{hint}. {_RESUME}"
    return message, 128 - error.exit_code  # as a shell reports it
