"""Checkpoints of the Hugging Face hub: safetensors only, errors in one sentence."""

import json
import logging
import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

logger = logging.getLogger(__name__)

NAME = re.compile(r"(?P<repo>[A-Za-z0-9_][\w.-]*/[\w.-]+)(@(?P<revision>\S+))?")
FILES = {"allow_patterns": ["*.json", "*.txt", "*.safetensors"], "ignore_patterns": ["*/*"]}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # what from_pretrained looks for
PICKLED = re.compile(r"pytorch_model.*\.bin|.+\.(ckpt|pth?|pkl)")
JSON_FILES = {
    "config.json", "preprocessor_config.json", "processor_config.json", WEIGHTS[1],
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
}  # fmt: skip
CONVERTER = "SFconvertbot"  # the hub's account that offers safetensors to old repositories
REVISIONS_TRIED = 8  # other revisions that are looked at where one has no safetensors
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
CONVERT = (
    "convert them at https://huggingface.co/spaces/safetensors/convert, or load them with "
    "transformers elsewhere and save the model by save_pretrained, which writes safetensors"
)


def fetch_checkpoint(name: str) -> Path:
    """Fetch a checkpoint: `fetch_checkpoint("dandelin/vilt-b32-mlm@refs/pr/4")` is its folder.

    name: `owner/repo`, or `owner/repo@revision` with a branch, a commit or a pull request.
    The .json, .txt and .safetensors files come into the Hugging Face cache, and no other: neither
    pickled weights nor code. Where the hub is out of reach, a whole snapshot in the cache serves.
    Raises OSError in one sentence, FileNotFoundError where something does not exist.
    """
    repo, revision = split_name(name)
    fetch = partial(snapshot_download, repo, revision=revision, **FILES)
    try:
        folder = Path(fetch())
    except Exception as error:  # of the hub, the network, the disk or the cache
        if isinstance(error, RevisionNotFoundError):
            raise FileNotFoundError(f"{repo} has no revision {revision!r} on the hub.") from None
        try:
            folder = Path(fetch(local_files_only=True))
        except Exception:
            raise explain_failure(error, repo, revision) from None
        logger.info("%s at %s comes from the cache: %s", repo, revision, shorten(error))
    if not holds_weights(list_names(folder)):
        raise FileNotFoundError(explain_no_safetensors(repo, revision))
    return folder


def split_name(name: str) -> tuple[str, str]:
    """Repository and revision ("main" if none is given) of a hub name; else FileNotFoundError."""
    if not is_hub_name(name):
        raise FileNotFoundError(
            f"{name!r} is no hub name: expected owner/repo or owner/repo@revision."
        )
    match = NAME.fullmatch(name)
    return match["repo"], match["revision"] or "main"


def is_hub_name(name: str) -> bool:
    """Whether a name has the form `owner/repo` or `owner/repo@revision`."""
    match = NAME.fullmatch(name)
    return match is not None and not re.search(r"--|\.\.|[.-](/|$)|/[.-]", match["repo"])


def explain_failure(error: Exception, repo: str, revision: str) -> OSError:
    """The OSError that says in one sentence why nothing could be fetched, and what to do."""
    if not isinstance(error, HTTPError) and error.__cause__:
        error = error.__cause__  # what kept huggingface_hub from asking, before it tried the cache
    status = getattr(getattr(error, "response", None), "status_code", None)
    hub = f"the hub at {constants.ENDPOINT}"
    lack = f"{repo} at {revision!r} is not, or not wholly, in the cache {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return OSError(f"{lack}, and HF_HUB_OFFLINE=1 forbids fetching it: unset that once.")
    if isinstance(error, GatedRepoError) or status == 403:
        page = f"{constants.ENDPOINT}/{repo}"
        return PermissionError(f"{hub} gives no access to {repo}: ask at {page}, then {LOGIN}.")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return FileNotFoundError(
            f"{hub} knows no model {repo}: check the name; if it is private, {LOGIN}."
        )
    if status == 401:
        return PermissionError(f"{hub} refuses your login for {repo}: {LOGIN}, anew.")
    if status is not None:
        return OSError(f"{hub} answered with status {status} when asked for {repo}, and {lack}.")
    if isinstance(error, HTTPError):
        return ConnectionError(f"the connection to {hub} failed ({shorten(error)}), and {lack}.")
    return OSError(f"{repo} cannot be fetched from {hub} ({shorten(error)}), and {lack}.")


def explain_no_safetensors(repo: str, revision: str) -> str:
    """One sentence that says where else a repository has safetensors, or how to make them."""
    lack = f"{repo} has no safetensors weights at {revision!r}; pickled weights are never loaded"
    other, by_stranger = find_revision(repo, revision)
    if other is None:
        return f"{lack}: {CONVERT}."
    note = " (not made by the hub's own converter: see whose it is)" if by_stranger else ""
    checkpoint = repo if other == "main" else f"{repo}@{other}"
    return f"{lack}, but {other} has them{note}: use checkpoint={checkpoint!r}."


def find_revision(repo: str, revision: str) -> tuple[str | None, bool]:
    """Another revision with safetensors (None: none known), and whether a stranger offers it.

    Branches come first, then pull requests of the hub's converter, then those of others.
    """
    hub = HfApi()
    try:
        pulls = hub.get_repo_discussions(repo, author=CONVERTER, discussion_type="pull_request")
        converted = [f"refs/pr/{pull.num}" for pull in pulls if pull.author == CONVERTER]
        refs = hub.list_repo_refs(repo, include_pull_requests=True)
        others = [pull.ref for pull in refs.pull_requests or [] if pull.ref not in converted]
        for name in [*(branch.name for branch in refs.branches), *converted, *others][
            :REVISIONS_TRIED
        ]:
            if name != revision and holds_weights(hub.list_repo_files(repo, revision=name)):
                return name, name in others
    except Exception as error:  # it is a hint: what matters was said before it
        logger.info("no other revision of %s is known: %s", repo, shorten(error))
    return None, False


def check_folder(folder: Path) -> None:
    """Check that a checkpoint can be read; else OSError in one sentence that names the file."""
    files = list_names(folder)
    if not holds_weights(files):
        pickled = sorted(name for name in files if PICKLED.fullmatch(name))
        why = "save the model there first"
        if pickled:
            why = f"its {pickled[0]} is pickled and never loaded here: {CONVERT}"
        raise FileNotFoundError(f"{folder} holds neither {WEIGHTS[0]} nor {WEIGHTS[1]}; {why}.")
    if "config.json" not in files:
        raise FileNotFoundError(f"{folder} holds no config.json, which describes the model.")
    content = {name: read_json(folder / name) for name in sorted(files & JSON_FILES)}
    parts = {WEIGHTS[0]}
    if WEIGHTS[0] not in files:
        parts = set(content[WEIGHTS[1]].get("weight_map", {}).values())
    if absent := sorted(parts - files):
        raise FileNotFoundError(f"{folder} lacks {absent[0]}, a part of the weights.")
    if (kind := content["config.json"].get("model_type", "vilt")) != "vilt":
        raise OSError(f"{folder / 'config.json'} describes a model of type {kind!r}, not a ViLT.")


def list_names(folder: Path) -> set[str]:
    """Names of the files in a folder, without links that point nowhere."""
    return {path.name for path in folder.iterdir() if path.exists()}


def holds_weights(files: Collection[str]) -> bool:
    """Whether a list of file names holds safetensors weights, whole or as an index of parts."""
    return any(name in files for name in WEIGHTS)


def read_json(path: Path) -> dict:
    """The JSON object in a file; OSError in one sentence where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON, or no text
        raise OSError(f"{path} is no valid JSON file ({shorten(error)}).") from None
    if not isinstance(content, dict):
        raise OSError(f"{path} is no valid file of a model: it holds no JSON object.")
    return content


def shorten(error: Exception) -> str:
    """What an error says, in one line: its first, and the next where that ends in a colon."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"KeyError: {text}" if isinstance(error, KeyError) else text or type(error).__name__
