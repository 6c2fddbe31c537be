"""helpers/model/hub.py and load_vilt against a hub on the loopback, and against spoilt folders.

HF_ENDPOINT is read when huggingface_hub is imported, so the loader runs in processes of its own.
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
from helpers.model.hub import fetch_checkpoint, is_hub_name, split_name
from helpers.model.vilt import load_vilt

ROOT = Path(__file__).parents[2]
OFFICIAL = ROOT.parent / "shared" / "official" / "vilt-b32-mlm"
MLM = "dandelin/vilt-b32-mlm"
ANSWERS = ["yes", "no", "red"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this", "?", "color", "##s"]
CONFIG = {  # the old layout of the hub's checkpoint, at a small size
    "architectures": ["ViltForMaskedLM"], "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0, "hidden_size": 32, "image_size": 384, "initializer_range": 0.3,
    "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_image_length": -1, "max_position_embeddings": 40,
    "modality_type_vocab_size": 2, "model_type": "vilt", "num_attention_heads": 2, "num_channels": 3,
    "num_hidden_layers": 2, "num_images": -1, "patch_size": 32, "qkv_bias": True,
    "tie_word_embeddings": False, "type_vocab_size": 2, "vocab_size": len(WORDS),
}  # fmt: skip
PREPROCESSOR = {
    "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViltFeatureExtractor",
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": 384, "size_divisor": 32,
}  # fmt: skip
DRIVER = """
import json, sys, time
from pathlib import Path

def try_step(name, load):
    start = time.perf_counter()
    try:
        if not load:
            from helpers.model.hub import fetch_checkpoint
            folder = fetch_checkpoint(name)
            return {"files": sorted(path.name for path in folder.iterdir())}
        from tests.test_hub import ANSWERS, run_model
        from helpers.model.vilt import load_vilt
        start = time.perf_counter()
        return {"logits": run_model(*load_vilt(name, answers=ANSWERS, seed=5)).tolist()}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"kinds": kinds, "message": str(error), "seconds": time.perf_counter() - start}

steps, target = json.loads(sys.argv[1]), Path(sys.argv[2])
target.write_text(json.dumps([try_step(*step) for step in steps]))
"""


class Repository:
    """What the hub has under a name: the files of each revision, and how it misbehaves."""

    def __init__(self, revisions=None, info=(200, {}), file=(200, {}), authors=None, cut=0):
        self.revisions = revisions or {}  # name -> {file name: path}
        self.info, self.file = (
            info,
            file,
        )  # (status, headers) of answers about it, and for its files
        self.authors = authors or {}  # of the pull requests
        self.cut = (
            cut  # requests for the weights that break off: the first midway, the others at once
        )


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
        if match := re.fullmatch(
            r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path
        ):  # signed storage, elsewhere
            return self.send_file(*match.groups())
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        return self.resolve(*match.groups()) if match else self.answer(404)

    def find(self, name, revision):
        """The commit and files of a revision, by its name or its commit; None where there is none."""
        for ref, files in self.server.repositories[name].revisions.items():
            if revision in (ref, make_commit(name, ref)):
                return make_commit(name, ref), files
        return None

    def answer_about(self, name, what):
        repository = self.server.repositories.get(name)
        if repository is None:  # so the real hub says to the anonymous
            return self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        if repository.info[0] != 200 or "Content-Type" in repository.info[1]:
            return self.answer(repository.info[0], b"<html>hello</html>", repository.info[1])
        if what.startswith("/refs"):
            names = [ref for ref in repository.revisions if ref.startswith("refs/pr/")]
            commit = {ref: make_commit(name, ref) for ref in repository.revisions}
            pulls = [{"name": ref[5:], "ref": ref, "targetCommit": commit[ref]} for ref in names]
            heads = [ref for ref in repository.revisions if ref not in names]
            heads = [
                {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit[ref]}
                for ref in heads
            ]
            return self.answer(
                200, {"branches": heads, "converts": [], "tags": [], "pullRequests": pulls}
            )
        if what.startswith("/discussions"):
            facts = {"repo": {"name": name, "type": "model"}, "title": "a change", "status": "open"}
            facts |= {"isPullRequest": True, "createdAt": "2023-03-21T09:05:27.000Z"}
            made = [
                facts | {"num": num, "author": {"name": who}}
                for num, who in repository.authors.items()
            ]
            return self.answer(
                200, {"discussions": made, "count": len(made), "start": 0, "numClosed": 0}
            )
        _, kind, revision = what.split("/", 2)
        found = self.find(name, revision)
        if found is None:
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.answer(
                200, {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
            )
        tree = [
            {
                "type": "file",
                "path": file,
                "oid": hash_bytes(str(path)),
                "size": path.stat().st_size,
            }
            for file, path in files.items()
        ]
        return self.answer(200, tree)

    def resolve(self, name, revision, file):
        repository = self.server.repositories[name]
        if repository.file[0] != 200:
            return self.answer(repository.file[0], headers=repository.file[1])
        commit, files = self.find(name, revision)
        if file not in files:
            return self.answer(
                404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            )
        if not file.endswith(".safetensors"):
            return self.send_file(name, commit, file)
        place = (
            f"http://localhost:{self.server.server_port}/cdn/{name}/{commit}/{file}"  # another host
        )
        size = {
            "X-Linked-Size": str(files[file].stat().st_size),
            "X-Linked-Etag": f'"{hash_bytes(str(files[file]))}"',
        }
        return self.answer(302, headers={"Location": place, "X-Repo-Commit": commit, **size})

    def send_file(self, name, revision, file):
        commit, files = self.find(name, revision)
        content = files[file].read_bytes()
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hash_bytes(str(files[file]))}"',
            "Accept-Ranges": "bytes",
        }
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        if start:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        sent = None
        if (
            self.command == "GET"
            and file.endswith(".safetensors")
            and self.server.repositories[name].cut
        ):
            self.server.repositories[name].cut -= 1
            if first:
                return self.close_connection
            sent = len(content) // 2
        return self.answer(206 if start else 200, content[first:], headers, sent)

    def answer(self, status, content=b"", headers=None, sent=None):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])

    def log_message(self, *args):
        """Nothing: tests read `server.seen`."""


def make_commit(name, ref):
    return hash_bytes(f"{name} {ref}")


def hash_bytes(text):
    return hashlib.sha1(text.encode()).hexdigest()


@contextmanager
def serve_hub(repositories):
    """A hub on the loopback, with `seen`, the (method, path) of each request, in order."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.seen, server.lock = repositories, [], threading.Lock()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def start_driver(folder, steps, endpoint, home, **extra):
    """Start a process that loads (name, whether as a model) one after another; `end_driver` has its results."""
    foreign = re.compile(r"HF_.*|HUGGING.*|TRANSFORMERS_.*|.*_proxy|TQDM_DISABLE", re.IGNORECASE)
    env = {key: value for key, value in os.environ.items() if not foreign.fullmatch(key)}
    env |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
    }
    target = folder / f"results-{hash_bytes(json.dumps([steps, endpoint, extra]))}.json"
    command = [sys.executable, "-c", DRIVER, json.dumps(steps), str(target)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env | extra, cwd=folder, **pipes), steps, target


def end_driver(started):
    """{name: result} of a process, the result a list where a name came more than once; it printed nothing."""
    process, steps, target = started
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "", "")
    results = {}
    for (name, _), result in zip(steps, json.loads(target.read_text()), strict=True):
        results.setdefault(name, []).append(result)
    return {name: found[0] if len(found) == 1 else found for name, found in results.items()}


def run_model(model, processor):
    """Logits for a question on a picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    with torch.no_grad():
        batch = processor(Image.fromarray(pixels), "what is this?", return_tensors="pt")
        return forward_raster(model, batch).logits[0].double()


def write_checkpoint(folder, config, shard_size=None, **changes):
    """A checkpoint as the hub's converter leaves it: old configuration, weights of a ViltForMaskedLM."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = ViltForMaskedLM(ViltConfig(**config))
    if shard_size:
        model.save_pretrained(folder, max_shard_size=shard_size)
    else:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        weights[
            "mlm_score.decoder.weight"
        ].normal_()  # a word head of its own, as the configuration says
        weights["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(40)[
            None
        ]  # of old versions
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config | changes)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    vocabulary = WORDS + [f"[unused{i}]" for i in range(config["vocab_size"] - len(WORDS))]
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(
        folder
    )
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    facts = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 40}
    write_json(folder / "tokenizer_config.json", facts | {"name_or_path": "bert-base-uncased"})
    special = {
        f"{kind}_token": f"[{kind.upper()}]" for kind in ("cls", "mask", "pad", "sep", "unk")
    }
    write_json(folder / "special_tokens_map.json", special)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody may open")
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content))


def list_revision(folder, *without):
    """{file name: path} of a folder and of the folders in it, as a revision of a repository."""
    files = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    return {name: path for name, path in files.items() if not re.fullmatch("|".join(without), name)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of the old layout, which also brings code and names it in its configuration."""
    root = tmp_path_factory.mktemp("old")
    code = {
        "AutoConfig": "modeling_x.Config",
        "AutoModelForVisualQuestionAnswering": "modeling_x.Model",
    }
    folder = write_checkpoint(root / "old", CONFIG, auto_map=code)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    auto_map = {"AutoTokenizer": ["modeling_x.Tokenizer", None]}
    write_json(folder / "tokenizer_config.json", facts | {"auto_map": auto_map})
    (folder / "modeling_x.py").write_text(f"open({str(root / 'executed')!r}, 'w')\n")
    (folder / "onnx").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "onnx" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = write_checkpoint(
        tmp_path_factory.mktemp("sharded") / "sharded", CONFIG, shard_size="50KB"
    )
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def make_repositories(folder, sharded):
    whole, pickled = list_revision(folder, "none"), list_revision(folder, r".*safetensors.*")
    gated = {"X-Error-Code": "GatedRepo"}
    wrong = {"X-Error-Message": "Invalid credentials in Authorization header"}
    return {
        MLM: Repository(
            {"main": pickled, "refs/pr/1": pickled, "refs/pr/2": whole, "refs/pr/4": whole},
            authors={1: "someone", 2: "someone", 4: "SFconvertbot"},
        ),
        "owner/old": Repository({"main": whole, "bare": pickled}),
        "owner/sharded": Repository({"main": list_revision(sharded, "none")}),
        "owner/pickled": Repository({"main": pickled, "refs/pr/1": pickled}),
        "owner/stranger": Repository({"main": pickled, "refs/pr/3": whole}, authors={3: "someone"}),
        "owner/gated": Repository({"main": whole}, file=(403, gated)),
        "owner/asking": Repository({"main": whole}, file=(401, gated)),
        "owner/forbidden": Repository(info=(403, {})),
        "owner/token": Repository(info=(401, wrong)),
        "owner/gone": Repository(info=(404, {"X-Error-Code": "RepoNotFound"})),
        "owner/mirrored": Repository(info=(404, {})),
        "owner/down": Repository(info=(503, {})),
        "owner/portal": Repository(info=(200, {"Content-Type": "text/html"})),
        "owner/resumed": Repository({"main": whole}, cut=1),
        "owner/dropped": Repository({"main": whole}, cut=6),
    }


ERRORS = [
    (MLM, "FileNotFoundError"), ("owner/old@bare", "FileNotFoundError"), ("owner/pickled", "FileNotFoundError"),
    ("owner/stranger", "FileNotFoundError"), ("owner/nowhere", "FileNotFoundError"),
    ("owner/gone", "FileNotFoundError"), ("owner/mirrored", "FileNotFoundError"), ("owner/old@refs/pr/9", "FileNotFoundError"),
    ("owner/gated", "PermissionError"), ("owner/asking", "PermissionError"),
    ("owner/forbidden", "PermissionError"), ("owner/token", "PermissionError"),
    ("owner/down", "OSError"), ("owner/portal", "OSError"),
]  # fmt: skip


def spoil_cache(cache):
    """Copies of a cached repository under other names that lack something."""
    source = cache / "models--owner--old"
    for name, lost in {
        "partial": ["snapshots/*/model.safetensors"],
        "unlisted": ["trees"],
        "strange": ["trees", "snapshots/*/tokenizer_config.json"],
        "dangling": ["trees", "blobs/*"],
    }.items():
        copy = shutil.copytree(source, cache / f"models--owner--{name}", symlinks=True)
        for path in [path for pattern in lost for path in copy.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def hub(folder, sharded, tmp_path_factory):
    """Results of four processes: with a hub, with that hub gone, without a network, and forbidden to ask."""
    root = tmp_path_factory.mktemp("hub")
    home, empty = root / "home", root / "empty"
    commit = f"owner/old@{make_commit('owner/old', 'main')}"
    models = ["owner/old", commit, f"{MLM}@refs/pr/4", "owner/sharded", "owner/resumed"]
    steps = [(name, True) for name in models] + [(name, True) for name, _ in ERRORS]
    steps += [("owner/dropped", True), ("owner/dropped", True)]
    with serve_hub(make_repositories(folder, sharded)) as server:
        place = f"http://127.0.0.1:{server.server_port}"
        online = end_driver(start_driver(root, steps, place, home))
    spoil_cache(home / "hub")
    cached = [(name, True) for name in models] + [("owner/nowhere", True)]
    copies = [
        (f"owner/{name}", False)
        for name in ("partial", "unlisted", "strange", "dangling", "nowhere")
    ]
    started = (
        start_driver(root, cached, place, home),
        start_driver(root, [(MLM, False)], "http://nowhere.invalid", empty),
        start_driver(root, [("owner/old", True), *copies], place, home, HF_HUB_OFFLINE="1"),
    )
    closed, unresolved, offline = (end_driver(one) for one in started)
    results = {"online": online, "closed": closed, "unresolved": unresolved, "offline": offline}
    return SimpleNamespace(**results, seen=server.seen, commit=commit, home=home)


@pytest.fixture(scope="module")
def expected(folder):
    """Logits of the folder itself, loaded in this process."""
    return run_model(*load_vilt(folder, answers=ANSWERS, seed=5)).tolist()


class TestHub:
    def test_logits_equal_those_of_the_folder(self, hub, expected, sharded):
        assert np.ptp(expected) > 0.01
        for name in ("owner/old", hub.commit, f"{MLM}@refs/pr/4", "owner/resumed"):
            np.testing.assert_allclose(hub.online[name]["logits"], expected, rtol=1e-5, atol=1e-6)
        of_parts = run_model(*load_vilt(sharded, answers=ANSWERS, seed=5)).tolist()
        np.testing.assert_allclose(
            hub.online["owner/sharded"]["logits"], of_parts, rtol=1e-5, atol=1e-6
        )

    def test_only_what_is_needed_is_asked_for(self, hub, folder):
        files = {
            path.split("/")[-1] for _, path in hub.seen if "/resolve/" in path or "/cdn/" in path
        }
        assert {
            "config.json",
            "model.safetensors",
            "vocab.txt",
            "model.safetensors.index.json",
        } <= files
        assert not {name for name in files if name.endswith((".bin", ".py", ".md"))}
        assert not [path for _, path in hub.seen if "/onnx/" in path or "bert-base" in path]
        weights = [path for way, path in hub.seen if way == "GET" and "/cdn/owner/old/" in path]
        assert len(weights) == 1
        assert not (folder.parent / "executed").exists()

    def test_cache_serves_when_the_hub_is_gone(self, hub, expected):
        for name in ("owner/old", hub.commit, f"{MLM}@refs/pr/4", "owner/resumed"):
            np.testing.assert_allclose(hub.closed[name]["logits"], expected, rtol=1e-5, atol=1e-6)
        assert hub.closed["owner/sharded"]["logits"] == pytest.approx(
            hub.online["owner/sharded"]["logits"]
        )
        np.testing.assert_allclose(
            hub.offline["owner/old"]["logits"], expected, rtol=1e-5, atol=1e-6
        )

    def test_partial_snapshot_does_not_pass_for_whole(self, hub):
        for name in ("partial", "strange", "dangling", "nowhere"):
            found = hub.offline[f"owner/{name}"]
            assert "OSError" in found["kinds"], name
            lack = f"owner/{name} at 'main' is not, or not wholly, in the cache {hub.home / 'hub'}"
            assert (
                found["message"]
                == f"{lack}, and HF_HUB_OFFLINE=1 keeps it from being fetched: unset that for the first time."
            )
        assert "model.safetensors" in hub.offline["owner/unlisted"]["files"]

    def test_no_network_fails_fast(self, hub):
        for found, reason in (
            (hub.closed["owner/nowhere"], r"failed \(.*refused\)"),
            (hub.unresolved[MLM], r"http://nowhere\.invalid failed \(.+\)"),
        ):
            assert "ConnectionError" in found["kinds"]
            assert re.search(
                f"{reason}, and .* is not, or not wholly, in the cache .*", found["message"]
            )
            assert found["seconds"] < 8

    @pytest.mark.parametrize(("name", "kind"), ERRORS)
    def test_errors_are_one_sentence(self, hub, name, kind):
        found = hub.online[name]
        assert {"OSError", kind} <= set(found["kinds"])
        assert found["seconds"] < 5
        assert "\n" not in found["message"]
        assert name.split("@")[0] in found["message"]
        assert found["message"].count(". ") == 0

    def test_errors_say_what_to_do(self, hub):
        said = {name: hub.online[name]["message"] for name, _ in ERRORS}
        assert said[MLM] == (
            f"{MLM} has no safetensors weights at 'main', and pickled weights are never loaded here; "
            f"its pull request refs/pr/4 has them: use checkpoint='{MLM}@refs/pr/4'"
        )
        assert "its main branch has them: use checkpoint='owner/old'" in said["owner/old@bare"]
        assert (
            "convert them at https://huggingface.co/spaces/safetensors/convert"
            in said["owner/pickled"]
        )
        assert "refs/pr/3 has them (not made by the hub's own converter" in said["owner/stranger"]
        assert "has no revision 'refs/pr/9'" in said["owner/old@refs/pr/9"]
        for name in ("nowhere", "gone", "mirrored", "gated", "asking", "forbidden", "token"):
            assert "`hf auth login`" in said[f"owner/{name}"], name
        assert "knows no model owner/nowhere: check the name" in said["owner/nowhere"]
        assert "gives no access to owner/gated: ask for it at http" in said["owner/gated"]
        assert "status 503" in said["owner/down"]

    def test_broken_connection_is_named_and_a_next_call_succeeds(self, hub, expected):
        broken, mended = hub.online["owner/dropped"]
        assert "ConnectionError" in broken["kinds"]
        assert re.search(
            r"^the connection to http://127\.0\.0\.1:\d+ failed \(.+\), and", broken["message"]
        )
        np.testing.assert_allclose(mended["logits"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="needs ../shared")
def test_vilt_b32_itself_loads_from_folder_and_hub(tmp_path):
    """The hub checkpoint's own configuration, at its own size, with drawn weights."""
    config = json.loads((OFFICIAL / "config.json").read_text())
    folder = write_checkpoint(tmp_path / "mlm", config)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(OFFICIAL / name, folder / name)
    repositories = {MLM: Repository({"refs/pr/4": list_revision(folder, "none")})}
    with serve_hub(repositories) as server:
        place, name = f"http://127.0.0.1:{server.server_port}", f"{MLM}@refs/pr/4"
        started = start_driver(tmp_path, [(name, True)], place, tmp_path / "home")
        model, processor = load_vilt(folder, answers=ANSWERS, seed=5)
        expected = run_model(model, processor)
        found = end_driver(started)[name]
    assert sum(parameter.numel() for parameter in model.vilt.parameters()) > 110e6
    assert len(processor.tokenizer) == 30522
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)
    shutil.rmtree(tmp_path)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("dandelin/vilt-b32-mlm", ("dandelin/vilt-b32-mlm", "main")),
            ("a/b.c_d@refs/pr/4", ("a/b.c_d", "refs/pr/4")),
            ("a/b@v1.0", ("a/b", "v1.0")),
        ],
    )
    def test_names_of_the_hub(self, name, parts):
        assert is_hub_name(name)
        assert split_name(name) == parts

    @pytest.mark.parametrize(
        "name",
        [
            "fresh-smal",
            "a/b/c",
            "/a/b",
            "./a",
            "../a",
            "~/a",
            "a/b@",
            "a/b@ c",
            "a/..",
            "a/b--c",
            "",
            "a b/c",
        ],
    )
    def test_other_names_are_no_request(self, name):
        assert not is_hub_name(name)
        with pytest.raises(FileNotFoundError, match="expected owner/repo"):
            fetch_checkpoint(name)


class TestFolder:
    """Folders, in this process."""

    @pytest.fixture
    def copy(self, folder, tmp_path):
        return shutil.copytree(folder, tmp_path / "copy")

    def test_path_of_a_fresh_model(self):
        model, _ = load_vilt(Path("fresh-small"), answers=ANSWERS)
        assert model.config.hidden_size == 64

    def test_old_preprocessing_is_completed(self, folder):
        _, processor = load_vilt(folder, answers=ANSWERS)
        images = processor.image_processor
        assert (images.do_resize, images.do_rescale, images.do_normalize, images.do_pad) == (
            True,
        ) * 4
        assert images.rescale_factor == 1 / 255
        assert images.size["shortest_edge"] == 384
        assert images.size_divisor == 32
        pixels = np.random.default_rng(1).integers(0, 256, (384, 416, 3), dtype=np.uint8)
        found = processor(Image.fromarray(pixels), "what?", return_tensors="pt")["pixel_values"][0]
        np.testing.assert_allclose(found.permute(1, 2, 0), (pixels / 255 - 0.5) / 0.5, atol=1e-6)
        assert processor.tokenizer.tokenize("What colors?") == ["what", "color", "##s", "?"]
        assert processor.tokenizer.model_max_length == 40

    @pytest.mark.parametrize("tied", [True, False, None])
    def test_body_is_kept_whether_the_word_head_is_tied(
        self, tied, copy, expected, capfd, caplog, recwarn
    ):
        config = json.loads((copy / "config.json").read_text())
        config = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
        write_json(
            copy / "config.json", config if tied is None else config | {"tie_word_embeddings": tied}
        )
        recwarn.clear()
        model, processor = load_vilt(copy, answers=ANSWERS, seed=5)
        assert capfd.readouterr() == ("", "")
        assert not caplog.records
        assert not recwarn.list
        np.testing.assert_allclose(run_model(model, processor), expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(
        "name",
        ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
         "special_tokens_map.json"],
    )  # fmt: skip
    @pytest.mark.parametrize("content", ["{broken", "", "[]"])
    def test_broken_json_is_named(self, name, content, copy):
        (copy / name).write_text(content)
        with pytest.raises(OSError, match=re.escape(f"{copy / name} is no valid")):
            load_vilt(copy, answers=ANSWERS)

    @pytest.mark.parametrize(
        ("lost", "message"),
        [
            ("config.json", "{0} holds no config.json"),
            (
                "model.safetensors",
                "{0} holds no .safetensors weights, and its pytorch_model.bin is pickled and never",
            ),
        ],
    )
    def test_missing_file_is_named(self, lost, message, copy):
        (copy / lost).unlink()
        with pytest.raises(FileNotFoundError, match=re.escape(message.format(copy))) as error:
            load_vilt(copy, answers=ANSWERS)
        assert "\n" not in str(error.value)
        assert lost == "config.json" or "https://huggingface.co/spaces/safetensors/convert" in str(
            error.value
        )

    def test_missing_part_of_the_weights_is_named(self, sharded, tmp_path):
        copy = shutil.copytree(sharded, tmp_path / "copy")
        part = sorted(copy.glob("*.safetensors"))[1]
        part.unlink()
        with pytest.raises(
            FileNotFoundError, match=f"{copy} lacks {part.name}, a part of the weights"
        ):
            load_vilt(copy, answers=ANSWERS)
        (copy / "model.safetensors.index.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"but neither model\.safetensors nor"):
            load_vilt(copy, answers=ANSWERS)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "bert"}, "a model of type 'bert', not a ViLT"),
            ({"hidden_size": "wide"}, "expected int, got str"),
            ({"num_attention_heads": 5}, "not a multiple"),
            ({"hidden_act": "unheard"}, "unheard"),
        ],
    )
    def test_impossible_configuration_is_named(self, change, message, copy):
        config = json.loads((copy / "config.json").read_text())
        write_json(copy / "config.json", config | change)
        with pytest.raises(OSError, match=message) as error:
            load_vilt(copy, answers=ANSWERS)
        assert str(copy) in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"]
    )
    def test_weights_that_are_none_are_named(self, content, copy):
        (copy / "model.safetensors").write_bytes(content)
        with pytest.raises(OSError, match=f"cannot be loaded from {copy}"):
            load_vilt(copy, answers=ANSWERS)

    def test_code_in_the_folder_is_never_run(self, folder):
        load_vilt(folder, answers=ANSWERS)
        assert not (folder.parent / "executed").exists()
