"""Run exported models in stock transformers: `python stock.py <tasks.json> <out.pt>`, in a process without bbu_train.

Each task has a name, the folder of a model, the system turn, the question, files of pictures and `max_new_tokens`.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

sys.modules["bbu_train"] = None  # from here on its import fails


def messages(task):
    question = [{"type": "image"}, {"type": "text", "text": task["question"]}]
    return [{"role": "system", "content": task["system"]}, {"role": "user", "content": question}]


def answer(model, tokenizer, processor, task, path):
    pixels = processor(images=[Image.open(path)], return_tensors="pt")
    num_tokens = int(pixels["image_grid_thw"].prod()) // processor.merge_size**2
    text = tokenizer.apply_chat_template(messages(task), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * num_tokens), return_tensors="pt").input_ids
    inputs = {"input_ids": ids, **pixels, "mm_token_type_ids": (ids == model.config.image_token_id).int()}
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        generated = model.generate(**inputs, max_new_tokens=task["max_new_tokens"])[0, ids.shape[1] :]
    return {"ids": ids[0], "logits": logits, "generated": generated}


def main():
    torch.set_num_threads(1)
    tasks = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    for task in tasks:
        folder = task["folder"]
        model, info = Qwen.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        again = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
        tools = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
        results[task["name"]] = {
            "problems": sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])),
            "auto": [type(again).__name__, str(again.dtype)],
            "tied": model.lm_head.weight is model.get_input_embeddings().weight,
            "answers": [answer(model.eval(), *tools, task, path) for path in task["pictures"]],
        }
    torch.save(results, sys.argv[2])


main()
