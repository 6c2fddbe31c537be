"""ViLT and its processor, from a folder or the hub; a physically smaller one without some heads.

    lighter = prune_model(model, heads=[(0, 3), (2, 1)], layers=[3])
    lighter.save_pretrained(folder)         # its shape stands in config.json
    lighter, processor = load_vilt(folder)  # in any later process

Before any further training a pruned model answers as under `heads.ablate_heads` in mode "zero".
`attention_split` wants as many heads in every layer, and `extract_attention` a model of which only
whole layers were left out.
"""

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn
from transformers import AutoTokenizer, ViltConfig, ViltForQuestionAnswering, ViltProcessor
from transformers.models.vilt import image_processing_pil_vilt as vilt_images
from transformers.utils import logging as hf_logging

from helpers.run.cache import fingerprint, hash_file, read_json, require
from helpers.run.settings import Study

logger = logging.getLogger(__name__)

FRESH = {  # ViltConfig's own defaults are ViLT-B/32
    "fresh-small": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 256, "hidden_act": "relu", "initializer_range": 0.15,
        "image_size": 64, "patch_size": 16, "vocab_size": 0,
    },
    "fresh-b32": {},
}  # fmt: skip
# its tokenizer, which knows the phantom's words alone, stands in for a missing one
PHANTOM_FOLDER = Path(__file__).parents[2] / "data" / "phantom-vilt"

NAME = re.compile(r"(?P<repo>[A-Za-z0-9_][\w.-]*/[\w.-]+)(@(?P<revision>\S+))?")
FILES = {"allow_patterns": ["*.json", "*.txt", "*.safetensors"], "ignore_patterns": ["*/*"]}
INDEX = "model.safetensors.index.json"  # of weights in parts
WEIGHTS = {"model.safetensors", INDEX}  # what from_pretrained looks for
PICKLED = re.compile(r"pytorch_model.*\.bin|.+\.(ckpt|pth?|pkl)")
JSON_FILES = {
    "config.json", "preprocessor_config.json", "processor_config.json", INDEX,
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
}  # fmt: skip
PARTS = ("query", "key", "value")  # projections that heads are cut out of
CONVERTER = "SFconvertbot"  # the hub's account that offers safetensors to old repositories
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
CONVERT = (
    "convert them at https://huggingface.co/spaces/safetensors/convert, or load them with "
    "transformers elsewhere and save the model by save_pretrained, which writes safetensors"
)


class LighterViltForQuestionAnswering(ViltForQuestionAnswering):
    """ViLT whose layers may have fewer heads than config.num_attention_heads.

    config.kept_heads, config.kept_layers: each layer's heads, and the layers, by their numbers in
    the model that was first pruned. `load_vilt` takes this class where a config has kept_heads.
    """

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        for layer, kept in zip(self.vilt.encoder.layer, config.kept_heads, strict=True):
            inner = layer.attention.attention
            width = len(kept) * inner.attention_head_size
            inner.num_attention_heads, inner.all_head_size = len(kept), width
            for part in PARTS:
                setattr(inner, part, nn.Linear(config.hidden_size, width, bias=config.qkv_bias))
            layer.attention.output.dense = nn.Linear(width, config.hidden_size)


def load_vilt(
    checkpoint: str | Path, device: str = "cpu", answers: Sequence[str] | None = None, seed: int = 0
) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """Load a ViLT that answers questions, in eval mode, and its processor.

    model, processor = load_vilt("dandelin/vilt-b32-finetuned-vqa", device="cuda")

    checkpoint: a folder, a hub name (`owner/repo` or `owner/repo@revision`), or "fresh-small" or
    "fresh-b32" (random weights drawn from `seed`). answers: the labels of a *new* head drawn from
    `seed`; None keeps the checkpoint's own head.
    Weights come from safetensors only, and no code of the checkpoint is run. Pictures go through
    PIL even where torchvision is installed. The caller's random state is untouched.
    `model.tokenizer` names the tokens of attention maps.
    Raises OSError or ValueError, in one sentence, when something is missing.
    """
    head = {} if answers is None else name_answers(answers)
    with quiet_transformers(), draw_from(seed):
        if str(checkpoint) in FRESH:
            model, processor = build_fresh(str(checkpoint), head)
        else:
            source = find_checkpoint(checkpoint)
            try:
                model = read_model(source, head)
                processor = read_processor(source, model.config)
            except Exception as error:  # transformers, tokenizers and safetensors raise all kinds
                if isinstance(error, ValueError) and str(source) in str(error):
                    raise  # one of the two readers' own errors
                raise OSError(f"ViLT cannot be loaded from {source}: {shorten(error)}") from None
    if answers is not None:
        reset_head(model, seed)
    model.tokenizer = tokenizer = processor.tokenizer
    longest = model.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    return model.to(device).eval(), processor


@contextmanager
def draw_from(seed: int) -> Iterator[None]:
    """Draw random numbers on the CPU from a seed; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA as well
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers and the hub from printing warnings and bars while the block runs."""
    loggers = (hf_logging, hub_logging)
    levels, bar = [each.get_verbosity() for each in loggers], hf_logging.is_progress_bar_enabled()
    for each in loggers:
        each.set_verbosity(hf_logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.set_verbosity(level)
        if bar:
            hf_logging.enable_progress_bar()


def name_answers(answers: Sequence[str]) -> dict:
    """The configuration's id2label and label2id; ValueError if there is no answer or one twice."""
    labels = list(map(str, answers))
    if not labels:
        raise ValueError("answers is empty: a head needs at least one answer.")
    label2id = {label: number for number, label in enumerate(labels)}
    if twice := [label for number, label in enumerate(labels) if label2id[label] != number]:
        raise ValueError(f"answers names {twice[0]!r} more than once.")
    return {"id2label": dict(enumerate(labels)), "label2id": label2id}


def list_answers(model: nn.Module) -> list[str]:
    """The model's answers in the order of its logits."""
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


def reset_head(model: ViltForQuestionAnswering, seed: int) -> None:
    """Draw the answer head anew: the same one for a seed, whatever the checkpoint held."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.classifier:
        if isinstance(module, nn.Linear):
            std = model.config.initializer_range
            nn.init.normal_(module.weight, std=std, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def build_fresh(name: str, head: dict) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """A ViLT with random weights from the global generator."""
    tokenizer = AutoTokenizer.from_pretrained(PHANTOM_FOLDER)
    config = ViltConfig(**FRESH[name], **head)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    config._attn_implementation = "eager"
    model = draw_weights(ViltForQuestionAnswering, config)
    return model, ViltProcessor(build_image_processor(config), tokenizer)


def draw_weights(kind: type[nn.Module], config: ViltConfig) -> nn.Module:
    """A model of random weights, also of CLS tokens and patch positions, which trained ViLTs have.

    transformers leaves these two at zero.
    """
    model = kind(config)
    embeddings = model.vilt.embeddings
    for parameter in (embeddings.cls_token, embeddings.position_embeddings):
        nn.init.normal_(parameter, std=config.initializer_range)
    return model


def random_weight_model(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with random weights from `seed`: a model that has learnt nothing."""
    with draw_from(seed):
        random = draw_weights(type(model), copy.deepcopy(model.config))
    random.tokenizer = model.tokenizer
    return random.to(model.device).eval()


def find_checkpoint(checkpoint: str | Path) -> Path:
    """The checkpoint's folder, downloaded if it is a hub name; OSError if it is incomplete."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        name = split_name(str(checkpoint))
        # "data/model" has the form of a hub name, but its typo is no request to the hub
        if name is None or Path(folder.parts[0]).is_dir():
            raise FileNotFoundError(f"there is no folder {checkpoint} to load ViLT from.")
        folder = fetch_checkpoint(*name)
    check_folder(folder)
    return folder


def model_folder(study: Study, number: int = 0) -> Path:
    """Where a model that the study analyses is; FileNotFoundError where it is missing."""
    if not study.models:
        return require(study.folder() / "model", made_by="02_finetune")
    return find_checkpoint(study.path(study.models[number]))


def hash_model(study: Study, number: int = 0) -> str:
    """What changes with the weights of a model that the study analyses, for a step's `inputs`."""
    files = sorted(model_folder(study, number).glob("*.safetensors"))
    return fingerprint([hash_file(file) for file in files])


def split_name(name: str) -> tuple[str, str] | None:
    """Repository and revision of `owner/repo` or `owner/repo@revision`; None for another name."""
    match = NAME.fullmatch(name)
    if match is None or re.search(r"--|\.\.|[.-](/|$)|/[.-]", match["repo"]):
        return None
    return match["repo"], match["revision"] or "main"


def fetch_checkpoint(repo: str, revision: str) -> Path:
    """Fetch a checkpoint: `fetch_checkpoint("dandelin/vilt-b32-mlm", "refs/pr/4")` is its folder.

    revision: a branch, a commit or a pull request. Only .json, .txt and .safetensors files come
    into the Hugging Face cache. Where the hub is out of reach, a whole snapshot there serves; where
    main has no safetensors, the pull request of the hub's own converter does.
    Raises OSError in one sentence, FileNotFoundError where something does not exist.
    """
    try:
        folder = Path(snapshot_download(repo, revision=revision, **FILES))
    except Exception as error:  # of the hub, the network, the disk or the cache
        raise explain_failure(error, repo, revision) from None
    if WEIGHTS & list_names(folder):
        return folder
    if revision == "main" and (converted := find_converted(repo)):
        return fetch_checkpoint(repo, converted)
    lack = f"{repo} has no safetensors weights at {revision!r}; pickled weights are never loaded"
    raise FileNotFoundError(f"{lack}: name a revision that has them, or {CONVERT}.")


def explain_failure(error: Exception, repo: str, revision: str) -> OSError:
    """The OSError that says in one sentence why nothing could be fetched, and what to do."""
    if not isinstance(error, errors.HTTPError) and error.__cause__:
        error = error.__cause__  # what kept huggingface_hub from asking, before it tried the cache
    status = getattr(getattr(error, "response", None), "status_code", None)
    page, kind = f"{constants.ENDPOINT}/{repo}", OSError
    lack = f"not, or not wholly, in the cache {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        problem = f"is {lack}, and HF_HUB_OFFLINE=1 forbids fetching it: unset that once"
    elif isinstance(error, errors.RevisionNotFoundError):
        kind, problem = FileNotFoundError, f"is no revision that {page} has"
    elif type(error) is errors.RepositoryNotFoundError or status == 404:
        advice = f"check the name; if it is private, {LOGIN}"
        kind, problem = FileNotFoundError, f"is not known at {page}: {advice}"
    elif status in (401, 403):
        kind, problem = PermissionError, f"is closed to you: ask at {page}, then {LOGIN}, anew"
    else:
        problem = f"cannot be fetched from {page} ({shorten(error)}), and is {lack}"
    return kind(f"{repo} at {revision!r} {problem}.")


def find_converted(repo: str) -> str | None:
    """The pull request in which the hub's own converter offers safetensors; None: none known."""
    hub = HfApi()
    with suppress(Exception):  # without the hub's answer none is known
        pulls = hub.get_repo_discussions(repo, author=CONVERTER, discussion_type="pull_request")
        for name in [f"refs/pr/{pull.num}" for pull in pulls if pull.author == CONVERTER]:
            if WEIGHTS.intersection(hub.list_repo_files(repo, revision=name)):
                return name
    return None


def check_folder(folder: Path) -> None:
    """Check that a checkpoint can be read; else OSError in one sentence that names the file."""
    files = list_names(folder)
    if not WEIGHTS & files:
        why = "save the model there first"
        if pickled := sorted(filter(PICKLED.fullmatch, files)):
            why = f"its {pickled[0]} is pickled and never loaded here: {CONVERT}"
        raise FileNotFoundError(f"{folder} holds neither model.safetensors nor {INDEX}; {why}.")
    if "config.json" not in files:
        raise FileNotFoundError(f"{folder} holds no config.json, which describes the model.")
    content = {name: read_json(folder / name) for name in sorted(files & JSON_FILES)}
    if broken := [name for name, found in content.items() if found is None]:
        raise OSError(f"{folder / broken[0]} is no valid JSON file of a model: fetch it anew.")
    if (kind := content["config.json"].get("model_type", "vilt")) != "vilt":
        raise OSError(f"{folder / 'config.json'} describes a model of type {kind!r}, not a ViLT.")


def list_names(folder: Path) -> set[str]:
    """Names of the files in a folder, without links that point nowhere."""
    return {path.name for path in folder.iterdir() if path.exists()}


def shorten(error: Exception) -> str:
    """What an error says, in one line: its first, and the next where that ends in a colon."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"KeyError: {text}" if isinstance(error, KeyError) else text or type(error).__name__


def read_model(source: Path, head: dict) -> ViltForQuestionAnswering:
    """The model of a folder, with a new head for the answers of `head`; pruned if saved so."""
    config, model_class = ViltConfig.from_pretrained(source), ViltForQuestionAnswering
    if hasattr(config, "kept_heads"):
        model_class = LighterViltForQuestionAnswering
    model, info = model_class.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, attn_implementation="eager",
        dtype=torch.float64 if config.dtype == torch.float64 else torch.float32,  # no less
        output_loading_info=True, ignore_mismatched_sizes=True, **head,
    )  # fmt: skip
    new = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    broken = sorted(key for key in new if not key.startswith("classifier."))
    if broken:
        lack = f"{len(broken)} weights lack or misfit, as {broken[0]}"
        raise ValueError(f"{source} is no whole ViLT: {lack}.")
    if new and not head:
        raise ValueError(f"{source} has no answer head: pass answers=[...] to give it a new one.")
    return model


def read_processor(source: Path, config: ViltConfig) -> ViltProcessor:
    """The processor of a folder; a stand-in that fits `config` for a part that is missing."""
    files = list_names(source)
    if files & {"preprocessor_config.json", "processor_config.json"}:
        image_processor = vilt_images.ViltImageProcessorPil.from_pretrained(source)
    else:
        image_processor = build_image_processor(config)
    # without these files transformers silently makes a tokenizer that knows no word
    if files & {"tokenizer.json", "vocab.txt"}:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    else:
        logger.warning("%s has no tokenizer: a stand-in reads the questions.", source)
        tokenizer = AutoTokenizer.from_pretrained(PHANTOM_FOLDER)
    if (size := len(tokenizer)) > config.vocab_size:
        raise ValueError(f"{source}: tokenizer of {size} words, model of {config.vocab_size}.")
    return ViltProcessor(image_processor, tokenizer)


def build_image_processor(config: ViltConfig) -> vilt_images.ViltImageProcessorPil:
    """ViLT's own rule at the model's size: resize the shorter side, then both to whole patches."""
    sizes = {"size": {"shortest_edge": config.image_size}, "size_divisor": config.patch_size}
    return vilt_images.ViltImageProcessorPil(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def prune_model(
    model: nn.Module, heads: Sequence[tuple[int, int]] = (), layers: Sequence[int] = ()
) -> LighterViltForQuestionAnswering:
    """A copy of a model without these heads (layer, head) and without these whole layers.

    Numbers count in `model` as it is, even if it has been pruned before (`name_original` gives the
    first names). ValueError if something is removed twice or does not exist, or if nothing would be
    left of a layer or of the model.
    """
    kept = choose_kept(model, heads, layers)
    names = name_original(model)
    config = copy.deepcopy(model.config)
    config.kept_heads = [[names[layer][1][head] for head in own] for layer, own in kept.items()]
    config.kept_layers = [names[layer][0] for layer in kept]
    config.num_hidden_layers = len(kept)
    with torch.random.fork_rng(devices=[]):  # weights are drawn only to be replaced
        lighter = LighterViltForQuestionAnswering(config)
    lighter.load_state_dict(slice_weights(model, kept))
    if hasattr(model, "tokenizer"):
        lighter.tokenizer = model.tokenizer
    return lighter.to(model.device, model.dtype).train(model.training)


def name_original(model: nn.Module) -> list[tuple[int, list[int]]]:
    """Each layer's number and those of its heads, as they were before any pruning."""
    layers = model.vilt.encoder.layer
    whole = [[*range(layer.attention.attention.num_attention_heads)] for layer in layers]
    numbers = getattr(model.config, "kept_layers", None) or [*range(len(layers))]
    return list(zip(numbers, getattr(model.config, "kept_heads", None) or whole, strict=True))


def choose_kept(
    model: nn.Module, heads: Sequence[tuple[int, int]], layers: Sequence[int]
) -> dict[int, list[int]]:
    """The heads that stay, by layer, for `prune_model`; its errors are raised here."""
    counts = {layer: len(own) for layer, (_, own) in enumerate(name_original(model))}
    whole = [(layer, head) for layer in layers for head in range(counts.get(layer, 1))]
    gone = [*map(tuple, heads), *whole]
    for layer, head in gone:
        name = f"L{layer}H{head}"
        if head not in range(counts.get(layer, 0)):
            has = f"this model has {[*counts.values()]} heads in its layers"
            raise ValueError(f"{name} cannot be removed: {has}.")
        if gone.count((layer, head)) > 1:
            raise ValueError(f"{name} is removed twice (a layer has its heads): name it once.")
    kept = {
        layer: [head for head in range(count) if (layer, head) not in gone]
        for layer, count in counts.items()
        if layer not in layers
    }
    if not kept:
        raise ValueError(f"all {len(counts)} layers are removed: keep one at least.")
    if empty := [f"L{layer}" for layer, own in kept.items() if not own]:
        raise ValueError(f"nothing is left of {empty[0]}'s heads: keep one, or remove the layer.")
    return kept


def slice_weights(model: nn.Module, kept: dict[int, list[int]]) -> dict[str, Tensor]:
    """The weights of these heads of these layers, under their names in the pruned model."""
    prefix, weights = "vilt.encoder.layer.", model.state_dict()
    weights = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    for new, (old, heads) in enumerate(kept.items()):
        layer = model.vilt.encoder.layer[old]
        size = layer.attention.attention.attention_head_size
        rows = [head * size + row for head in heads for row in range(size)]
        for name, weight in layer.state_dict().items():
            if name.startswith(tuple(f"attention.attention.{part}." for part in PARTS)):
                weight = weight[rows]
            elif name == "attention.output.dense.weight":
                weight = weight[:, rows]
            weights[f"{prefix}{new}.{name}"] = weight
    return weights
