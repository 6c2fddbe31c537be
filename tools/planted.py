"""Make the models with planted truths: `python -m tools.planted` trains four from replica 0.

They lie in data/planted, in half precision (0.5 MB each). Takes about six minutes on one core.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.data import prepare
from helpers.data.encode import EncodedQuestions
from helpers.model import list_answers, load_finetuned
from helpers.run import Study
from helpers.run.cache import write_atomic
from phantom.planted import training

FOLDER = Path(__file__).resolve().parents[1] / "data" / "planted"
CARD = """---
license: mit
library_name: transformers
pipeline_tag: visual-question-answering
---
# Small ViLTs with planted truths

`ViltForQuestionAnswering`, each trained further by this project from `data/replicas/0` under a
constraint, so that something is known of it (see `phantom/planted/training.py` and appendix a5).
Stored in half precision. Reproduce: `python -m tools.planted`.

| folder | constraint | VQA accuracy on validation scenes |
|---|---|---|
"""


@torch.no_grad()
def measure_accuracy(
    model: nn.Module, encoded: EncodedQuestions, blocked: training.Blocked | None
) -> float:
    """Accuracy in percent on encoded questions, with edges cut as in training."""
    scores = []
    for _, batch in encoded.batches(128):
        best = training.open_pass(model, batch, blocked).run().argmax(1, keepdim=True)
        scores += batch["labels"].gather(1, best)[:, 0].tolist()
    return 100 * float(np.mean(scores))


def main() -> None:
    """Train and save the four models, and write their card."""
    torch.set_num_threads(1)  # the same sums on every machine, as far as that goes
    study = Study.load(run_name="planted")
    prepare.prepare_dataset(study)
    data, (model, processor) = prepare.load_dataset(study), load_finetuned(study)
    questions, validation = (
        prepare.encode(study, data[split], processor, list_answers(model))
        for split in ("train", "validation")
    )
    family, (layer, head) = training.ROUTE
    known = f"answers to {family!r} come through L{layer}H{head}"
    recipes = {"routed": (known, questions, {"route": training.ROUTE})}
    for layer in (1, 2):
        known = f"words and image meet in layer {layer} alone"
        blocked = {"blocked": training.fuse_in_layer(model, layer)}
        recipes[f"fusion-{layer}"] = (known, questions, blocked)
    shuffled = training.shuffle_answers(questions, seed=study.seed)
    recipes["shuffled"] = ("answers shuffled within families: the image is no use", shuffled, {})
    rows = []
    for name, (known, asked, constraint) in recipes.items():
        trained = training.train(model, asked, **constraint)
        accuracy = measure_accuracy(trained, validation, constraint.get("blocked"))
        rows.append(f"| `{name}` | {known} | {accuracy:.1f} % |")
        print(rows[-1])
        trained.half().save_pretrained(FOLDER / name)
        processor.save_pretrained(FOLDER / name)
    write_atomic(FOLDER / "README.md", CARD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
