"""
Agent steps per second of whole training loops, learning active: ours against SB3's DQN and every Rainbow at hand.

``python benchmarks/speed/bench_training.py``. Every loop has a process of its own, and they take turns.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from machine import describe, machine
from training_peers import CONTENDERS, PARTS, WARM_UP
from turns import serve, spread, take_turns

HERE = Path(__file__).parent
#: Numerator, denominator
RATIOS = (
    ("sb3-rainbow, six parts", "tianshou Rainbow"),
    ("sb3-rainbow, six parts", "PFRL Rainbow"),
    ("sb3-rainbow", "tianshou Rainbow"),
    ("sb3-rainbow", "PFRL Rainbow"),
    ("sb3-rainbow", "the notebook's loop"),
    ("sb3-rainbow", "SB3 DQN"),
    ("sb3-rainbow", "sb3-contrib QR-DQN"),
    ("sb3-rainbow, bf16", "SB3 DQN"),
    ("sb3-rainbow, 8 native", "sb3-rainbow"),
    ("sb3-rainbow, 8 native", "SB3 DQN, 8"),
    ("sb3-rainbow, 8 native, bf16", "SB3 DQN, 8"),
    ("sb3-rainbow, 8 native, compiled", "SB3 DQN, 8"),
    ("sb3-rainbow, 8 native, bf16, compiled", "SB3 DQN, 8"),
)
SMOKE = ("sb3-rainbow", "SB3 DQN", "the notebook's loop")


def serve_loop(name: str, threads: int) -> None:
    """
    Train one contender as told.

    :param name: of the contender
    :param threads: torch's
    """
    th.set_num_threads(threads)
    contender = CONTENDERS[name]()
    contender.advance(WARM_UP + 200)

    def work(steps: int) -> dict[str, Any]:
        contender.seconds = dict.fromkeys(PARTS, 0.0)
        start = time.perf_counter()
        done = contender.advance(steps)
        seconds = time.perf_counter() - start
        return {"speed": done / seconds, "split": {part: contender.seconds[part] / seconds for part in PARTS}}

    serve(work)


def report(results: dict[str, Any]) -> str:
    """
    :param results: all of them
    :return: tables in Markdown
    """
    lines = [f"| loop | steps/s, median (quartiles) | {' | '.join(PARTS)} |", "|---" * (2 + len(PARTS)) + "|"]
    loops = results["loops"]
    for name, loop in loops.items():
        shares = [float(np.median([split[part] for split in loop["split"]])) for part in PARTS]
        cells = [f"{share:.0%}" if share else "-" for share in shares]
        lines.append(f"| {name} | {spread(loop['speed'], '.1f')} | {' | '.join(cells)} |")
    lines += ["", "| ratio, by round | median (quartiles) |", "|---|---|"]
    for over, under in RATIOS:
        if over in loops and under in loops:
            ratios = np.array(loops[over]["speed"]) / np.array(loops[under]["speed"])
            lines.append(f"| {over} / {under} | {spread(ratios, '.2f')} |")
    lines += [f"\nnot measured: {name}: {reason}" for name, reason in results["failed"].items()]
    return "\n".join([*lines, "", f"torch threads: {results['threads']}. {describe(results['machine'])}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--smoke", action="store_true", help="a few contenders, for a short time, and no files")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve_loop(args.serve, args.threads)
        return
    names, rounds = (list(SMOKE), 3) if args.smoke else (args.contenders, args.rounds)
    commands = {name: [__file__, "--serve", name, "--threads", str(args.threads)] for name in names}
    answers, failed = take_turns(commands, rounds, args.steps, args.threads)
    loops = {
        name: {part: [answer[part] for answer in rounds] for part in ("speed", "split")} for name, rounds in answers.items()
    }
    results = {"machine": machine(), "threads": args.threads, "loops": loops, "failed": failed}
    print(report(results))
    if not args.smoke:
        args.out.mkdir(exist_ok=True)
        (args.out / f"training-{args.threads}.json").write_text(json.dumps(results))
        (args.out / f"training-{args.threads}.md").write_text(report(results))


if __name__ == "__main__":
    main()
