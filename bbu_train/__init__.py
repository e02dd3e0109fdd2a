"""bbu_train: fine-tune Qwen2.5-VL to find and describe telecom equipment."""
