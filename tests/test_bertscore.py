"""BERTScore with a scorer made here, against the definition token by token."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from tap_hf import MetricError, MetricSpec
from tap_hf.tasks import LoadedMetric, load_metric

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "red", "blue", "circle", "square", "is", "left")
PREDICTIONS = ["the red circle", "a square", "blue", "the circle is left", "a a a a a a a a a a"]
REFERENCES = ["the blue circle is left", "a square", "the red square", "left", "red circle"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights, whose tokenizer states no longest input, as many published ones do."""
    folder = tmp_path_factory.mktemp("scorer")
    BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=10,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def bertscore(scorer: Path, layer: int = 1) -> LoadedMetric:
    return load_metric(MetricSpec("bertscore", model=str(scorer), layer=layer))


def by_definition(scorer: Path, prediction: str, reference: str, layer: int) -> float:
    """Return the F1 of one pair of texts: equations 1 and 2 of the paper, one token after the other."""
    tokenizer, model = AutoTokenizer.from_pretrained(scorer), AutoModel.from_pretrained(scorer).eval()
    states = []
    for text in (prediction, reference):
        inputs = tokenizer(text, truncation=True, max_length=10, return_tensors="pt")
        with torch.no_grad():
            vectors = model(**inputs, output_hidden_states=True).hidden_states[layer][0]
        states.append([vector / vector.norm() for vector in vectors])
    first, second = states
    precision = [max(float(x @ y) for y in second) for x in first[1:-1]]  # special tokens need no match
    recall = [max(float(x @ y) for x in first) for y in second[1:-1]]
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    return 2 * p * r / (p + r)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_it_is_the_mean_f1_of_greedily_matched_tokens(scorer: Path, layer: int) -> None:
    """In a batch of texts of many lengths, some longer than the scorer takes."""
    expected = [by_definition(scorer, p, r, layer) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    metric = bertscore(scorer, layer)
    assert metric.compute(PREDICTIONS, REFERENCES) == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert len({round(value, 3) for value in expected}) > 3


def test_more_texts_than_a_batch_holds(scorer: Path) -> None:
    metric = bertscore(scorer)
    mean = metric.compute(PREDICTIONS, REFERENCES)
    assert metric.compute(PREDICTIONS * 30, REFERENCES * 30) == pytest.approx(mean, abs=1e-6)


def test_equal_texts_score_one_and_wordless_ones_nothing(scorer: Path) -> None:
    metric = bertscore(scorer)
    assert metric.compute(REFERENCES, REFERENCES) == pytest.approx(1, abs=1e-6)
    assert metric.compute(["", "  "], ["a circle", "left"]) == 0
    assert metric.compute(["a circle", ""], ["", ""]) == 0


def test_a_scorer_that_does_not_load_or_is_too_shallow_is_refused(scorer: Path, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=f'got layer 3; "{scorer}" has 2'):
        bertscore(scorer, 3)
    for name in (tmp_path, "nobody/nothing"):
        with pytest.raises(MetricError, match=f'no model loads from "{name}" .* Expected a folder with'):
            load_metric(MetricSpec("bertscore", model=str(name), layer=1))
