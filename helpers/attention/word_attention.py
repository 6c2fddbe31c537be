"""Which words of a question look at the image, and which are read: attention by class of words.

word_measures(model, batch)["word_image"][0, 2]  # first question, third layer: (head, CLASSES)
"""

import torch
from torch import Tensor, nn

from helpers.attention.extract import AttentionTable, extract_once
from helpers.attention.image_share import IMAGE, prepare_batch, query_weights
from helpers.attention.word_classes import CLASSES, LEXICON, mark_classes
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import Microbatch, PackedForward
from helpers.run.cache import hash_file
from helpers.run.settings import Study

READERS = ("cls", "patches")  # of `word_read`
READER_INDEX = [0, 4]  # READERS among KEY_GROUPS
WORD_MEASURES = {  # of `word_measures`; name: type, axes after the question
    "word_image": ("float32", ("layer", "head", len(CLASSES))),
    "word_read": ("float32", ("layer", "head", len(READERS), len(CLASSES))),
    "word_place": ("float32", (len(CLASSES),)),
}


@torch.no_grad()
def word_measures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention from and to the words of each class; a measure for `extract_attention`.

    word_image (question, layer, head, CLASSES): mean over the class's word pieces, as queries, of
        the mass on the image (its CLS and patches).
    word_read (question, layer, head, READERS, CLASSES): mean over the class's word pieces, as keys,
        of the mass that a reader (text [CLS]; mean over patches) puts on one.
    word_place (question, CLASSES): mean position of the class's word pieces; the first is 1.
    logits (question, answer).
    NaN where a question has no word of the class. ValueError without `model.tokenizer`.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "word classes need model.tokenizer: load the model with load_vilt, or set it."
        )
    inputs, groups, _ = prepare_batch(model, batch, with_grids=False)
    members = mark_classes(tokenizer, inputs["input_ids"], inputs["attention_mask"])
    members = members.to(groups.device)
    forward, layers = PackedForward(model, inputs, groups), []
    for layer in forward:
        found = [read_classes(part, attention, members) for part, attention in layer]
        layers.append([torch.cat(parts) for parts in zip(*found, strict=True)])
    image, read = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
    positions = torch.arange(members.shape[2], device=members.device, dtype=torch.float32)
    place = query_weights(members) @ positions
    return {"word_image": image, "word_read": read, "word_place": place, "logits": forward.logits}


def read_classes(
    microbatch: Microbatch, attention: Tensor, members: Tensor
) -> tuple[Tensor, Tensor]:
    """word_image and word_read of one layer; attention: (question, head, query, key)."""
    n_text, groups = microbatch.n_text, microbatch.groups
    # (question, 1, class, text) and (question, 1, reader, token)
    weights = query_weights(members[microbatch.questions, :, :n_text])[:, None]
    readers = query_weights(groups[:, READER_INDEX])[:, None]
    image = groups[:, IMAGE].any(1).float()[:, None, :, None]
    word_image = weights @ (attention[:, :, :n_text] @ image)
    return word_image[..., 0], readers @ attention[..., :n_text] @ weights.mT


def measure_words(
    study: Study, model: nn.Module, encoded: EncodedQuestions, name: str = "words", **inputs: object
) -> AttentionTable:
    """`word_measures` of every question, in the model's own precision; once, in run_dir/<name>.

    inputs: what else tells this model and these questions from the study's own, such as the seed of
    random weights.
    """
    known = {"lexicon": hash_file(LEXICON), **inputs}
    return extract_once(study, name, model, encoded, word_measures, WORD_MEASURES, **known)
