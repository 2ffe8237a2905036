"""Fifty steps of training on a CPU give the recorded losses: the corpus, the tokenizer and the recipe are unchanged.

After a change on purpose, record anew:  python -m tests.unit.test_train      (and train the model: make train)
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny import MODEL_DIR, corpus, train

RECORDED = Path(__file__).parent / "losses_50_steps.json"


def fifty_losses() -> list[float]:
    _, _, losses = train.train(epochs=1, tokens_per_step=1024, device="cpu", stop_after=50)
    return [round(loss, 3) for loss in losses]


@pytest.fixture
def usual_torch():
    """Training sets torch to be deterministic for the whole process; the next test gets it as it was."""
    yield
    torch.use_deterministic_algorithms(False)


def test_fifty_steps_give_the_recorded_losses(usual_torch):
    losses, recorded = fifty_losses(), json.loads(RECORDED.read_text())
    assert len(losses) == len(recorded) == 50
    assert losses == pytest.approx(recorded, abs=0.01)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), "it learns"


def test_the_shipped_tokenizer_is_the_one_the_corpus_makes():
    made = json.loads(train.make_tokenizer(corpus.documents(0)).backend_tokenizer.to_str())
    assert made == json.loads((MODEL_DIR / "tokenizer.json").read_text())


def test_the_shipped_weights_are_of_the_model_that_train_makes():
    made = train.make_model(train.PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)).state_dict()
    shipped = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    assert {name: weight.shape for name, weight in shipped.state_dict().items()} == {
        name: weight.shape for name, weight in made.items()
    }
    assert shipped.dtype == torch.bfloat16


def test_a_row_of_a_batch_is_one_padded_document():
    documents = [[7] * 10, [8] * 16, [9] * 20, [6] * 2048]
    rows = [row for ids in train.batches(documents, tokens=64, pad=2, rng=train.random.Random(0)) for row in ids]
    assert sorted(len(row) for row in rows) == [16, 16, 32, 2048]
    assert sorted([i for i in row.tolist() if i != 2] for row in rows) == sorted(documents)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(fifty_losses()) + "\n")
    print(f"Recorded in {RECORDED}.")
