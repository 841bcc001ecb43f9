"""A function from a user's own file. Its code runs here, because the user named it."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from likelier.errors import RequestError, did_you_mean


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function `name` of the Python file `path`. Raises RequestError where there is no such file or function, or the file does not run."""
    if not path.is_file():
        raise RequestError(f"{path}: there is no such file.")
    module_name = f"likelier_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # a dataclass looks its module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # whatever a user's file raises
        raise RequestError(f"{path} does not run ({type(problem).__name__}: {problem}).") from problem
    known: dict[str, Callable[..., Any]] = {key: value for key, value in vars(module).items() if callable(value)}
    if name not in known:
        raise RequestError(f"{path} has no function `{name}`.{did_you_mean(name, known)}")
    return known[name]
