"""README and docs: what they link to is there, and the code that they show runs."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.data import read_table
from tools.run_notebooks import CLAIMS, list_notebooks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_lists_every_notebook_and_has_room_for_the_claims():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in list_notebooks(ROOT):
        place = path if path.parent.name == "notebooks" else path.parent
        assert f"]({place.relative_to(ROOT).as_posix()})" in readme, path.name
    assert CLAIMS.search(readme)


def test_the_six_lines_of_the_readme_measure_a_model_on_a_photograph(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (300, 200), "gold").save(photo)
    for shown, real in (
        ("path/to/your-vilt", ROOT / "data/replicas/0"),
        ("path/to/photo.jpg", photo),
    ):
        assert shown in code
        code = code.replace(shown, str(real))
    names = {}
    exec(code, names)
    model, seen = names["model"], names["seen"]
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    assert seen.image_share.shape == (layers, heads)
    assert 0 < seen.baseline < 1
    assert seen.answer in model.config.id2label.values()


def test_the_split_of_many_questions_is_measured_as_the_docs_show(tmp_path):
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    Image.new("RGB", (300, 200), "gold").save(tmp_path / "photo.jpg")
    table = tmp_path / "questions.csv"
    table.write_text("image,question\nphoto.jpg,What is this?\nphoto.jpg,Is it gold?\n")
    for shown, real in (
        ("path/to/your-vilt", ROOT / "data/replicas/0"),
        ("path/to/questions.csv", table),
        ("path/to/results", tmp_path / "results"),
    ):
        assert shown in code
        code = code.replace(shown, str(real))
    names = {}
    exec(code, names)
    found, config = names["table"], names["model"].config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    assert found.split.shape == (2, layers, heads, 3, 5)
    assert found.excess.shape == (2, layers, heads, 3)
    assert found.baseline.shape == (2,)
    assert {"question_id", "image_id", "family", "prediction"} <= set(found.questions)


def test_the_lines_for_easy_vqa_write_a_table_that_can_be_read(tmp_path, monkeypatch):
    """With a stand-in for the package; tests/data/test_table.py has the true one."""
    package = tmp_path / "package"
    for part in ("train", "test"):
        (package / "data" / part / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64), "gold").save(package / "data" / part / "images" / "7.png")
    asked = ["what color is the shape?", "is it blue?"], ["gold", "no"], [7, 7]
    parts = {f"get_{part}_questions": lambda: asked for part in ("train", "test")}
    easy_vqa = SimpleNamespace(__file__=str(package / "__init__.py"), **parts)
    monkeypatch.setitem(sys.modules, "easy_vqa", easy_vqa)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "easy-vqa.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    with pytest.warns(UserWarning, match="exact match"):
        table = read_table("data/downloads/easy-vqa/questions.csv")
    assert table["question"][:] == asked[0] * 2
    assert table["multiple_choice_answer"][:] == asked[1] * 2
    assert len(set(table["image_id"][:])) == 2
