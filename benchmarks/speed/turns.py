"""Contenders in processes of their own that take turns, so that all see the same machine and none the others' memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

ANSWER = "answer: "


def spread(values: Any, form: str) -> str:
    """
    :param values: one per round
    :param form: of each number, such as ``".2f"``
    :return: their median, and the quartiles in brackets
    """
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{median:{form}} ({low:{form}}-{high:{form}})"


def serve(work: Callable[[int], Any]) -> None:
    """
    Do work as told: every line of the input is an amount, every answer a line of the output.

    :param work: takes an amount, returns what JSON can say
    """
    print(ANSWER + '"ready"', flush=True)
    for line in sys.stdin:
        print(ANSWER + json.dumps(work(int(line))), flush=True)


class Contender:
    """
    A script that ends in ``serve``, run in a process of its own.

    :param arguments: the script, and what it is given
    :param threads: of all libraries
    """

    def __init__(self, arguments: list[str], threads: int = 1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def answer(self) -> Any:
        """
        :return: its next answer
        :raises RuntimeError: if it ended; the text is its error
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError((self._process.communicate()[1].strip().splitlines() or ["no error was printed"])[-1])

    def work(self, amount: int) -> Any:
        """
        :param amount: how much is to be done
        :return: the answer
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{amount}\n")
        self._process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.communicate()


def take_turns(
    commands: dict[str, list[str]], rounds: int, amount: int, threads: int = 1
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """
    :param commands: arguments of each contender, by name
    :param rounds: how often each works
    :param amount: how much it does each time
    :param threads: of all libraries
    :return: answers by round of each contender that started, and for the others, why not
    """
    contenders, failed = {}, {}
    for name, arguments in tqdm(commands.items(), desc="warm up", leave=False):
        contender = Contender(arguments, threads)
        try:
            contender.answer()
            contenders[name] = contender
        except RuntimeError as error:
            failed[name] = str(error)
    answers: dict[str, list[Any]] = {name: [] for name in contenders}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, contender in contenders.items():
            answers[name].append(contender.work(amount))
    for contender in contenders.values():
        contender.end()
    return answers, failed
