"""Load a ViLT that answers questions, and the processor that feeds it."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import nn
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltProcessor,
)
from transformers.models.vilt import image_processing_pil_vilt as vilt_images
from transformers.utils import logging as hf_logging

from helpers.model.hub import check_folder, fetch_checkpoint, is_hub_name, shorten
from helpers.model.prune import LighterViltForQuestionAnswering

logger = logging.getLogger(__name__)

FRESH = {  # ViltConfig's own defaults are ViLT-B/32
    "fresh-small": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 256, "hidden_act": "relu", "initializer_range": 0.15,
        "image_size": 64, "patch_size": 16,
    },
    "fresh-b32": {},
}  # fmt: skip
PHANTOM_FOLDER = Path(__file__).parents[2] / "data" / "phantom-vilt"


def load_vilt(
    checkpoint: str | Path, device: str = "cpu", answers: Sequence[str] | None = None, seed: int = 0
) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """Load a ViLT that answers questions, in eval mode, and its processor.

    model, processor = load_vilt("dandelin/vilt-b32-finetuned-vqa", device="cuda")

    checkpoint: a folder, a hub name (`owner/repo` or `owner/repo@revision`), or "fresh-small" or
    "fresh-b32" (random weights drawn from `seed`). answers: the labels of a *new* head drawn from
    `seed`; None keeps the checkpoint's own head.
    Weights come from safetensors only, and no code of the checkpoint is run. Pictures go through
    PIL even where torchvision is installed, so that results do not depend on it. The caller's
    random state is untouched. `model.tokenizer` is kept, to name the tokens of attention maps.
    Raises OSError or ValueError, in one sentence, when something is missing.
    """
    head = {} if answers is None else name_answers(answers)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA as well
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
    labels = [str(answer) for answer in answers]
    if not labels:
        raise ValueError("answers is empty: a head needs at least one answer.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"answers names {twice!r} more than once.")
    label2id = {label: index for index, label in enumerate(labels)}
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
    """A ViLT with random weights from the global generator, patch positions included."""
    tokenizer = load_stand_in_tokenizer()
    config = ViltConfig(**FRESH[name], **head)
    smallest = 0 if name == "fresh-small" else config.vocab_size
    config.vocab_size = max(smallest, len(tokenizer))
    config._attn_implementation = "eager"
    model = ViltForQuestionAnswering(config)
    embeddings = model.vilt.embeddings  # transformers leaves these two at zero
    for parameter in (embeddings.cls_token, embeddings.position_embeddings):
        nn.init.normal_(parameter, std=config.initializer_range)
    return model, ViltProcessor(build_image_processor(config), tokenizer)


def find_checkpoint(checkpoint: str | Path) -> Path:
    """The checkpoint's folder, downloaded if it is a hub name; OSError if it is incomplete."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        # "data/model" has the form of a hub name, but its typo is no request to the hub
        if not is_hub_name(str(checkpoint)) or Path(folder.parts[0]).is_dir():
            raise FileNotFoundError(f"there is no folder {checkpoint} to load ViLT from.")
        folder = fetch_checkpoint(str(checkpoint))
    check_folder(folder)
    return folder


def read_model(source: Path, head: dict) -> ViltForQuestionAnswering:
    """The model of a folder, with a new head for the answers of `head`; pruned if saved so."""
    config = ViltConfig.from_pretrained(source)
    pruned = hasattr(config, "kept_heads")
    model_class = LighterViltForQuestionAnswering if pruned else ViltForQuestionAnswering
    model, info = model_class.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, attn_implementation="eager",
        dtype=torch.float64 if config.dtype == torch.float64 else torch.float32,  # no less
        output_loading_info=True, ignore_mismatched_sizes=True, **head,
    )  # fmt: skip
    new = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    broken = sorted(key for key in new if not key.startswith("classifier."))
    if broken:
        raise ValueError(
            f"{source} is no whole ViLT: {len(broken)} weights lack or misfit, as {broken[0]}."
        )
    if new and not head:
        raise ValueError(f"{source} has no answer head: pass answers=[...] to give it a new one.")
    return model


def read_processor(source: Path, config: ViltConfig) -> ViltProcessor:
    """The processor of a folder; a stand-in that fits `config` for a part that is missing."""
    files = {path.name for path in source.iterdir()}
    if files & {"preprocessor_config.json", "processor_config.json"}:
        image_processor = vilt_images.ViltImageProcessorPil.from_pretrained(source)
    else:
        image_processor = build_image_processor(config)
    # without these files transformers silently makes a tokenizer that knows no word
    if files & {"tokenizer.json", "vocab.txt"}:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    else:
        missing = "has no tokenizer.json or vocab.txt"
        logger.warning("%s %s: a stand-in reads the questions.", source, missing)
        tokenizer = load_stand_in_tokenizer()
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{source}: tokenizer of {len(tokenizer)} words, model of {config.vocab_size}."
        )
    return ViltProcessor(image_processor, tokenizer)


def build_image_processor(config: ViltConfig) -> vilt_images.ViltImageProcessorPil:
    """ViLT's own rule at the model's size: resize the shorter side, then both to whole patches."""
    return vilt_images.ViltImageProcessorPil(
        size={"shortest_edge": config.image_size},
        size_divisor=config.patch_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def load_stand_in_tokenizer() -> BertTokenizer:
    """The embedded model's tokenizer, which knows the phantom's words alone."""
    return AutoTokenizer.from_pretrained(PHANTOM_FOLDER)
