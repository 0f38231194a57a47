"""README and those of docs/ that readers follow, followed to the letter, page by page in order."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from pathlib import Path

import pytest

import compiled_model
from support import documents
from support.broker import BINARY
from support.examples import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "docs/python.md",
    "docs/examples.md",
    "docs/sharing.md",
    "docs/migrating.md",
    "docs/lora.md",
)
BLOCKS = {page: documents.blocks_of(page, (ROOT / page).read_text()) for page in PAGES}
# The folders that a reader of these pages has.
MAKE = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import small_models
small_models.bert(pathlib.Path("bert"))
"""
PAINTER = """
small_models.sdxl(pathlib.Path("painter"))
small_models.ldm_single_file(pathlib.Path("painter"), pathlib.Path("painter.safetensors"))
"""
STYLES = """
import make_adapters, torch
from safetensors.torch import save_file
small_models.sdxl(pathlib.Path("pipeline"))
import diffusers
unet = diffusers.UNet2DConditionModel.from_pretrained("pipeline/unet")
for seed, name in enumerate(("oil", "ink")):
    save_file(make_adapters.adapter({"unet": unet}, seed=seed), f"{name}.safetensors")
"""
MODELS = {"docs/sharing.md": "", "docs/migrating.md": PAINTER, "docs/lora.md": STYLES}
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.not_run]


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A reader's folder, with the sources in sight, and an environment with the build in it."""
    for name in ("examples", "build"):
        (tmp_path / name).symlink_to(ROOT / name)
    run = Path("/tmp") / f"mb-{uuid.uuid4().hex[:8]}"  # short: it holds socket paths
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MODELBROKER_")
    }
    environment |= {
        "PATH": f"{Path(BINARY).parent}:{Path(sys.executable).parent}:{environment['PATH']}",
        "MODELBROKER_RUN_DIRECTORY": str(run),
        "MODELBROKER_INSTANCE": f"t{uuid.uuid4().hex[:12]}",
        "MODELBROKER_RAM_BUDGET": "2GiB",
        "MODELBROKER_ENDPOINT": f"ipc://{run}/broker.sock",
        "MODEL_FOLDER": str(compiled_model.demo_model()),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return tmp_path, environment


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_does_what_it_says(
    page: str, place: tuple[Path, dict[str, str]]
) -> None:
    folder, environment = place
    if page == "docs/examples.md":  # what its first block of the C++ worker would make
        package = compiled_model.compiled_model(compiled_model.demo_model(), EXAMPLES)
        (folder / "minilm.compiled").symlink_to(package)
    try:
        with documents.reader(folder, environment) as reader:
            if page in MODELS:  # by the page's own Python: the libraries take long to import
                reader.follow(documents.Block(page, 0, "python", MAKE + MODELS[page]))
            for block in BLOCKS[page]:
                if block.language in documents.RUN and not block.not_run:
                    reader.follow(block)
    finally:
        shutil.rmtree(environment["MODELBROKER_RUN_DIRECTORY"], ignore_errors=True)


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_a_block_that_is_not_run_is_listed(block: documents.Block) -> None:
    assert len(block.not_run) > 5
    pytest.skip(f"{block} is not run: {block.not_run}")  # so that `make test` lists it


def test_the_pages_have_blocks_that_run() -> None:
    for page, blocks in BLOCKS.items():
        ran = [block for block in blocks if block.language in documents.RUN and not block.not_run]
        assert len(ran) >= 2, page
