"""A model that is analysed as it is: a random ViLT of 3 layers x 2 heads in the notebooks."""

import contextlib
import io
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import ViltConfig, ViltForQuestionAnswering

from helpers.model import finetune, load_vilt, prune_model
from helpers.report.claims import read_claims
from helpers.run.settings import Study
from tools.run_notebooks import list_notebooks

ROOT = Path(__file__).parents[2]
FEW = {
    "bootstrap_draws": 50, "shapley_questions": 4, "shapley_permutations": 1, "random_models": 2,
    "latency_rounds": 3, "prune_draws": 2, "prune_epochs": 0, "knockout_questions": 12,
    "ablation_questions": 40, "faithfulness_questions": 12, "withheld_questions": 24,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as save_pretrained leaves it, with answers of its own."""
    folder = tmp_path_factory.mktemp("own") / "vilt"
    fresh, processor = load_vilt("fresh-small", answers=["yes", "no", "red", "2"], seed=1)
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2}
    config = ViltConfig(**{**fresh.config.to_dict(), **sizes})
    torch.manual_seed(0)
    ViltForQuestionAnswering(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run_here(path: Path, names: dict, **parameters) -> None:
    """Execute a notebook's cells in this process: a kernel takes seconds to start."""
    cells = nbformat.read(path, as_version=4).cells
    for cell in [cell for cell in cells if cell.cell_type == "code"]:
        tags = cell.metadata.get("tags", [])
        if "setup" in tags:
            continue
        try:
            exec(compile(cell.source, path.name, "exec"), names)
        except SystemExit:  # the notebook is done
            return
        if "parameters" in tags:
            names.update(parameters)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_notebooks_analyse_a_model_without_training_it(tmp_path, phantom_root, checkpoint):
    given = {"RUN_NAME": "own", "CHECKPOINT": str(checkpoint), "DATA_ROOT": str(phantom_root)}
    settings = {**FEW, "finetune": False, "runs_root": str(tmp_path), "device": "cpu"}
    printed = io.StringIO()
    for path in list_notebooks(ROOT):
        if path.stem[:3] in ("01_", "02_", "03_", "05_", "06_", "07_"):  # 03b, 04: nothing else
            with contextlib.redirect_stdout(printed):
                run_here(path, {"display": print}, **given, SETTINGS=settings)
    assert "was trained elsewhere" in printed.getvalue()
    run = tmp_path / "own"
    assert not list(run.rglob("training.csv"))
    assert pd.read_csv(run / "tables" / "02_models.csv")["model"].unique().tolist() == ["model 0"]
    claims = read_claims(run).set_index("key")["verdict"]
    assert claims[["habits-inherited", "quarter-free"]].tolist() == ["not testable"] * 2
    assert (run / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_answers_attention_is_measured_and_every_claim_says_why_not(
    tmp_path, phantom_root, checkpoint
):
    asked = "Left or right?", "", "Is it red?", "What color is it?"  # of no type; without words
    rows = [f"{path},{q}" for path in sorted(phantom_root.glob("val2014/*"))[:4] for q in asked]
    (tmp_path / "questions.csv").write_text("\n".join(["image,question", *rows]))
    given = {"RUN_NAME": "own", "CHECKPOINT": str(checkpoint), "DATA_ROOT": str(tmp_path)}
    settings = {**FEW, "finetune": False, "runs_root": str(tmp_path), "device": "cpu"}
    with contextlib.redirect_stdout(io.StringIO()):
        for path in list_notebooks(ROOT):
            if path.stem[0] == "0" and path.stem[:2] != "00":
                run_here(path, {"display": print}, **given, SETTINGS=settings)
    tables = {path.name for path in (tmp_path / "own" / "tables").iterdir()}
    assert {"03_layers.csv", "04_layers.csv", "05_role_scores.csv", "07_claims.csv"} <= tables
    assert not {"02_accuracy.csv", "05_ablation.csv", "06_curves.csv"} & tables
    claims = read_claims(tmp_path / "own").set_index("key")
    claims = claims.drop(["map-trust", "layers-together"])  # of the appendix
    assert "not measured yet" not in set(claims["verdict"])
    answered = claims[claims["notebook"].isin(["02", "05", "06"])]
    assert set(answered["verdict"]) == {"not testable"}
    settings |= {"finetune": True}
    with pytest.raises(ValueError, match="no question has an answer to train on"):
        run_here(ROOT / "notebooks" / "02_finetune.ipynb", {}, **given, SETTINGS=settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_family_and_answers_that_differ_by_a_hyphen(tmp_path, phantom_root, checkpoint):
    answers = "|".join(["t-shirt"] * 3 + ["t shirt", *"bcdefg"])
    rows = [f"{path},Is it a shirt?,{answers}" for path in phantom_root.glob("*2014/*")]
    (tmp_path / "questions.csv").write_text("\n".join(["image,question,answers", *rows]))
    given = {"RUN_NAME": "own", "CHECKPOINT": str(checkpoint), "DATA_ROOT": str(tmp_path)}
    settings = {**FEW, "finetune": False, "runs_root": str(tmp_path), "device": "cpu"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for name in ("01_setup", "04_question_types"):
            run_here(
                ROOT / f"notebooks/{name}.ipynb", {"display": print}, **given, SETTINGS=settings
            )
    assert "accuracy of 't shirt': 1.00" in printed.getvalue()  # four of ten
    claims = read_claims(tmp_path / "own").set_index("key")["verdict"]
    assert claims[["what-why", "types-differ"]].tolist() == ["not testable"] * 2


@pytest.mark.parametrize(("mode", "size"), [("LA", (40, 30)), ("RGBA", (1500, 1000))])
def test_the_quick_start_looks_at_any_picture(tmp_path, checkpoint, mode, size):
    photo = tmp_path / "photo.png"
    Image.new(mode, size).save(photo)
    given = {"MODEL": checkpoint, "PICTURE": photo, "QUESTION": "what? " * 60}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_here(ROOT / "notebooks" / "00_quickstart.ipynb", {"sys": sys}, **given)
    assert "image share of L1H1" in printed.getvalue()


def test_a_pruned_model_is_taken_where_layers_are_gone_and_refused_where_heads_are(
    tmp_path, checkpoint
):
    model, processor = load_vilt(checkpoint)
    for name, removed in (("layers", {"layers": [1]}), ("heads", {"heads": [(0, 1)]})):
        prune_model(model, **removed).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    finetune.check_models(Study.load(checkpoint=str(tmp_path / "layers"), finetune=False))
    for given in ({"finetune": False}, {}, {"models": (str(tmp_path / "heads"),)}):
        chosen = {"checkpoint": str(tmp_path / "heads")} | given
        with pytest.raises(ValueError, match="has 1 to 2 heads in its layers: analyse the model"):
            finetune.check_models(Study.load(**chosen))


def test_models_that_encode_otherwise_are_refused(tmp_path, checkpoint):
    model, processor = load_vilt(checkpoint)
    processor.image_processor.size = {"shortest_edge": 96}
    model.save_pretrained(tmp_path / "larger")
    processor.save_pretrained(tmp_path / "larger")
    given = {"checkpoint": str(checkpoint), "models": (str(checkpoint), str(tmp_path / "larger"))}
    with pytest.raises(ValueError, match="larger knows other words or picture sizes than"):
        finetune.check_models(Study.load(**given))
