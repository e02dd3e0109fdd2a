import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["bbu_train", "bbu_train.types.samples", "bbu_train.runs.identity"])
def test_modules_that_need_no_torch_do_not_load_it(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
