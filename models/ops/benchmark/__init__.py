"""Parts of `models/ops/bench.py`: the problems, who computes them, what limits them and how much memory they take."""
