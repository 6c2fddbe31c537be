"""Checkpoints of the Hugging Face hub: fetched whole into its cache, safetensors alone, with plain errors."""

import json
import logging
import re
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

logger = logging.getLogger(__name__)

NAME = re.compile(r"(?P<repo>[A-Za-z0-9_][\w.-]*/[\w.-]+)(@(?P<revision>\S+))?")
FILES = {"allow_patterns": ["*.json", "*.txt", "*.safetensors"], "ignore_patterns": ["*/*"]}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # what from_pretrained looks for
PICKLED = re.compile(r"pytorch_model.*\.bin|.+\.(ckpt|pth?|pkl)")
JSON_FILES = {
    *(
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        WEIGHTS[1],
    ),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
}
CONVERTER = "SFconvertbot"  # the hub's account that offers safetensors to old repositories
TIMEOUT = (3.0, 10.0, 10.0, 10.0)  # seconds to connect, read, write, and wait for a free connection
REVISIONS_TRIED = 8  # other revisions that are looked at where one has no safetensors
CONVERT = (
    "convert them at https://huggingface.co/spaces/safetensors/convert, or load them with transformers in an "
    "environment of your own and save the model by save_pretrained, which writes safetensors"
)


def fetch_checkpoint(name: str) -> Path:
    """Fetch a checkpoint of the hub: `fetch_checkpoint("dandelin/vilt-b32-mlm@refs/pr/4")` is its folder.

    name: `owner/repo`, or `owner/repo@revision` with a branch, a commit or a pull request (`refs/pr/4`).
    The .json, .txt and .safetensors files come into the Hugging Face cache, and no other: neither pickled
    weights nor code. Where the hub is out of reach or HF_HUB_OFFLINE is set, a snapshot that is whole in the
    cache serves. Raises OSError in one sentence, FileNotFoundError where something does not exist.
    """
    repo, revision = split_name(name)
    try:
        if holds_weights(list_files(repo, revision)):
            logger.info("fetching %s at %s into %s", repo, revision, constants.HF_HUB_CACHE)
            return Path(snapshot_download(repo, revision=revision, **FILES))
    except Exception as error:  # of the hub, the network, the disk or the cache
        gone = isinstance(error, RevisionNotFoundError)
        folder = None if gone else find_cached(repo, revision)
        if folder is None:
            raise explain_failure(error, repo, revision) from None
        logger.info("%s at %s comes from the cache: %s", repo, revision, shorten(error))
        return folder
    raise FileNotFoundError(explain_no_safetensors(repo, revision))


def check_folder(folder: Path) -> None:
    """Check that a checkpoint's folder can be read; else OSError in one sentence that names folder or file."""
    files = {path.name for path in folder.iterdir() if path.exists()}
    if not holds_weights(files):
        raise FileNotFoundError(explain_folder(folder, files))
    if "config.json" not in files:
        raise FileNotFoundError(f"{folder} holds no config.json, which describes the model.")
    for name in sorted(files & JSON_FILES):
        read_json(folder / name)
    lost = sorted(list_parts(folder) - files)
    if lost:
        raise FileNotFoundError(
            f"{folder} lacks {lost[0]}, a part of the weights that {WEIGHTS[1]} names."
        )
    kind = read_json(folder / "config.json").get("model_type", "vilt")
    if kind != "vilt":
        raise OSError(f"{folder / 'config.json'} describes a model of type {kind!r}, not a ViLT.")


def explain_folder(folder: Path, files: set[str]) -> str:
    """One sentence on what a folder holds in place of weights that can be loaded, and how to mend it."""
    if any(name.endswith(".safetensors") for name in files):
        return f"{folder} holds .safetensors files, but neither {WEIGHTS[0]} nor {WEIGHTS[1]}."
    pickled = sorted(name for name in files if PICKLED.fullmatch(name))
    if pickled:
        why = f"{pickled[0]} is pickled and never loaded here: {CONVERT}"
        return f"{folder} holds no .safetensors weights, and its {why}."
    return f"{folder} holds no .safetensors weights: save the model there first."


def read_json(path: Path) -> dict:
    """Read a file that holds a JSON object; OSError in one sentence where it does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON, or no text
        raise OSError(f"{path} is no valid JSON file ({shorten(error)}).") from None
    if not isinstance(content, dict):
        raise OSError(f"{path} is no valid file of a model: it holds no JSON object.")
    return content


def list_parts(folder: Path) -> set[str]:
    """Names of the weights' files: one, or where that is absent those that the index of the parts names."""
    if (folder / WEIGHTS[0]).exists():
        return {WEIGHTS[0]}
    return set(read_json(folder / WEIGHTS[1]).get("weight_map", {}).values())


def is_hub_name(name: str) -> bool:
    """Whether a name has the form `owner/repo` or `owner/repo@revision`."""
    match = NAME.fullmatch(name)
    return match is not None and not re.search(r"--|\.\.|[.-](/|$)|/[.-]", match["repo"])


def split_name(name: str) -> tuple[str, str]:
    """Repository and revision ("main" where none is given) of a hub name; FileNotFoundError if it is none."""
    if not is_hub_name(name):
        raise FileNotFoundError(
            f"{name!r} is no hub name: expected owner/repo or owner/repo@revision."
        )
    match = NAME.fullmatch(name)
    return match["repo"], match["revision"] or "main"


def holds_weights(files: Collection[str]) -> bool:
    """Whether a list of file names holds safetensors weights, whole or as the index of several parts."""
    return any(name in files for name in WEIGHTS)


def list_files(repo: str, revision: str) -> set[str]:
    """Names of the files at a revision: one request, which is not repeated, so that it fails fast."""
    info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
    return {file.rfilename for file in info.siblings or []}


def find_cached(repo: str, revision: str) -> Path | None:
    """The snapshot in the cache, without a request, where nothing of it lacks; else None."""
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, **FILES))
        return folder if is_whole(folder) else None
    except (OSError, ValueError, KeyError):  # absent, or partial by the hub's list of files
        return None


def is_whole(folder: Path) -> bool:
    """Whether a cached snapshot holds all that a checkpoint needs; huggingface_hub knows only with its list.

    The list is absent where single files were fetched, or by an older version: then every part must be there.
    """
    files = {path.name for path in folder.iterdir() if path.exists()}  # a link may point nowhere
    needed = {"config.json"} | list_parts(folder)
    if not (folder.parents[1] / "trees" / f"{folder.name}.json").is_file():
        needed |= {"preprocessor_config.json", "tokenizer_config.json"}
        needed |= set() if "vocab.txt" in files else {"tokenizer.json"}
    return needed <= files


def explain_no_safetensors(repo: str, revision: str) -> str:
    """One sentence that says where else a repository has safetensors, or how to make them."""
    lack = f"{repo} has no safetensors weights at {revision!r}, and pickled weights are never loaded here"
    other, note = find_revision(repo, revision)
    if other is None:
        return f"{lack}: {CONVERT}."
    if other == "main":
        return f"{lack}; its main branch has them: use checkpoint={repo!r}"
    what = "pull request" if other.startswith("refs/pr/") else "branch"
    return f"{lack}; its {what} {other} has them{note}: use checkpoint={f'{repo}@{other}'!r}"


def find_revision(repo: str, revision: str) -> tuple[str | None, str]:
    """Another revision with safetensors among a few (None: none), and a note on who made it.

    Branches come first, then the pull requests of the hub's converter, then those of others, by number.
    """
    try:
        refs = HfApi().list_repo_refs(repo, include_pull_requests=True)
        converted = list_conversions(repo)
        pulls = sorted(
            (ref.ref for ref in refs.pull_requests or []), key=lambda ref: int(ref.split("/")[-1])
        )
        pulls.sort(
            key=lambda ref: ref not in (converted or ())
        )  # stable: still by number within each
        names = [
            name for name in [*(ref.name for ref in refs.branches), *pulls] if name != revision
        ]
        for name in names[:REVISIONS_TRIED]:
            if holds_weights(list_files(repo, name)):
                strange = name in pulls and converted is not None and name not in converted
                return (
                    name,
                    " (not made by the hub's own converter: see whose it is)" if strange else "",
                )
    except Exception as error:  # it is a hint: what matters was said before it
        logger.info("no other revision of %s is known: %s", repo, shorten(error))
    return None, ""


def list_conversions(repo: str) -> set[str] | None:
    """Refs of the pull requests that the hub's converter made; None where the hub does not say."""
    try:
        kind = "pull_request"
        made = HfApi().get_repo_discussions(repo, author=CONVERTER, discussion_type=kind)
        return {f"refs/pr/{pull.num}" for pull in made if pull.author == CONVERTER}
    except Exception as error:
        logger.info("the pull requests of %s are not known: %s", repo, shorten(error))
        return None


def explain_failure(error: Exception, repo: str, revision: str) -> OSError:
    """The error, of a fitting kind of OSError, that says in one sentence why nothing could be fetched."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    lack = f"{repo} at {revision!r} is not, or not wholly, in the cache {constants.HF_HUB_CACHE}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    hub = f"the hub at {constants.ENDPOINT}"
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo} has no revision {revision!r} on the hub.")
    if isinstance(error, GatedRepoError) or status == 403:
        page = f"{constants.ENDPOINT}/{repo}"
        return PermissionError(
            f"{hub} gives no access to {repo}: ask for it at {page}, then {login}."
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return FileNotFoundError(
            f"{hub} knows no model {repo}: check the name; if it is private, {login}."
        )
    if status == 401:
        return PermissionError(
            f"{hub} refuses the login with which {repo} was asked for: {login}, anew."
        )
    if isinstance(error, OfflineModeIsEnabled):
        return OSError(
            f"{lack}, and HF_HUB_OFFLINE=1 keeps it from being fetched: unset that for the first time."
        )
    if status is not None:
        return OSError(f"{hub} answered with status {status} when asked for {repo}, and {lack}.")
    if isinstance(error, HTTPError):
        return ConnectionError(
            f"the connection to {constants.ENDPOINT} failed ({shorten(error)}), and {lack}."
        )
    return OSError(
        f"{repo} cannot be fetched from {constants.ENDPOINT} ({shorten(error)}), and {lack}."
    )


def shorten(error: Exception) -> str:
    """What an error says, in one line: its first, with the next where that ends in a colon, or else its kind."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"KeyError: {text}" if isinstance(error, KeyError) else text or type(error).__name__
