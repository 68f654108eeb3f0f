"""Predict with an exported folder: `python load_adapter.py FOLDER BASE < rows`, each {"text": "..", "columns": {..}}."""

import json
import math
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer


def numeric(value: float | None, low: float, high: float, scale: str, knots: int) -> list[float]:
    x, span = min(max((value or 0.0) - low, 0.0), high - low), high - low
    x = math.log1p(x) / math.log1p(span) if scale == "log" else x / span
    spread = [x] if knots == 2 else [max(0.0, 1.0 - abs(x * (knots - 1) - knot)) for knot in range(knots)]
    return [0.0 if value is None else part for part in spread]


def main(folder: str, base: str) -> None:
    warnings.filterwarnings("error", ".*missing adapter keys")
    card, head = json.loads(Path(folder, "head.json").read_text()), load_file(f"{folder}/head.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", truncation_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, folder) if card["adapter"] else model).eval()
    rows = [json.loads(line) for line in sys.stdin]
    extra: list[list[float]] = [[] for _ in rows]
    for columns, parts in zip((row["columns"] for row in rows), extra, strict=True):
        for name, scale in card["numeric"].items():
            parts += numeric(columns.get(name), **scale)
        for name, values in card["categorical"].items():
            parts += [float(columns.get(name) == value) for value in values]
    length = {"padding": True, "truncation": True, "max_length": card["max_tokens"]}
    batch = tokenizer([row["text"] for row in rows], return_tensors="pt", **length)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    mask[:, 0] = 1  # An empty text is one pad token.
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    last, mean = hidden[range(len(rows)), mask.sum(1) - 1], (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    pooled = mean if card["pooling"] == "mean" else last
    logits = torch.cat([pooled, torch.tensor(extra)], 1) @ head["weight"].T + head["bias"]
    for scores in logits.double().softmax(1).tolist():
        print(json.dumps(dict(zip(card["labels"], scores, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
