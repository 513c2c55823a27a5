"""Numbers on the command line."""

import argparse


def number_of_workers(text: str) -> int | str:
    """A number, or ``auto``."""
    if text != "auto" and (not text.isdecimal() or not int(text)):
        raise argparse.ArgumentTypeError(f"must be auto, or a number from 1 on; got {text}")
    return text if text == "auto" else int(text)


def amount(text: str) -> float:
    """How much of something, from none on."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0 on; got {text}")
    return found
