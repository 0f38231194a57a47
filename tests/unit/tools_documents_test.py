"""The reader of the documents notices what is wrong in one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import documents

PAGE = """
# Page

```bash
echo "took 1.5 s"
```

```text
took 0.2 s
```

Words.

```text
only read
```

<!-- not run: it needs systemd -->
```bash
false
```

```python
x = 1
```
```python
print(x)
```
"""


def test_blocks_have_lines_reasons_and_what_they_print() -> None:
    blocks = documents.blocks_of("p.md", PAGE)
    assert [(str(b), b.language, b.not_run, b.prints) for b in blocks] == [
        ("p.md:5", "bash", "", "took 0.2 s\n"),
        ("p.md:15", "text", "", None),
        ("p.md:20", "bash", "it needs systemd", None),
        ("p.md:24", "python", "", None),
        ("p.md:27", "python", "", None),
    ]


@pytest.mark.parametrize("fence", ["```\nx\n```", "```fortran\nx\n```"])
def test_a_block_in_no_known_language_is_refused(fence: str) -> None:
    with pytest.raises(ValueError, match=r"p\.md:1"):
        documents.blocks_of("p.md", fence)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1.5 s", "a   17 s\n", True),
        ("a 1.5 s", "b 1.5 s", False),
        ("a\n...\nz", "a\nb\nc\nz", True),
        ("a\n...\nz", "a\nb\nc\ny", False),
        ("a\n", "a\nb\n", False),
        ("x (1)", "x (22)", True),
        ("id 0a1b2c3d", "id 9f8e7d6c", True),
    ],
)
def test_numbers_may_differ_words_may_not(shown: str, printed: str, same: bool) -> None:
    assert documents.same_words(shown, printed) is same


def run(page: str, folder: Path) -> None:
    with documents.reader(folder, dict(os.environ)) as reader:
        for block in documents.blocks_of("p.md", page):
            if block.language in documents.RUN and not block.not_run:
                reader.follow(block, seconds=60)


def test_blocks_share_a_shell_and_a_folder(tmp_path: Path) -> None:
    run(
        "```bash\nsleep 1000 &\ny=5\necho $y > f\n```\n```bash\necho $y\n```\n```text\n7\n```\n"
        "```python\nx = open('f').read()\n```\n```python\nprint(x)\n```\n```text\n1\n```\n",
        tmp_path,
    )


@pytest.mark.parametrize(
    "page",
    [
        "```bash\nfalse\ntrue\n```",
        "```bash\nfalse | true\n```",
        "```bash\nexit 0\n```",
        "```python\nraise SystemExit\n```",
        "```python\n1/0\n```",
        "```bash\necho a\n```\n```text\nb\n```",
    ],
)
def test_a_block_that_fails_or_prints_something_else_fails(page: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"p\.md:2"):
        run(page, tmp_path)
