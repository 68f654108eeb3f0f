"""The model: a frozen pretrained base, LoRA on its top layers, pooling, fused features and a linear head."""
