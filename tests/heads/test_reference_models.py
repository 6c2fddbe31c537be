"""The model from another seed and before fine-tuning: their own folders, the run's own data, done once."""

import numpy as np
import pytest
import torch
from small import train_small

from helpers.attention import extract
from helpers.data import prepare
from helpers.heads import reference_models as variants
from helpers.model import finetune
from helpers.model.vilt import load_vilt


@pytest.fixture(scope="module")
def study(tmp_path_factory, phantom_root):
    return train_small(phantom_root, tmp_path_factory.mktemp("runs"), extract_batch_size=32)


def test_both_variants_answer_the_same_questions_by_other_weights(study):
    data = prepare.load_dataset(study)
    model, processor = finetune.load_finetuned(study)
    encoded = prepare.encode(study, data["validation"], processor)
    own = extract.measure_attention(study, model, encoded)
    before = variants.measure_before(study, encoded, list(model.config.id2label.values()))
    second = variants.measure_second_seed(study, data, encoded)
    for other in (before, second):
        assert other.questions["question_id"].equals(own.questions["question_id"])
        assert np.abs(other.split - own.split).max() > 0.01
    folder = study.run_dir / "model_second"
    stamps = [
        (study.run_dir / name / "made.json").stat().st_mtime_ns
        for name in ("model_second", "attention_second")
    ]
    variants.measure_second_seed(study, data, encoded)
    assert stamps == [
        (study.run_dir / name / "made.json").stat().st_mtime_ns
        for name in ("model_second", "attention_second")
    ]
    weights = [
        load_vilt(path)[0].vilt.encoder.layer[0].attention.output.dense.weight
        for path in (folder, study.run_dir / "model")
    ]
    assert not torch.equal(*weights)
    assert len(own.questions) == len(data["validation"])


def test_the_model_before_is_measured_in_the_precision_of_the_model_itself(study, monkeypatch):
    model, processor = finetune.load_finetuned(study)
    encoded = prepare.encode(study, prepare.load_dataset(study)["validation"], processor)

    def stop(given, *_):
        assert given.dtype == torch.float16
        raise KeyboardInterrupt

    monkeypatch.setattr(extract, "choose_dtype", lambda *_: torch.float16)  # as on a GPU
    monkeypatch.setattr(extract, "extract_attention", stop)
    for measure in (
        lambda: variants.measure_before(study, encoded, list(model.config.id2label.values())),
        lambda: extract.measure_attention(study, model, encoded),
    ):
        with pytest.raises(KeyboardInterrupt):
            measure()
    assert model.dtype == torch.float32
