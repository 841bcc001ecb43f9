"""What can go wrong, as one tree.

    LikelierError                  everything raised on purpose; the command line prints it as one paragraph
    ├── RequestError               the request was wrong: exit code 2
    │   ├── DataError              a file, row or field of the data
    │   ├── RecipeError            a setting
    │   ├── ModelError             a model, tokenizer or chat template
    │   ├── JudgeError             a judge, or the endpoint that it answers at
    │   └── RunError               a run directory or a checkpoint
    ├── Refused                    the request was clear and the answer is "no": exit code 1
    │   ├── TrainingStopped        a run that must not go on (wrong first loss, non-finite values, reference moved)
    │   └── GivenUp                a run that is not worth going on with; it can be
    └── Interrupted                a run that was asked to stop, and did: exit code 128 + number of the signal

Every message says what is wrong, where, and what mends it.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LikelierError(Exception):
    """Base of all errors that Likelier raises on purpose."""

    exit_code = 2


class RequestError(LikelierError, ValueError):
    """The request cannot be carried out as it was made."""


class DataError(RequestError):
    """A data file, row or field is not usable; the message names it.

    Of a fault in one row, `where` is its file and row, `fault` the message without them, and `kind` the same for programs:

        identical        both sides say the same
        empty            a reply or a prompt says nothing
        tie              neither side is better
        prompts-differ   the sides answer different prompts
        unlabelled       nobody has judged the row
        unpaired         the row judges one reply, where a pair is needed
        malformed        anything else: a field is missing, has the wrong type, cannot be understood
    """

    def __init__(self, fault: str, *, kind: str = "malformed", where: str = "") -> None:
        super().__init__(f"{where}: {fault}" if where else fault)
        self.fault = fault
        self.kind = kind
        self.where = where


class RecipeError(RequestError):
    """A setting is unknown, missing or out of range; the message names it."""


class ModelError(RequestError):
    """A model, tokenizer or chat template cannot be used."""


class JudgeError(RequestError):
    """A judge cannot be asked, or does not answer in a way that can be read."""


class RunError(RequestError):
    """A run directory or checkpoint does not fit the request."""


class Refused(LikelierError):
    """The answer is no: a gate did not open, a verification failed."""

    exit_code = 1


class TrainingStopped(Refused):
    """Training stopped because going on would produce a wrong model."""


class GivenUp(Refused):
    """A run was stopped, with a checkpoint, because it is not worth its time."""


class Interrupted(LikelierError):
    """A run stopped in good order because a signal asked it to."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean `beta`?' for a near miss, else the empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def lacks_memory(problem: BaseException) -> bool:
    """Whether an allocation failed: on a GPU an error of its own type, on a CPU a RuntimeError that only its text tells apart."""
    return isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(problem)


def disk_fault(problem: BaseException) -> bool:
    """Whether the system refused to read or write: an OSError, or from safetensors and tokenizers, which are written in Rust, an error of their
    own whose text tells it apart."""
    return isinstance(problem, OSError) or "(os error " in str(problem)
