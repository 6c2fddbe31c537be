"""Attention measured: where it goes, maps over a picture, and whether they can be trusted.

Modules are imported when they are asked for: to measure a batch takes no `datasets`.
"""

from helpers.attention.edges import knockout
from helpers.attention.image_share import attention_maps, attention_split, look

__all__ = [
    "attention_maps",  # full attention matrices of a few questions, patches in raster order
    "attention_split",  # every head's attention by group of keys, of one batch
    "extract",  # measures of a whole data set: one table a run, made once
    "faithfulness",  # do the patches that a map calls important matter to the answer?
    "grounding",  # do heads and maps point at the boxes asked about?
    "knockout",  # the answers where attention from one group to another is cut (more in edges)
    "look",  # answer, split and maps of one picture and one question
    "modality",  # what an answer owes to the words and to the image
    "readout",  # the answer read out after each layer, and what linear probes find there
    "relevance",  # maps that count what heads hand on, and what the answer owes to it
]
