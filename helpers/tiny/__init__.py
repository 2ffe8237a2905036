"""The small Llama: a corpus with known odds, the training that learns it, and the weights."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
DRAFT_DIR = Path(__file__).parent / "draft"
ADAPTER_DIR = Path(__file__).parent / "lora"
MODEL_NAME = "tiny-llama"
