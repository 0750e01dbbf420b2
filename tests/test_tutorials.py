"""The tutorials' commands and code, run as a reader would."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mdbackmap.models.library import shipped

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.md"))

pytestmark = pytest.mark.skipif("martini3" not in shipped(), reason="needs the shipped weights")


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_tutorial_runs(page, tmp_path):
    for path in (ROOT / "tutorials" / "data").iterdir():
        shutil.copy(path, tmp_path / path.name)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), flags=re.S)
    assert blocks, "a tutorial shows something to run"
    script = []
    for language, text in blocks:
        if language == "python":
            script.append(text)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command = line.split()
            assert command[0] == "mdbackmap"
            run([sys.executable, "-m", "mdbackmap", *command[1:]], tmp_path)
    if script:
        (tmp_path / "page.py").write_text("\n".join(script))
        run([sys.executable, "page.py"], tmp_path)


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
