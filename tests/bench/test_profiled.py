"""The profiling wrapper."""

from __future__ import annotations

import pstats
import subprocess
import sys
from pathlib import Path


def test_a_module_runs_as_main_and_leaves_its_profile(tmp_path: Path) -> None:
    module = tmp_path / "worked.py"
    module.write_text(
        "import sys\ndef work(): return sum(range(1000))\n"
        "if __name__ == '__main__':\n    work()\n    print(sys.argv[1:])\n    sys.exit(3)\n"
    )
    out = tmp_path / "out.prof"
    start = f"import sys; sys.path.append({str(tmp_path)!r}); from bench.profiled import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, str(out), "worked", "--flag"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "['--flag']\n"), done.stderr
    assert any(name == "work" for _, _, name in pstats.Stats(str(out)).stats)  # type: ignore[attr-defined]
    assert "work" in out.with_suffix(".txt").read_text()
