"""How far the latency ratio of a model against itself is from 1, evaluation by evaluation. A command, not a test.

    python tests/benchmarks/latency.py samples/digits/model.onnx --data samples/digits/test.npz

Each evaluation is what ``onnxdpp evaluate MODEL MODEL`` does. DATA must hold nothing but the model's inputs, and
perhaps ``labels``. Ends with 1 where a ratio is further than `--tolerance` from 1.
"""

import argparse
import os
import sys

from onnxdpp import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description="The latency ratio of a model against itself.", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", default="labels", help="default labels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument("--tolerance", type=float, default=0.03, metavar="F", help="default 0.03")
    arguments = parser.parse_args()
    ratios: dict[int, list[float]] = {}
    for _ in range(arguments.repeats):
        found = evaluate(
            arguments.model, arguments.model, arguments.data,
            labels=arguments.labels, threads=arguments.threads, memory=False, provider="cpu",
        )  # fmt: skip
        for part in found["latency"]:
            ratios.setdefault(part["rows"], []).append(part["ratio"])
            load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
            print(
                f"{part['rows']:5} rows: {part['before'] * 1e6:9.1f} µs, ratio {part['ratio']:.4f}, "
                f"{part['disturbed']:.0%} of {4 * part['rounds']} measurements disturbed{load}",
                flush=True,
            )
    worst = max(abs(ratio - 1) for group in ratios.values() for ratio in group)
    print(f"furthest from 1: {worst:.4f}")
    sys.exit(worst > arguments.tolerance)


if __name__ == "__main__":
    main()
