"""What is installed from a wheel runs from any folder, its configs with it."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_an_installed_wheel_finds_its_configs(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert all((tmp_path / "site" / name).is_file() for name in ("launchers/job.py", "bbu_train/py.typed"))
    templates = {path.relative_to(ROOT) for path in (ROOT / "bbu_train").rglob("*.j2")}
    assert templates
    assert all((tmp_path / "site" / template).is_file() for template in templates)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import runpy; "
    program += "sys.argv[1:] = ['--cfg', 'job', 'model=qwen25vl7b']; runpy.run_module('bbu_train', run_name='__main__')"
    shown = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in shown.stdout
