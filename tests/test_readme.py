"""README and docs: what they link to is there, and the code that they show runs."""

import re
from pathlib import Path

import pytest
from PIL import Image

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
