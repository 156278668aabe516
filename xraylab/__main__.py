"""The console command: ``xraylab <command> [overrides]`` is ``python -m xraylab.<command> [overrides]``."""

from __future__ import annotations

import importlib
import sys

from xraylab.errors import EXIT_USER, did_you_mean

COMMANDS = {
    "train": "train, validate and test one run, or a sweep with -m",
    "evaluate": "repeat a run's evaluation from its checkpoint",
    "predict": "predict a split, a folder, a list or single files with a run",
    "explain": "show where in its images a run's prediction comes from",
    "serve": "serve a run to a browser, and to programs",
    "export": "write a run as one file for other programs, ONNX or torch.export",
    "combine": "make several models one, from their prediction tables",
    "report": "write the report of a run, or of several together",
    "check": "say whether a download is whole, and what is wrong with it",
    "prepare": "decode and resize a dataset once, ahead of training",
    "describe": "count and picture a dataset in a report",
    "sweep_yaml": "write a sweep as a file for W&B and its agents",
    "sample": "write a synthetic dataset in the layout of a real one",
}


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in COMMANDS:
        sys.argv[:2] = [f"xraylab {word}"]
        importlib.import_module(f"xraylab.{word}").main()
        return
    lines = ["usage: xraylab <command> [key=value ...]", ""] + [f"  {c:<12}{text}" for c, text in COMMANDS.items()]
    lines += ["", "xraylab <command> --help tells more."]
    if word in ("-h", "--help"):
        print("\n".join(lines))
        return
    print(f"'{word}' is not a command.{did_you_mean(word, COMMANDS)}\n\n" + "\n".join(lines), file=sys.stderr)
    sys.exit(EXIT_USER)


if __name__ == "__main__":
    main()
