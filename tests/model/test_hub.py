"""load_vilt against a hub on the loopback, and against spoilt folders.

HF_ENDPOINT is read when huggingface_hub is imported, so the loader runs in a process of its own.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizer, ViltConfig, ViltForMaskedLM

from helpers.model.forward import forward_raster
from helpers.model.vilt import load_vilt, split_name

ROOT = Path(__file__).parents[2]
MLM = "dandelin/vilt-b32-mlm"
ANSWERS = ["yes", "no", "red"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this", "?", "color", "##s"]
CONFIG = {  # the old layout of the hub's checkpoint, at a small size
    "architectures": ["ViltForMaskedLM"], "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0, "hidden_size": 32, "image_size": 384, "initializer_range": 0.3,
    "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_image_length": -1, "model_type": "vilt",
    "max_position_embeddings": 40, "modality_type_vocab_size": 2, "num_attention_heads": 2,
    "num_channels": 3, "num_hidden_layers": 2, "num_images": -1, "patch_size": 32, "qkv_bias": True,
    "tie_word_embeddings": False, "type_vocab_size": 2, "vocab_size": len(WORDS),
}  # fmt: skip
PREPROCESSOR = {
    "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViltFeatureExtractor",
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": 384, "size_divisor": 32,
}  # fmt: skip
DRIVER = """
import json, sys
from huggingface_hub import constants
from helpers.model.vilt import load_vilt
from tests.model.test_hub import ANSWERS, run_model

def try_load(name):
    try:
        return {"logits": run_model(*load_vilt(name, answers=ANSWERS, seed=5)).tolist()}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"kinds": kinds, "message": str(error)}

for line in sys.stdin:
    names, constants.HF_HUB_OFFLINE = json.loads(line)
    print(json.dumps([try_load(name) for name in names]), flush=True)
"""


class Repository:
    """What the hub has under a name: the files of each revision, and how it misbehaves.

    info, file: (status, headers) of answers about it, and for its files. authors: of pull requests.
    """

    def __init__(self, revisions=None, info=(200, {}), file=(200, {}), authors=None):
        self.revisions = revisions or {}  # name -> {file name: path}
        self.info, self.file, self.authors = info, file, authors or {}


class Handler(BaseHTTPRequestHandler):
    """The part of the hub's protocol that huggingface_hub 2.4 speaks when it fetches a model."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.seen.append((self.command, path))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            return self.answer_about(match[1], match[2] or "/revision/main")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        return self.resolve(*match.groups()) if match else self.answer(404)

    def find(self, name, revision):
        """The commit and files of a revision, by its name or its commit; None if there is none."""
        for ref, files in self.server.repositories[name].revisions.items():
            if revision in (ref, make_commit(name, ref)):
                return make_commit(name, ref), files
        return None

    def answer_about(self, name, what):
        repository = self.server.repositories.get(name)
        if repository is None:  # so the real hub says to the anonymous
            return self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        if repository.info != (200, {}):
            return self.answer(repository.info[0], b"<html>hello</html>", repository.info[1])
        if what.startswith("/discussions"):
            facts = {"repo": {"name": name, "type": "model"}, "title": "a change", "status": "open"}
            facts |= {"isPullRequest": True, "createdAt": "2023-03-21T09:05:27.000Z"}
            made = [
                facts | {"num": number, "author": {"name": author}}
                for number, author in repository.authors.items()
            ]
            about = {"discussions": made, "count": len(made), "start": 0, "numClosed": 0}
            return self.answer(200, about)
        _, kind, revision = what.split("/", 2)
        if (found := self.find(name, revision)) is None:
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            about = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
            return self.answer(200, about)
        tree = [
            {"type": "file", "path": file, "oid": hash_text(str(path)), "size": path.stat().st_size}
            for file, path in files.items()
        ]
        return self.answer(200, tree)

    def resolve(self, name, revision, file):
        repository = self.server.repositories[name]
        if repository.file[0] != 200:
            return self.answer(repository.file[0], headers=repository.file[1])
        commit, files = self.find(name, revision)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hash_text(str(files[file]))}"'}
        return self.answer(200, files[file].read_bytes(), headers)

    def answer(self, status, content=b"", headers=None):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        """Nothing: tests read `server.seen`."""


def make_commit(name, ref):
    return hash_text(f"{name} {ref}")


def hash_text(text):
    return hashlib.sha1(text.encode()).hexdigest()


def serve_hub(repositories):
    """A hub on the loopback, with `seen`, the (method, path) of each request, in order."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.seen, server.lock = repositories, [], threading.Lock()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


@contextmanager
def load_elsewhere(folder, endpoint, home):
    """Loads names in a process: a function of names to {name: result}. Nothing else is printed.

    offline: as under HF_HUB_OFFLINE=1.
    """
    foreign = re.compile(r"HF_.*|HUGGING.*|TRANSFORMERS_.*|.*_proxy|TQDM_DISABLE", re.IGNORECASE)
    env = {key: value for key, value in os.environ.items() if not foreign.fullmatch(key)}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    errors, pipe = folder / "stderr", subprocess.PIPE
    with errors.open("w") as file, subprocess.Popen(
        [sys.executable, "-c", DRIVER], env=env, cwd=folder, stdin=pipe, stdout=pipe, stderr=file,
        text=True,
    ) as process:  # fmt: skip

        def load(names, offline=False):
            print(json.dumps([names, offline]), file=process.stdin, flush=True)
            line = process.stdout.readline()
            return dict(zip(names, json.loads(line or errors.read_text()), strict=True))

        yield load
        process.stdin.close()
        assert (process.wait(), process.stdout.read(), errors.read_text()) == (0, "", "")


def run_model(model, processor):
    """Logits for a question on a picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    with torch.no_grad():
        batch = processor(Image.fromarray(pixels), "what is this?", return_tensors="pt")
        return forward_raster(model, batch).logits[0].double()


def write_checkpoint(folder, shard_size=None, **changes):
    """A checkpoint as the hub's converter leaves it: old configuration, a ViltForMaskedLM."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = ViltForMaskedLM(ViltConfig(**CONFIG))
    if shard_size:
        model.save_pretrained(folder, max_shard_size=shard_size)
    else:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        weights["mlm_score.decoder.weight"].normal_()  # a word head of its own, as CONFIG says
        # old versions wrote this one
        weights["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(40)[None]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG | changes)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    facts = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 40}
    facts |= {"auto_map": {"AutoTokenizer": ["modeling_x.Tokenizer", None]}}
    write_json(folder / "tokenizer_config.json", facts | {"name_or_path": "bert-base-uncased"})
    kinds = ("cls", "mask", "pad", "sep", "unk")
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in kinds}
    write_json(folder / "special_tokens_map.json", special)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody may open")
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content))


def list_revision(folder, without="none"):
    """{file name: path} of a folder and of the folders in it, as a revision of a repository."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: path for name, path in files.items() if not re.fullmatch(without, name)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of the old layout, which also brings code and names it in its configuration."""
    root = tmp_path_factory.mktemp("old")
    code = {"AutoModelForVisualQuestionAnswering": "modeling_x.Model"}
    folder = write_checkpoint(root / "old", auto_map=code)
    (folder / "modeling_x.py").write_text(f"open({str(root / 'executed')!r}, 'w')\n")
    (folder / "onnx").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "onnx" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharded")
    folder = write_checkpoint(root / "sharded", shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def make_repositories(folder, sharded):
    whole, pickled = list_revision(folder), list_revision(folder, r".*safetensors.*")
    gated = {"X-Error-Code": "GatedRepo"}
    return {
        MLM: Repository(
            {"main": pickled, "refs/pr/2": whole, "refs/pr/4": whole},
            authors={2: "someone", 4: "SFconvertbot"},
        ),
        "owner/old": Repository({"main": whole}),
        "owner/sharded": Repository({"main": list_revision(sharded)}),
        "owner/pickled": Repository({"main": pickled}),
        "owner/stranger": Repository({"main": pickled, "refs/pr/3": whole}, authors={3: "someone"}),
        "owner/gated": Repository({"main": whole}, file=(403, gated)),
        "owner/token": Repository(info=(401, {"X-Error-Message": "Invalid credentials"})),
        "owner/down": Repository(info=(503, {})),
        "owner/portal": Repository(info=(200, {"Content-Type": "text/html"})),
    }


ERRORS = {  # name: (kind, what the sentence says)
    "owner/pickled": ("FileNotFoundError", "https://huggingface.co/spaces/safetensors/convert"),
    "owner/stranger": ("FileNotFoundError", "no safetensors weights at 'main'"),
    "owner/nowhere": ("FileNotFoundError", "is not known at .*/owner/nowhere: check the name"),
    "owner/old@refs/pr/9": ("FileNotFoundError", "'refs/pr/9' is no revision"),
    "owner/gated": ("PermissionError", "closed to you: ask at .*/owner/gated, .*`hf auth login`"),
    "owner/token": ("PermissionError", "`hf auth login`"),
    "owner/down": ("OSError", "503 Service Unavailable"),
    "owner/portal": ("OSError", "cannot be fetched"),
}
PR4 = f"{MLM}@refs/pr/4"


@pytest.fixture(scope="module")
def hub(folder, sharded, tmp_path_factory):
    """Results of loading: with a hub, with that hub gone, and forbidden to ask."""
    root = tmp_path_factory.mktemp("hub")
    home = root / "home"
    commit = f"owner/old@{make_commit('owner/old', 'main')}"
    good = ["owner/old", commit, PR4, "owner/sharded"]
    server = serve_hub(make_repositories(folder, sharded))
    url = f"http://127.0.0.1:{server.server_port}"
    with load_elsewhere(root, url, home) as load:
        online = load([*good, MLM, *ERRORS])
        server.shutdown()
        server.server_close()
        closed = load([*good, "owner/nowhere"])
        cached = home / "hub" / "models--owner--old"
        cut = shutil.copytree(cached, cached.with_name("models--owner--cut"), symlinks=True)
        next(cut.glob("snapshots/*/model.safetensors")).unlink()
        offline = load(["owner/old", "owner/cut", "owner/nowhere"], offline=True)
    results = {"online": online, "closed": closed, "offline": offline}
    return SimpleNamespace(**results, seen=server.seen, good=good, home=home)


@pytest.fixture(scope="module")
def expected(folder):
    """Logits of the folder itself, loaded in this process."""
    return run_model(*load_vilt(folder, answers=ANSWERS, seed=5)).tolist()


@pytest.mark.slow
class TestHub:
    def test_logits_equal_those_of_the_folder(self, hub, expected, sharded):
        assert np.ptp(expected) > 0.01
        of_parts = run_model(*load_vilt(sharded, answers=ANSWERS, seed=5)).tolist()
        for results in (hub.online, hub.closed):  # from the hub, then from the cache
            for name in hub.good:
                right = of_parts if name == "owner/sharded" else expected
                np.testing.assert_allclose(results[name]["logits"], right, rtol=1e-5, atol=1e-6)
        # of MLM, whose main is pickled: the pull request of the hub's own converter
        for found in (hub.offline["owner/old"], hub.online[MLM]):
            np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-6)

    def test_only_what_is_needed_is_asked_for(self, hub, folder):
        paths = [path for _, path in hub.seen if "/resolve/" in path]
        files = {path.split("/")[-1] for path in paths}
        assert {"config.json", "model.safetensors", "vocab.txt"} <= files
        assert not {name for name in files if name.endswith((".bin", ".py", ".md"))}
        assert not [path for _, path in hub.seen if "/onnx/" in path or "bert-base" in path]
        assert not (folder.parent / "executed").exists()

    def test_a_partial_snapshot_does_not_pass_for_whole(self, hub):
        for name in ("owner/cut", "owner/nowhere"):
            found = hub.offline[name]
            assert "OSError" in found["kinds"]
            assert f"{name} at 'main' is not, or not wholly, in the cache" in found["message"]
            assert "HF_HUB_OFFLINE" in found["message"]
        assert "not, or not wholly, in the cache" in hub.closed["owner/nowhere"]["message"]

    @pytest.mark.parametrize(("name", "kind", "says"), [(name, *ERRORS[name]) for name in ERRORS])
    def test_errors_are_one_sentence(self, hub, name, kind, says):
        found = hub.online[name]
        assert {"OSError", kind} <= set(found["kinds"])
        assert re.search(says, found["message"])
        assert "\n" not in found["message"]
        assert name.split("@")[0] in found["message"]
        assert found["message"].count(". ") == 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (MLM, (MLM, "main")), ("a/b.c_d@refs/pr/4", ("a/b.c_d", "refs/pr/4")),
        ("a/b@v1.0", ("a/b", "v1.0")),
        *[(name, None) for name in ("fresh-smal", "a/b/c", "/a/b", "./a", "../a", "~/a", "a/b@",
                                    "a/..", "a/b--c", "", "a b/c")],
    ],
)  # fmt: skip
def test_names_of_the_hub_and_others(name, parts):
    assert split_name(name) == parts


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def assert_refused(folder, message, kind=OSError):
    with pytest.raises(kind, match=re.escape(message)) as error:
        load_vilt(folder, answers=ANSWERS)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_old_preprocessing_is_completed(folder):
    _, processor = load_vilt(folder, answers=ANSWERS)
    images = processor.image_processor
    assert (images.size["shortest_edge"], images.size_divisor) == (384, 32)
    pixels = np.random.default_rng(1).integers(0, 256, (384, 416, 3), dtype=np.uint8)
    found = processor(Image.fromarray(pixels), "what?", return_tensors="pt")["pixel_values"][0]
    np.testing.assert_allclose(found.permute(1, 2, 0), (pixels / 255 - 0.5) / 0.5, atol=1e-6)
    assert processor.tokenizer.tokenize("What colors?") == ["what", "color", "##s", "?"]
    assert processor.tokenizer.model_max_length == 40


@pytest.mark.parametrize("tied", [True, None])
def test_body_is_kept_whether_the_word_head_is_tied(tied, copy, expected, capfd, caplog):
    config = json.loads((copy / "config.json").read_text())
    del config["tie_word_embeddings"]
    change = {} if tied is None else {"tie_word_embeddings": tied}
    write_json(copy / "config.json", config | change)
    model, processor = load_vilt(copy, answers=ANSWERS, seed=5)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    np.testing.assert_allclose(run_model(model, processor), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("content", ["{broken", "[]"])
@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer.json", "special_tokens_map.json"]
)
def test_broken_json_is_named(name, content, copy):
    (copy / name).write_text(content)
    assert_refused(copy, f"{copy / name} is no valid")


def test_missing_file_is_named(copy):
    (copy / "model.safetensors").rename(copy / "elsewhere")
    assert_refused(copy, "pytorch_model.bin is pickled", FileNotFoundError)
    (copy / "elsewhere").rename(copy / "model.safetensors")
    (copy / "config.json").unlink()
    assert_refused(copy, "holds no config.json", FileNotFoundError)


def test_missing_part_of_the_weights_is_named(sharded, tmp_path):
    copy = shutil.copytree(sharded, tmp_path / "copy")
    part = sorted(copy.glob("*.safetensors"))[1]
    part.unlink()
    assert_refused(copy, f"No such file or directory: {part}")
    (copy / "model.safetensors.index.json").unlink()
    assert_refused(copy, "neither model.safetensors nor", FileNotFoundError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "a model of type 'bert', not a ViLT"),
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"num_attention_heads": 5}, "not a multiple"),
    ],
)
def test_impossible_configuration_is_named(change, message, copy):
    config = json.loads((copy / "config.json").read_text())
    write_json(copy / "config.json", config | change)
    assert_refused(copy, message)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha"])
def test_weights_that_are_none_are_named(content, copy):
    (copy / "model.safetensors").write_bytes(content)
    assert_refused(copy, f"cannot be loaded from {copy}")
