"""ViLT: loading it, and a forward pass whose patches stay in raster order."""

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
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
        "hidden_act": "relu", "initializer_range": 0.15, "image_size": 64, "patch_size": 16,
    },
    "fresh-b32": {},
}  # fmt: skip
PHANTOM_FOLDER = Path(__file__).parents[2] / "data" / "phantom-vilt"


def load_vilt(
    checkpoint: str | Path, device: str = "cpu", answers: Sequence[str] | None = None, seed: int = 0
) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """Load a ViLT that answers questions, in eval mode, and the processor that feeds it.

    checkpoint: a folder, a hub name (`owner/repo`, or `owner/repo@revision`), or "fresh-small" / "fresh-b32"
    (random weights drawn from `seed`).
    answers: the labels of a *new* head drawn from `seed`; None keeps the checkpoint's own head.
    Weights come from safetensors only and no code from the checkpoint is run. Pictures go through PIL
    also where torchvision is installed, so that results do not depend on it. The caller's random state
    is untouched. `model.tokenizer` remembers the tokenizer, so that attention maps can name their tokens.
    Raises OSError or ValueError, in one sentence, when something is missing.
    """
    head = {} if answers is None else name_answers(answers)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            seed
        )  # not torch.manual_seed: that would seed CUDA as well
        if str(checkpoint) in FRESH:
            model, processor = build_fresh(str(checkpoint), head)
        else:
            source = find_checkpoint(checkpoint)
            try:
                model = read_model(source, head)
                processor = read_processor(source, model.config)
            except Exception as error:  # transformers, tokenizers and safetensors raise all kinds
                if isinstance(error, ValueError) and str(source) in str(error):
                    raise  # said by the two readers themselves
                raise OSError(f"ViLT cannot be loaded from {source}: {shorten(error)}") from None
    if answers is not None:
        draw_head(model, seed)
    longest = model.config.max_position_embeddings
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, longest)
    model.tokenizer = processor.tokenizer
    return model.to(device).eval(), processor


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers and the hub print neither warnings nor progress bars (for notebooks)."""
    levels = (
        hf_logging.get_verbosity(),
        hub_logging.get_verbosity(),
        hf_logging.is_progress_bar_enabled(),
    )
    hf_logging.set_verbosity(hf_logging.CRITICAL)
    hub_logging.set_verbosity(hub_logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if levels[2]:
            hf_logging.enable_progress_bar()


def name_answers(answers: Sequence[str]) -> dict:
    """config.id2label and config.label2id of a list of answers; ValueError if empty or ambiguous."""
    labels = [str(answer) for answer in answers]
    if not labels:
        raise ValueError("answers is empty: a head needs at least one answer.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"answers names {twice!r} more than once.")
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def list_answers(model: nn.Module) -> list[str]:
    """The model's answers in the order of its logits."""
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


def draw_head(model: ViltForQuestionAnswering, seed: int) -> None:
    """Draw the answer head anew: the same for a seed, whatever the checkpoint held."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.classifier:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=model.config.initializer_range, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()


def build_fresh(name: str, head: dict) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """An untrained ViLT from the global generator; patch positions are drawn, as in the original ViLT."""
    tokenizer = load_stand_in_tokenizer()
    config = ViltConfig(**FRESH[name], **head)
    config.vocab_size = (
        len(tokenizer) if name == "fresh-small" else max(config.vocab_size, len(tokenizer))
    )
    config._attn_implementation = "eager"
    model = ViltForQuestionAnswering(config)
    for parameter in (model.vilt.embeddings.cls_token, model.vilt.embeddings.position_embeddings):
        nn.init.normal_(
            parameter, std=config.initializer_range
        )  # transformers leaves these two at zero
    return model, ViltProcessor(build_image_processor(config), tokenizer)


def find_checkpoint(checkpoint: str | Path) -> Path:
    """The checkpoint's folder, fetched first where it is a hub name; OSError in one sentence if it is not whole."""
    folder = Path(checkpoint).expanduser()
    if (
        not folder.is_dir()
    ):  # "data/model" has the form of a hub name: its typo is no request to the hub
        if not is_hub_name(str(checkpoint)) or Path(folder.parts[0]).is_dir():
            raise FileNotFoundError(f"there is no folder {checkpoint} to load ViLT from.")
        folder = fetch_checkpoint(str(checkpoint))
    check_folder(folder)
    return folder


def read_model(source: Path, head: dict) -> ViltForQuestionAnswering:
    """Weights of a folder, with room for the head's answers where `head` names them; lighter where it was cut."""
    config = ViltConfig.from_pretrained(source)
    lighter = hasattr(config, "kept_heads")
    kind = LighterViltForQuestionAnswering if lighter else ViltForQuestionAnswering
    model, info = kind.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, attn_implementation="eager",
        dtype=torch.float64 if config.dtype == torch.float64 else torch.float32,  # no less than that
        output_loading_info=True, ignore_mismatched_sizes=True, **head,
    )  # fmt: skip
    drawn = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    broken = sorted(key for key in drawn if not key.startswith("classifier."))
    if broken:
        raise ValueError(
            f"{source} is no whole ViLT: {len(broken)} weights lack or misfit, as {broken[0]}."
        )
    if drawn and not head:
        raise ValueError(f"{source} has no answer head: pass answers=[...] to give it a new one.")
    return model


def read_processor(source: Path, config: ViltConfig) -> ViltProcessor:
    """Processor of a folder; where it lacks a part, a stand-in that fits `config`."""
    held = {path.name for path in source.iterdir()}
    if held & {"preprocessor_config.json", "processor_config.json"}:
        image_processor = vilt_images.ViltImageProcessorPil.from_pretrained(source)
    else:
        image_processor = build_image_processor(config)
    # without these files transformers makes a tokenizer that knows no word, and says nothing
    if held & {"tokenizer.json", "vocab.txt"}:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    else:
        logger.warning(
            "%s has no tokenizer.json or vocab.txt: a stand-in reads the questions.", source
        )
        tokenizer = load_stand_in_tokenizer()
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{source}: tokenizer of {len(tokenizer)} words, model of {config.vocab_size}."
        )
    return ViltProcessor(image_processor, tokenizer)


def build_image_processor(config: ViltConfig) -> vilt_images.ViltImageProcessorPil:
    """ViLT's own picture rule at the model's size: shorter side first, then both to whole patches."""
    size, divisor, half = {"shortest_edge": config.image_size}, config.patch_size, [0.5] * 3
    return vilt_images.ViltImageProcessorPil(
        size=size, size_divisor=divisor, image_mean=half, image_std=half
    )


def load_stand_in_tokenizer() -> BertTokenizer:
    """The embedded model's tokenizer, or where that is absent one that spells words letter by letter."""
    if (PHANTOM_FOLDER / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(PHANTOM_FOLDER)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters),
        *"?!.,'-",
    ]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})
