"""Models trained under a constraint: where words and image meet, which head a family needs.

model = train(model, encoded, blocked=fuse_in_layer(model, 1), epochs=2)
model = train(model, shuffle_answers(encoded, seed=0), epochs=2)
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from helpers.attention.edges import number_edges
from helpers.attention.image_share import pack_forward
from helpers.data.encode import EncodedQuestions
from helpers.heads.removal import ablate_heads
from helpers.model.finetune import BucketSampler
from helpers.model.forward import PackedForward
from phantom.planted.edits import Head

Blocked = dict[int, Tensor]  # layer: see PackedForward.blocked
ROUTE = ("what color", (2, 0))  # a family and the head that its answers come through
CROSS = (("text", "image"), ("image", "text"))


def fuse_in_layer(model: nn.Module, layer: int) -> Blocked:
    """Edges that leave words and image to meet in one layer only, for `train` and `open_pass`."""
    edges = number_edges(CROSS)
    return {other: edges for other in range(model.config.num_hidden_layers) if other != layer}


def open_pass(
    model: nn.Module, batch: dict[str, Tensor], blocked: Blocked | None = None
) -> PackedForward:
    """A packed pass over a batch in which some edges are cut; to be walked or run."""
    forward, device = pack_forward(model, batch), model.device
    forward.blocked = {layer: edges.to(device) for layer, edges in (blocked or {}).items()}
    return forward


def shuffle_answers(encoded: EncodedQuestions, seed: int) -> EncodedQuestions:
    """The same questions, each with the answers of a random one of its family: images say nothing.

    What is left to learn is each family's prior.
    """
    shuffled, generator = copy.copy(encoded), np.random.default_rng(seed)
    shuffled.targets = list(encoded.targets)
    for rows in encoded.questions.groupby("family").indices.values():
        for row, other in zip(rows, generator.permutation(rows), strict=True):
            shuffled.targets[row] = encoded.targets[other]
    return shuffled


def train(
    model: nn.Module,
    encoded: EncodedQuestions,
    blocked: Blocked | None = None,
    route: tuple[str, Head] | None = None,
    epochs: int = 2,
    rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> nn.Module:
    """A copy of a model, trained further on encoded questions under a constraint.

    blocked: edges that are cut throughout. route: (family, head); a second pass of each step goes
    without the head, and asks for the same answers of all families but this one, and of this one
    for its prior: so that its answers, and no others, come through the head.
    In eval mode, as nothing of the small ViLTs drops out. About 20 s an epoch of 10,000 questions,
    twice that with `route`.
    """
    model, parts = copy.deepcopy(model), [([], encoded)]
    if route:
        parts.append(([route[1]], forget_family(encoded, route[0])))
    sampler = BucketSampler(encoded, batch_size, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=epochs * len(sampler) // sampler.batch_size, pct_start=0.1
    )
    for epoch in range(epochs):
        sampler.epoch = epoch
        for rows in torch.tensor([*sampler]).split(sampler.batch_size):
            optimizer.zero_grad()
            for silent, asked in parts:
                batch = asked.collate([asked[row] for row in rows.tolist()])
                with ablate_heads(model, silent):
                    logits = open_pass(model, batch, blocked).run()
                loss = binary_cross_entropy_with_logits(logits, batch["labels"])
                (loss * logits.shape[1]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model


def forget_family(encoded: EncodedQuestions, family: str) -> EncodedQuestions:
    """The same questions, those of a family with its mean labels in place of their own."""
    asked = copy.copy(encoded)
    asked.targets = list(encoded.targets)
    rows = np.flatnonzero(encoded.questions["family"] == family).tolist()
    prior = torch.stack([encoded[row]["labels"] for row in rows]).mean(0).numpy()
    for row in rows:
        asked.targets[row] = (np.flatnonzero(prior), prior[np.flatnonzero(prior)])
    return asked
