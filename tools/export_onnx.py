"""A ViLT, whole or pruned, as an ONNX file: any number of questions, words and picture sizes.

python -m tools.export_onnx MODEL_FOLDER OUT.onnx
"""

import sys
from importlib import import_module, util

import torch
from torch import Tensor, nn
from torch.export import Dim

from helpers.model import forward_raster, load_vilt

PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # not the project's: imported when used
INPUTS = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
CLOSE = 1e-4  # a larger difference of a logit is no rounding
MIXED = ([(5, 4, 4)], [(1, 1, 1)], [(12, 7, 3), (3, 2, 8)], [(6, 5, 6), (9, 6, 5), (4, 6, 6)])


class GridVilt(nn.ModuleList):
    """`forward_raster` of one model, on the batch's common grid: no loop over picture sizes."""

    def forward(self, ids: Tensor, words: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        """Logits (question, answer) of what the processor returns, in the order of INPUTS."""
        modules, patch = self[0].vilt.embeddings, self[0].config.patch_size
        both = torch.cat([pixels, mask[:, None].float()], 1)  # tells the export: of one size
        patches = modules.patch_embeddings(both[:, :3])  # (question, hidden, rows, columns)
        inside = nn.functional.max_pool2d(both[:, 3:], patch)[:, 0]
        side = self[0].config.image_size // patch
        trained = modules.position_embeddings[0, 1:].unflatten(0, (side, side))
        edges = place(inside[:, :, 0], side), place(inside[:, 0], side)
        embeds = patches + torch.einsum("bri,bcj,ijh->bhrc", *edges, trained)
        cls = modules.cls_token + modules.position_embeddings[:, :1]
        embeds = torch.cat([cls.expand(patches.shape[0], -1, -1), embeds.flatten(2).mT], 1)
        mask = nn.functional.pad(inside.flatten(1), (1, 0), value=1.0).long()
        return self[0](ids, words, image_embeds=embeds, pixel_mask=mask).logits


def place(inside: Tensor, side: int) -> Tensor:
    """Bilinear weights (picture, row, trained row), ends on ends; inside: (picture, row)."""
    step = (side - 1) / (inside.sum(1) - 1).clamp(min=1)
    places = torch.arange(inside.shape[1]) * step[:, None]
    return (1 - (places[..., None] - torch.arange(side)).abs()).clamp(min=0)


def make_noise(model: nn.Module, sizes: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """A padded batch, a question each (words, rows and columns of patches)."""
    lengths = torch.tensor(sizes) * torch.tensor([1, *[model.config.patch_size] * 2])
    words, high, wide = (torch.arange(each.max()) < each[:, None] for each in lengths.T)
    mask = (high[:, :, None] & wide[:, None]).long()
    pixels = torch.randn(len(sizes), 3, *mask.shape[1:]) * mask[:, None]
    ids = torch.randint(5, model.config.vocab_size, words.shape) * words
    return dict(zip(INPUTS, (ids, words.long(), pixels, mask), strict=True))


@torch.inference_mode()
def export_onnx(model: nn.Module, path: str) -> float:
    """Write the model to a file; returns how far logits are from `forward_raster`'s at most."""
    text = {0: (batch := Dim("batch")), 1: Dim("words", max=model.config.max_position_embeddings)}
    high, wide = (model.config.patch_size * Dim(name) for name in ("rows", "columns"))
    shapes = (text, text, {0: batch, 2: high, 3: wide}, {0: batch, 1: high, 2: wide})
    names = {"input_names": INPUTS, "output_names": ["logits"], "dynamic_shapes": shapes}
    example = tuple(make_noise(model, MIXED[2]).values())
    torch.onnx.export(GridVilt([model]).eval(), example, path, external_data=False, **names)
    session, apart = import_module("onnxruntime").InferenceSession(path), []
    for batch in (make_noise(model, sizes) for sizes in MIXED):
        (logits,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        apart.append((torch.from_numpy(logits) - forward_raster(model, batch).logits).abs().max())
    return float(torch.stack(apart).max())  # NaN stays NaN


if __name__ == "__main__":
    if lacking := [name for name in PACKAGES if not util.find_spec(name)]:
        sys.exit(f"ONNX needs packages that are not installed: pip install {' '.join(lacking)}")
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    worst = export_onnx(load_vilt(sys.argv[1])[0], sys.argv[2])
    print(f"{sys.argv[2]}: logits differ from the model's by at most {worst:.1e}")
    sys.exit(not worst <= CLOSE)
