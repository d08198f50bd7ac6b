"""Weighted k-NN of 10,000 vectors among 50,000 of 384 dimensions, beside scikit-learn's and faiss's exact search.

    uv run python benchmarks/knn.py [--rounds 5] [--threads 2] [--vectors FILE.npz] [--out benchmarks/results/knn.json]

Ten classes, k = 20, temperature 0.07, float32, on the CPU. Every run is a process of its own, which makes the vectors (or
reads `train`, `targets` and `test` from FILE), does 500 queries to warm up, and then times all of them once, normalising
and indexing included. In each round every contestant runs once, so that a machine that slows down slows all of them down;
ratios are taken round by round, and their median is quoted. Memory is the peak of the process above what it held before.

scikit-learn is there twice: as its documentation has it (KNeighborsClassifier, cosine, weights from a function), and in
the fastest form that we found (unit vectors, euclidean NearestNeighbors, and the vote in numpy, as for faiss).
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES, K, TEMPERATURE = 10, 20, 0.07


def vectors(file: Path | None):
    """Training vectors (N, D), their targets (N,), test vectors (M, D): ten clouds that overlap."""
    if file is not None:
        arrays = np.load(file)
        return arrays["train"], arrays["targets"], arrays["test"]
    rng = np.random.default_rng(0)
    centres, targets = rng.normal(size=(CLASSES, 384)), rng.integers(CLASSES, size=60_000)
    x = (0.3 * centres[targets] + rng.normal(size=(60_000, 384))).astype(np.float32)
    return x[:50_000], targets[:50_000], x[50_000:]


def vote(similarity, targets):
    """Probabilities (M, K) of neighbours' similarities (M, k) and targets (M, k)."""
    weight = np.exp((similarity.astype(np.float64) - similarity[:, :1]) / TEMPERATURE)
    cells = np.arange(len(similarity))[:, None] * CLASSES + targets
    votes = np.bincount(cells.ravel(), weight.ravel(), len(similarity) * CLASSES).reshape(-1, CLASSES)
    return votes / votes.sum(axis=1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ours():
    import torch

    from unmask.evaluate import knn

    def predict(train, targets, test):
        train, targets, test = (torch.from_numpy(x) for x in (train, targets, test))
        return knn.predict(train, targets, test, CLASSES, k=K, temperature=TEMPERATURE)[1].numpy()

    return predict


def faiss_flat():
    import faiss

    def predict(train, targets, test):
        index = faiss.IndexFlatIP(train.shape[1])
        index.add(unit(train))
        similarity, neighbour = index.search(unit(test), K)
        return vote(similarity, targets[neighbour])

    return predict


def sklearn_fastest():
    from sklearn.neighbors import NearestNeighbors

    def predict(train, targets, test):
        search = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="euclidean").fit(unit(train))
        distance, neighbour = search.kneighbors(unit(test))
        return vote(1 - distance**2 / 2, targets[neighbour])

    return predict


def sklearn_documented():
    from sklearn.neighbors import KNeighborsClassifier

    def predict(train, targets, test):
        def weights(distance):
            return np.exp((1 - distance) / TEMPERATURE)

        classifier = KNeighborsClassifier(K, algorithm="brute", metric="cosine", weights=weights)
        return classifier.fit(train, targets).predict_proba(test)

    return predict


CONTESTANTS = {
    "unmask": ours,
    "faiss IndexFlatIP": faiss_flat,
    "scikit-learn, fastest": sklearn_fastest,
    "scikit-learn, as documented": sklearn_documented,
}


def resident(field: str) -> float:
    """MiB of memory that Linux counts for this process: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def once(name: str, settings) -> None:
    """In a process of its own: print seconds and MiB, write the probabilities."""
    predict, (train, targets, test) = CONTESTANTS[name](), vectors(settings.vectors)
    predict(train[:5000], targets[:5000], test[:500])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    began = time.perf_counter()
    probabilities = predict(train, targets, test)
    seconds = time.perf_counter() - began
    peak = resident("VmHWM")
    np.save(settings.answers, probabilities)
    print(json.dumps({"seconds": seconds, "mebibytes": peak - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--machine", default="", help="what to call this machine in the results")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.once:
        return once(settings.once, settings)
    threads = str(settings.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    memory: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds):
            for name in CONTESTANTS:
                file = Path(folder) / "answers.npy"
                command = [sys.executable, __file__, "--once", name, "--answers", str(file)]
                command += ["--vectors", str(settings.vectors)] if settings.vectors else []
                run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                line = json.loads(run.stdout)
                seconds[name].append(line["seconds"])
                memory[name].append(line["mebibytes"])
                answers[name] = np.load(file)
                print(f"round {number + 1}, {name}: {line['seconds']:.2f} s", flush=True)
    packages = ("torch", "scikit-learn", "faiss-cpu", "numpy")
    results = {
        "machine": settings.machine,
        "threads": settings.threads,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "vectors": str(settings.vectors.name) if settings.vectors else "ten Gaussian clouds, seed 0",
    }
    _, _, test = vectors(settings.vectors)
    for name in CONTESTANTS:
        agree = answers[name].argmax(axis=1) == answers["unmask"].argmax(axis=1)
        results[name] = {
            "seconds": statistics.median(seconds[name]),
            "ratio": statistics.median(a / b for a, b in zip(seconds[name], seconds["unmask"], strict=True)),
            "peak_mebibytes": statistics.median(memory[name]),
            "predictions_that_differ": int((~agree).sum()),
            "largest_difference_of_probabilities": float(np.abs(answers[name] - answers["unmask"]).max()),
        }
        print(
            f"{name}: {results[name]['seconds']:.2f} s, {results[name]['ratio']:.2f} times ours, "
            f"{results[name]['peak_mebibytes']:.0f} MiB, {(~agree).sum()} of {len(test)} predictions differ, "
            f"probabilities by at most {results[name]['largest_difference_of_probabilities']:.1e}"
        )
    if settings.out:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
