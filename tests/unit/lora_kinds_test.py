"""Each kind of adapter beside each type of layer equals a layer whose weight was changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from support import lora_cases as cases
from support.lora_cases import Base, Case


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("case", "base"), cases.each(library=False))
def test_equals_changed_weights(case: Case, base: Base) -> None:
    cases.check_equals_changed_weights(case, base)
