"""What the tools import: those that only read files nothing that is heavy, and an evaluation only what it uses."""

import json
import os
import subprocess
import sys

import pytest

from end_to_end.tools import KEPT, ROOT, evaluate_here
from miniatures.voc import write_voc
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import RunStore, read_counts, read_result

HEAVY = ("torch", "torchvision", "mmcv", "mmseg", "open_clip", "timm", "transformers", "diffusers", "sklearn", "skimage")
# Command lines of an evaluation with an unknown name or a wrong value.
WRONG = [
    ["segmentor=nope"],
    ["segmentor=[sclip,nope]"],
    ["dataset=nope"],
    ["dataset=suite/nope"],
    ["table=nope"],
    ["refine=nope"],
    ["segmentor=sclip", "recipe.nope=1"],
    ["segmentor=sclip", "vfm=dino"],
    ["segmentor=proxyclip", "beta=x"],
    ["recipe.window=abc"],
    ["recipe.window=224", "recipe.stride=300"],
    ["recipe.window=[224,336,abc]"],
    ["clip=ViT-B-17"],
    ["clip=nope.pt"],
    ["weights=nope.pt"],
    ["protocol=nope"],
    ["shard=3/2"],
    ["runtime.batch=no"],
    ["plugins=[nope.py]"],
]
SEGMENT_WRONG = [["segmentor=nope"], ["clip=nope"], ["recipe.window=abc"]]
# Runs command lines one after another in one process, and tells after each its status and what is imported by then.
SEVERAL = """
import json, runpy, sys
for line in json.loads(sys.argv.pop()):
    sys.argv = line
    status = 0
    try:
        runpy.run_path(line[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    print("\\nMODULES", status, *sorted(name for name in sys.modules if name.count(".") < 2), flush=True)
"""


def imported(lines, cwd):
    """The modules after each of the command lines (status, words), and what all have printed."""
    commands = json.dumps([[str(ROOT / "tools" / words[0]), *map(str, words[1:])] for _, words in lines])
    environment = {key: value for key, value in os.environ.items() if key not in KEPT}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, commands], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("MODULES")]
    assert [int(status) for status, *_ in told] == [status for status, _ in lines], done.stdout + done.stderr
    return [set(modules) for _, *modules in told], done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`runs` with a result, `parts` of another run, and `paper` with a result that says it is one that a paper has."""
    folder = tmp_path_factory.mktemp("startup")
    assert evaluate_here("segmentor=sclip", "limit=2", f"output={folder}/runs") == 0
    assert evaluate_here("segmentor=sclip", "limit=2", "shard=1/1", f"output={folder}/parts") == 0
    (path,) = result_paths(folder / "runs")
    counts, hashes, _ = read_counts(path.with_suffix(".npz"))
    result = read_result(path) | {"clip": "vit_b16", "dataset": "voc21", "overridden": {"window": 448}, "partial": False}
    with RunStore(folder / "paper", "voc21", "vit_b16", "sclip", result["fingerprint"]) as store:
        for name, records in counts.items():
            store.add(name, records, hashes[name])
        store.finish(result | {"overridden": {}}, list(counts))
    write_voc(folder / "data")
    return folder


def test_tools_that_read_files_import_nothing_heavy(folder, tmp_path):
    (path,) = result_paths(folder / "runs")
    lines = [
        (0, ["report.py", folder / "runs", "partial=true"]),
        (0, ["compare.py", "--help"]),
        (0, ["new_method.py", "mine"]),
        (2, ["new_method.py", "sclip"]),
        (2, ["report.py", folder / "runs", "metrc=mIoU"]),
        (0, ["merge.py", "--help"]),
        (0, ["datasets.py", "list", f"data_root={folder / 'data'}"]),
        # The next ones need SciPy or pandas.
        (0, ["compare.py", path, path]),
        (2, ["compare.py", path, "--published"]),
        (3, ["compare.py", folder / "paper", "--published"]),  # two images say little
        (0, ["datasets.py", "list", "voc21", f"data_root={folder / 'data'}"]),
        (0, ["report.py", folder / "runs", "partial=true", "--csv"]),
        (0, ["report.py", folder / "runs", "partial=true", "html=true", "intervals=true", "out=page"]),
        (0, ["merge.py", folder / "parts"]),
        # And Hydra.
        (0, ["eval.py", "--help"]),
        (2, ["eval.py", "segmentr=sclip"]),
        *((2, ["eval.py", *words]) for words in WRONG),
        *((2, ["segment.py", "nope.jpg", "classes=cat; dog", *words]) for words in ([], *SEGMENT_WRONG)),
    ]
    after, printed = imported(lines, tmp_path)
    assert not after[-1] & set(HEAVY)
    assert not after[1] & {"cv2", "mmengine"}
    assert not after[6] & {"pandas", "scipy", "hydra", "matplotlib"}
    assert "hydra" not in after[13]
    assert "4 of 1449 images" in printed
    assert "sclip with vit_b16 on voc21: " in printed


def test_an_evaluation_imports_what_it_uses(folder, tmp_path):
    run = ["segmentor=sclip", "limit=1", "runtime.threads=1"]
    lines = [
        (0, ["eval.py", *run, "dry_run=true"]),
        (0, ["eval.py", *run]),
        (0, ["eval.py", *run, "dataset=voc21", f"data_root={folder / 'data'}"]),
    ]
    (planned, demo, voc), printed = imported(lines, tmp_path)
    assert not planned & {"open_clip", "torchvision", "pandas", "mmseg"}
    unused = {*HEAVY, "scipy", "torch._dynamo"} - {"torch", "torchvision", "open_clip"}
    assert not demo & unused
    assert not voc & unused - {"mmcv", "mmseg", "scipy"}
    assert "mmseg" in voc
    assert "OneDL" not in printed


# Runs a tool, to which Ctrl-C comes with the first import of a library.
INTERRUPTED = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("hydra", "omegaconf", "numpy", "rich", "torch", "yaml"):
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("tool", sorted(path.name for path in (ROOT / "tools").glob("*.py")))
def test_an_interrupt_while_a_tool_starts_is_one_line(tool, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, ROOT / "tools" / tool], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr == "error: interrupted; what was finished is kept; rerun the same command to resume\n"
