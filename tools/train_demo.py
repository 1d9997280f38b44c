"""Trains a demo encoder from nothing: `python tools/train_demo.py vision [--steps N] [--out DIR]`, resumable, deterministic."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.training import vision

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    vision.options(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=100)
    vision.train(parser.parse_args())
