"""ViLT: loaded, run with its patches in raster order, fine-tuned, pruned and timed.

Modules are imported when they are asked for: to measure a batch takes no `datasets`.
"""

import importlib

from helpers.model.forward import forward_raster, trace
from helpers.model.vilt import list_answers, load_vilt, prune_model

__all__ = [
    "finetune",  # fine-tune a study's checkpoint, continue after a kill, score its answers
    "forward_raster",  # run ViLT on a batch without its random patch order
    "list_answers",  # a model's answers in the order of its logits
    "load_finetuned",  # the model that notebook 02 fine-tuned, and its processor
    "load_vilt",  # a ViLT and its processor: hub name, folder, or fresh
    "predict",  # a model's answer to every question
    "prune_model",  # a physically smaller copy without some heads and layers
    "timing",  # time, memory and lower precisions of models
    "trace",  # read or edit inside a forward pass
]


def __getattr__(name: str) -> object:
    if name in ("finetune", "timing"):
        return importlib.import_module(f"helpers.model.{name}")
    if name in ("load_finetuned", "predict"):
        return getattr(importlib.import_module("helpers.model.finetune"), name)
    raise AttributeError(f"helpers.model has no {name}")
