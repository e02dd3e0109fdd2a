"""bbu_train: fine-tune Qwen2.5-VL to find and describe telecom equipment.

`bbu_train.load` gives a trained model. It is imported when it is first asked for, because it needs torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bbu_train.predict.trained_model import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from bbu_train.predict.trained_model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
