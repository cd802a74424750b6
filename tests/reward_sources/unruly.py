"""Reward functions that misbehave on the responses that ask for it, such as `hang`; elsewhere a response's length."""

import os
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from multiprocessing import Process

import numpy as np

CALLS: list[int] = []  # how many responses each call of this process had
VALUES = {
    "nan": float("nan"),
    "inf": -float("inf"),
    "huge": 10**400,
    "over float32": 1e39,
    "text": "1.5",
    "bool": True,
    "none": None,
    "decimal": Decimal(1),
    "vector": np.ones(1),
    "numpy bool": np.bool_(True),
    "float32": np.float32(0.1),
    "int64": np.int64(3),
    "0-d": np.array(2.5),
    "fraction": Fraction(1, 4),
}


def score(prompts, responses):
    CALLS.append(len(responses))
    return [_one(response) for response in responses]


def _one(response):
    if response == "hang":
        time.sleep(1000)
    if response == "slow":
        time.sleep(0.2)
    if response == "raise":
        raise KeyError("no such word")
    if response == "exit":
        sys.exit(3)
    if response == "die":
        os._exit(7)
    if response == "crash":
        os.kill(os.getpid(), 11)
    if response == "print":
        print("x" * 200_000 + "\n" + "line\n" * 100_000)
        print("to stderr", file=sys.stderr)
    return VALUES.get(response, len(response))


def short(prompts, responses):
    return [1.0] * (len(responses) - 1) if "short" in responses else [1.0] * len(responses)


def none(prompts, responses):
    return None


def by_name(prompts, responses):
    return {response: 1.0 for response in responses}


def alone(prompts, responses):
    """Cannot do more than one."""
    if len(responses) > 1:
        raise MemoryError("too many")
    return [2.0]


def calls(prompts, responses):
    """How many there were in this process."""
    CALLS.append(len(responses))
    return [len(CALLS)] * len(responses)


def spawns(prompts, responses):
    """Starts processes in two ways, writes down who they are, and waits for one of them."""
    started = subprocess.Popen(["sleep", "1000"])
    forked = Process(target=time.sleep, args=(1000,))
    forked.start()
    with open(responses[0], "w") as file:
        file.write(f"{os.getpid()} {started.pid} {forked.pid}\n")
    if responses[-1] == "die":
        os._exit(1)
    forked.join()
