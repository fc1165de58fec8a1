"""Models on the Hugging Face hub: fetched into its own cache, safetensors only."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from skimp.errors import LoadError
from skimp.models import checks
from skimp.progress import Progress

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_SIDE_FILES = (".json", ".txt", ".model", ".jinja")


def is_id(source: str) -> bool:
    """Say whether `source` has the form of a hub id, ``org/name``."""
    return _ID.fullmatch(source) is not None


def fetch(name: str, *, progress: Progress, trust_remote_code: bool = False) -> Path:
    """Return the local folder of a hub model, downloading what is not there yet.

    config.json comes first, so that what skimp cannot use is refused before gigabytes arrive. What
    was downloaded before is used when the hub cannot be reached.

    Raises:
        LoadError: not there, gated, without safetensors, not a causal language model, or the hub
            cannot be reached and nothing was downloaded before.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(name)
        files = _wanted(name, [file.rfilename for file in info.siblings or []], trust_remote_code)
        config = Path(hf_hub_download(name, checks.CONFIG, revision=info.sha))
        checks.check_config(
            checks.read_json(config), f"the hub model {name}", trust_remote_code=trust_remote_code
        )
        with progress.task(f"Downloading {name}", len(files)) as step:
            for file in files:
                hf_hub_download(name, file, revision=info.sha)
                step()
        return config.parent
    except LoadError:
        raise
    except GatedRepoError:
        raise LoadError(
            f"the hub model {name} is gated; accept its terms at https://huggingface.co/{name} and "
            "log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise LoadError(
            f"{name!r} is neither a local folder nor a model on the hub that you may see; check "
            "the spelling, or log in with `hf auth login` if it is private."
        ) from None
    except Exception as error:  # the HTTP library differs between releases of the hub's client
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:
            raise LoadError(
                f"{name!r} is no local folder, and the hub cannot be reached "
                f"({type(error).__name__}); check the spelling or the network connection."
            ) from error


def _wanted(name: str, files: list[str], trust_remote_code: bool) -> list[str]:
    """Choose the files to download: weights of the top folder and what describes them."""
    top = [file for file in files if PurePosixPath(file).name == file]
    if checks.CONFIG not in top:
        raise LoadError(
            f"the hub model {name} has no {checks.CONFIG}; choose one in transformers' format."
        )
    weights = [file for file in top if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", file)]
    if not weights:
        pickled = next((file for file in top if file.endswith(checks.PICKLED)), None)
        raise LoadError(
            f"the hub model {name} has no safetensors weights"
            + (f", only pickled ones ({pickled})" if pickled else "")
            + "; choose a model or revision that has model.safetensors."
        )
    if checks.WEIGHTS in weights:
        weights = [checks.WEIGHTS]
    suffixes = (*_SIDE_FILES, ".py") if trust_remote_code else _SIDE_FILES
    return [file for file in top if file.endswith(suffixes)] + weights
