"""A model written as ONNX answers as the model does, at sizes it was not exported with."""

import pytest

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.mark.parametrize("heads", [[], [(0, 1), (2, 0)]])
def test_exported_logits_are_the_models_own(vilt, heads, tmp_path):
    from helpers.model import prune_model
    from tools.export_onnx import CLOSE, export_onnx

    model = prune_model(vilt[0], heads) if heads else vilt[0]
    assert export_onnx(model, str(tmp_path / "vilt.onnx")) <= CLOSE
