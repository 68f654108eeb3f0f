"""Predict with an exported folder: `python load_adapter.py FOLDER BASE < rows`, each {"text": "", "columns": {}}."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer


def numeric(value: float | None, low: float, high: float, scale: str, unit: float, knots: list[float]) -> list[float]:
    ends = np.clip([low, *knots, high, low if value is None else value], low, high) - low
    ends = np.log1p(ends / unit) if scale == "log" else ends
    hats = np.eye(len(ends) - 1) if knots else [[0.0, 1.0]]
    return [0.0 if value is None else float(np.interp(ends[-1], ends[:-1], hat)) for hat in hats]


def vector(value: list[float] | None, width: int, low: float, high: float, norm: float | None) -> list[float]:
    if value is None:
        return [0.0] * width
    if norm is not None:
        low, high = -(longest := max(norm, float(np.linalg.norm(value)))), longest
    return [float(part) for part in np.interp(value, [low, high], [-1, 1])]


def main(folder: str, base: str) -> None:
    warnings.filterwarnings("error", ".*missing adapter keys")
    card, head = json.loads(Path(folder, "head.json").read_text()), load_file(f"{folder}/head.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", truncation_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, folder) if card["adapter"] else model).eval()
    rows = [json.loads(line) for line in sys.stdin]
    extra = []
    for columns in (row["columns"] for row in rows):
        parts = {name: numeric(columns.get(name), **scale) for name, scale in card["numeric"].items()}
        for name, values in card["categorical"].items():
            parts[name] = [float(columns.get(name) == value) for value in values]
        parts |= {name: vector(columns.get(name), **bounds) for name, bounds in card["vectors"].items()}
        for one, other in card["crosses"]:
            parts[f"{one} x {other}"] = [number * part for part in parts[other] for number in parts[one]]
        extra.append([part for block in parts.values() for part in block])
    length = {"padding": True, "truncation": True, "max_length": card["max_tokens"]}
    batch = tokenizer([row["text"] for row in rows], return_tensors="pt", **length)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    mask[:, 0] = 1  # An empty text is one pad token.
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    last, mean = hidden[range(len(rows)), mask.sum(1) - 1], (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    pooled = mean if card["pooling"] == "mean" else last
    logits = torch.cat([pooled, torch.tensor(extra)], 1) @ head["weight"].T + head["bias"]
    scores = logits.double().sigmoid() if card["task"] in ("multilabel", "ranking") else logits.double().softmax(1)
    if card["task"] == "regression":
        low, high = card["range"]
        scores = low + (high - low) * (logits.double() + 0.5).clamp(0, 1)
    for row in scores.tolist():
        print(json.dumps(dict(zip(card["labels"], row, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
