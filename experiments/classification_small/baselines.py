"""python experiments/classification_small/baselines.py DATASET FOLDER NUM_TEXTS RESULTS: rows of results.csv.

Beside a classifier's results.json: the most frequent class, and TF-IDF of words and word pairs with logistic
regression (scikit-learn, its defaults), fitted on NUM_TEXTS training texts drawn by seed 0 and on all.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gpt2x.commands.hydra_entry import compose_config
from gpt2x.data.rows.labelled import label_ids
from gpt2x.data.sources.labelled import Labelled
from gpt2x.evaluate.metrics import METRICS, confusion_matrix


def main(name: str, folder: str, num_texts: str, results: str) -> None:
    """Print the rows of one data set."""
    dataset = compose_config("prepare", [f"dataset={name}", f"dataset.path={folder}", "seq_len=8"]).dataset
    corpus = Labelled(dataset, Path())
    names = corpus.labels()
    texts = {split: [example.text for example in corpus.examples(split)] for split in ("train", "val")}
    labels = {split: np.array(label_ids(corpus, split, names)) for split in ("train", "val")}
    all_texts = len(texts["train"])
    seen = np.random.default_rng(0).permutation(all_texts)[: int(num_texts)]

    rows = []
    found = json.loads(Path(results).read_text(encoding="utf-8"))["results"]
    rows.append(("gpt2x", min(int(num_texts), all_texts), scores(np.array(found["confusion"]))))
    majority = np.full(len(labels["val"]), np.bincount(labels["train"]).argmax())
    rows.append(("most frequent class", all_texts, scores(confusion_matrix(labels["val"], majority, len(names)))))
    for chosen in dict.fromkeys((tuple(seen), tuple(range(all_texts)))):
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
        model.fit([texts["train"][i] for i in chosen], labels["train"][list(chosen)])
        predicted = model.predict(texts["val"])
        rows.append(("TF-IDF", len(chosen), scores(confusion_matrix(labels["val"], predicted, len(names)))))
    for model, count, values in rows:
        cells = [f"{value:.4f},{error:.4f}" for value, error in values]
        print(f"{name},{model},{count},{len(labels['val'])},{','.join(cells)}")


def scores(confusion: np.ndarray) -> list[tuple[float, float]]:
    """Each metric with its standard error."""
    return [(metric(confusion), standard_error(metric, confusion)) for metric in METRICS.values()]


def standard_error(metric: Callable[[np.ndarray], float], confusion: np.ndarray) -> float:
    """The jackknife's (Efron and Stein, 1981): the metric with one text left out, which only its cell decides.

    sqrt((n - 1) / n sum_i (m_i - mean)^2); for accuracy p it is sqrt(p (1 - p) / (n - 1)). NaN below two texts.
    """
    cells = np.argwhere(confusion)
    total = int(confusion.sum())
    if total < 2:
        return float("nan")
    counts = confusion[tuple(cells.T)]
    values = np.empty(len(cells))
    for number, cell in enumerate(cells):
        without = confusion.copy()
        without[tuple(cell)] -= 1
        values[number] = metric(without)
    mean = np.average(values, weights=counts)
    return float(np.sqrt((total - 1) / total * (counts * (values - mean) ** 2).sum()))


if __name__ == "__main__":
    main(*sys.argv[1:])
