"""
Tables and figures of a suite's results: ``python benchmarks/learning/report.py minatar``.

Deterministic; runs that have not ended are left out.

It writes into ``<out>/<suite>``: ``report.md`` (per game and over all games: interquartile means of the evaluation scores with
95% intervals by stratified bootstrap, see Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice"), ``curves`` and ``scores`` (PNG and SVG).
"""

import argparse
import csv
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rliable import library, metrics

from sb3_rainbow.sweep.suite import Run, expand, read

HERE = Path(__file__).parent

#: Points of a learning curve; the return at each is the mean of the episodes that ended in the stretch before
POINTS = 30
REPETITIONS = 2000
#: With fewer, no interval is worth its name
FEWEST_SEEDS = 3


def scores_of(run: Run) -> np.ndarray:
    """
    :param run: one that has ended
    :return: ``[n_games]``: scores of its evaluation
    """
    return np.loadtxt(run.folder / "scores.csv", skiprows=1, ndmin=1)


def episodes_of(run: Run) -> np.ndarray:
    """
    :param run: one that has ended
    :return: ``[n_episodes, 3]``: agent steps at the end of each episode while training, its return, seconds; none is no error
    """
    with (run.folder / "curve.csv").open() as file:
        return np.array(list(csv.reader(file))[1:], float).reshape(-1, 3)


def interval_of_mean(games: Sequence[np.ndarray]) -> tuple[float, float]:
    """
    By bootstrap of both, seeds and their games. Of one seed it tells how sure its own mean is, not the algorithm's.

    :param games: for each seed, ``[n_games]``: its scores
    :return: the ends of the 95% interval of the mean
    """
    generator = np.random.default_rng(0)
    means = []
    for _ in range(REPETITIONS):
        seeds = generator.integers(len(games), size=len(games))
        means.append(np.mean([generator.choice(games[seed], len(games[seed])).mean() for seed in seeds]))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def curve(run: Run) -> np.ndarray:
    """
    :param run: one that has ended
    :return: ``[POINTS]``: mean return of the episodes that ended in each stretch of the training; where none did, as before
    """
    episodes = episodes_of(run)
    stretch = np.minimum(episodes[:, 0] * POINTS // (run.steps + 1), POINTS - 1).astype(int)
    means = np.full(POINTS, np.nan)
    for i in np.unique(stretch):
        means[i] = episodes[stretch == i, 1].mean()
    last = np.maximum.accumulate(np.where(np.isnan(means), 0, np.arange(POINTS)))
    return means[last]


def steps_to(milestone: float, returns: np.ndarray, steps: int) -> str:
    """
    :param milestone: a return
    :param returns: ``[POINTS]``: a learning curve
    :param steps: of its training
    :return: the end of the first stretch where the mean return is as much; a dash if it never is
    """
    reached = np.flatnonzero(returns >= milestone)
    return f"{steps * (reached[0] + 1) // POINTS:,}" if len(reached) else "-"


def interquartile_means(scores: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """
    :param scores: by label, ``[n_seeds, n_games]``
    :return: by label, the interquartile mean over all, and the ends of its 95% interval; nan where the seeds are too few
    """
    np.random.seed(0)  # noqa: NPY002  (rliable draws from the global state, whatever its random_state is)
    points, intervals = library.get_interval_estimates(
        scores, lambda values: np.array([metrics.aggregate_iqm(values)]), reps=REPETITIONS
    )
    ends = {label: intervals[label][:, 0] if len(scores[label]) >= FEWEST_SEEDS else (np.nan, np.nan) for label in scores}
    return {label: (float(points[label][0]), *map(float, ends[label])) for label in scores}


def interval(low: float, high: float) -> str:
    """
    :param low: lower end; nan for none
    :param high: upper end
    :return: a cell of a table
    """
    return "" if np.isnan(low) else f"{low:.2f} to {high:.2f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """
    :param header: of the columns
    :param lines: cells
    :return: Markdown
    """
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def save(figure: plt.Figure, path: Path) -> None:
    """
    :param figure: is closed
    :param path: without its ending
    """
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def draw_curves(
    runs: Sequence[Run], curves: dict[str, np.ndarray], envs: Sequence[str], labels: Sequence[str], path: Path
) -> None:
    """
    Mean over the seeds and their range, one picture per environment.

    :param runs: those that have ended
    :param curves: theirs, by name
    :param envs: theirs, each once
    :param labels: theirs, each once
    :param path: without its ending
    """
    columns = min(3, len(envs))
    rows = -(-len(envs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(envs) :]:
        axis.axis("off")
    for env, axis in zip(envs, axes.flat, strict=False):
        for i, label in enumerate(labels):
            chosen = [run for run in runs if (run.env, run.label) == (env, label)]
            if not chosen:
                continue
            steps = np.linspace(0, chosen[0].steps, POINTS + 1)[1:]
            returns = np.stack([curves[run.name] for run in chosen])
            axis.plot(steps, returns.mean(0), color=f"C{i}", linewidth=1.5, label=label)
            axis.fill_between(steps, returns.min(0), returns.max(0), color=f"C{i}", alpha=0.1, linewidth=0)
        axis.set(title=env, xlim=(0, None), xlabel="agent steps", ylabel="return while training")
        axis.grid(alpha=0.3)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(4, 2 * columns)}
    if len(envs) < rows * columns:  # in the last place, which is empty
        place = {"loc": "center", "bbox_to_anchor": axes.flat[-1].get_position()}
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines}  # a game may lack some
    figure.legend([lines[label] for label in labels], labels, **place)
    save(figure, path)


def draw_scores(
    scores: dict[str, dict[str, list[float]]],
    means: dict[str, dict[str, tuple[float, float, float]]],
    over_all: dict[str, tuple[float, float, float]],
    labels: Sequence[str],
    reference: str,
    path: Path,
) -> None:
    """
    One picture per environment: mean score of each seed, their mean, and its interval over seeds and games. In a last one the
    interquartile means over all games.

    :param scores: by environment and label: mean score of each seed
    :param means: by environment and label: their mean, and the ends of its interval
    :param over_all: by label: the interquartile mean, and the ends of its interval; empty for none
    :param labels: each once
    :param reference: label whose means are dotted lines; empty for none
    :param path: without its ending
    """
    pictures = means | ({"over all games, IQM": over_all} if over_all else {})
    panels = len(pictures)
    columns = min(3, panels)
    rows = -(-panels // columns)
    size = (3.6 * columns + 1.2, (0.28 * len(labels) + 1) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis in axes.flat[panels:]:
        axis.axis("off")
    for (title, of_labels), axis in zip(pictures.items(), axes.flat, strict=False):
        for label, (middle, low, high) in of_labels.items():
            i = labels.index(label)
            axis.plot([low, high], [i, i], color=f"C{i}", linewidth=8, alpha=0.3, solid_capstyle="butt")
            axis.plot([middle, middle], [i - 0.3, i + 0.3], color=f"C{i}", linewidth=2)
            seeds = scores.get(title, {}).get(label, [])
            axis.plot(seeds, [i] * len(seeds), "o", color=f"C{i}", markersize=4)
        if reference in of_labels:
            axis.axvline(of_labels[reference][0], color="grey", linewidth=0.8, linestyle=":")
        unit = "score" if title in scores else f"score over {reference}'s mean"
        axis.set(title=title, xlabel=unit, yticks=range(len(labels)), yticklabels=labels)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()  # all share it
    save(figure, path)


def report(runs: Sequence[Run], reference: str, milestone: float, path: Path) -> str:
    """
    :param runs: those of the suite that have ended
    :param reference: label by which scores are divided for the mean over games; empty for none
    :param milestone: return, of which the table says when it is reached; infinite for none
    :param path: folder for the figures
    :return: Markdown
    """
    envs, labels = (list(dict.fromkeys(values)) for values in ([run.env for run in runs], [run.label for run in runs]))
    games = {(run.env, run.label, run.seed): scores_of(run) for run in runs}
    scores = {key: float(of_run.mean()) for key, of_run in games.items()}
    curves = {run.name: curve(run) for run in runs}
    lines = []
    values_by_env: dict[str, dict[str, list[float]]] = {}
    means_by_env: dict[str, dict[str, tuple[float, float, float]]] = {env: {} for env in envs}
    for env in envs:
        of_env: dict[str, list[Run]] = {label: [] for label in labels}
        for run in runs:
            if run.env == env:
                of_env[run.label].append(run)
        values = {label: [scores[env, label, run.seed] for run in of_label] for label, of_label in of_env.items() if of_label}
        values_by_env[env] = values
        means = interquartile_means({label: np.array(of_label)[:, None] for label, of_label in values.items()})
        for label, (middle, low, high) in means.items():
            ends = interval_of_mean([games[env, label, run.seed] for run in of_env[label]])
            means_by_env[env][label] = float(np.mean(values[label])), *ends
            mean = f"{np.mean(values[label]):.1f} ({interval(*ends)})"
            each = ", ".join(f"{score:.1f}" for score in values[label])
            late = ", ".join(f"{curves[run.name][-POINTS // 10 :].mean():.1f}" for run in of_env[label])
            lines.append([env, label, str(len(values[label])), f"{middle:.2f}", interval(low, high), mean, each, late])
            if milestone < math.inf:
                lines[-1].append("; ".join(steps_to(milestone, curves[run.name], run.steps) for run in of_env[label]))
    header = ["environment", "algorithm", "seeds", "IQM", "95% interval", "mean (95%, over seeds and games)"]
    header += ["mean score of each seed", "return in the last tenth of training"]
    if milestone < math.inf:
        header.append(f"steps until the return while training is {milestone:g}")
    parts = [table(header, lines), "The IQM of fewer than four seeds is their mean.\n"]
    draw_curves(runs, curves, envs, labels, path / "curves")
    parts.append("![learning curves](curves.png)\n")

    seeds = {
        label: set.intersection(*({s for e, name, s in scores if (e, name) == (env, label)} for env in envs))
        for label in labels
    }
    over_all: dict[str, tuple[float, float, float]] = {}
    complete = {label: sorted(of_label) for label, of_label in seeds.items() if of_label}
    if reference in complete:
        unit = [np.mean([scores[env, reference, seed] for seed in complete[reference]]) for env in envs]
        if min(unit) <= 0:
            raise SystemExit(
                f"reference={reference}: its mean score must be positive, and is {min(unit)} in {envs[np.argmin(unit)]}"
            )
        matrix = {
            label: np.array([[scores[env, label, seed] for env in envs] for seed in of_label]) / unit
            for label, of_label in complete.items()
        }
        over_all = interquartile_means(matrix)
        rows = [
            [label, str(len(complete[label])), f"{middle:.2f}", interval(low, high)]
            for label, (middle, low, high) in over_all.items()
        ]
        parts.append(table(["over all games", "seeds", f"IQM of the scores over {reference}'s mean", "95% interval"], rows))
    draw_scores(values_by_env, means_by_env, over_all, labels, reference, path / "scores")
    parts.append("![scores](scores.png)\n")
    dotted = f"; dotted: the mean of {reference}." if reference else "."
    parts.append(f"Dots: seeds; line and bar: their mean and its 95% interval over seeds and games{dotted}\n")
    return "\n".join(parts)


def provenance(runs: Sequence[Run], command: str) -> str:
    """
    :param runs: those that have ended
    :param command: that writes the report
    :return: Markdown: where the numbers come from
    """
    manifests: list[dict[str, Any]] = [json.loads((run.folder / "manifest.json").read_text()) for run in runs]
    # Of the curve: a manifest's begin with RL Zoo
    hours = sum(episodes_of(run)[-1:, 2].sum() for run in runs) / 3600
    each = sorted({f"{manifest.get('num_cpus', 1):g}" for manifest in manifests})
    cores = "one core" if each == ["1"] else f"{' or '.join(each)} cores"
    commits = sorted({manifest["commit"][:10] + ("+" if manifest["dirty"] else "") for manifest in manifests})
    machines = sorted({manifest["machine"] for manifest in manifests})
    evaluations = [", ".join(f"{name} {value}" for name, value in manifest["evaluation"].items()) for manifest in manifests]
    return (
        f"{len(runs)} runs, {hours:.1f} hours of training, each on {cores}. "
        f"Evaluation of each at its end: {'; or '.join(dict.fromkeys(evaluations))}. "
        f"The mean's interval is by bootstrap over the seeds and the games of each; where there is one seed, over its games. "
        f"Curves: episodes while training; mean and range over the seeds.\n\nCommits {', '.join(commits)}; "
        f"{'; '.join(machines)}. Each run's folder has its command, versions and raw numbers. This page: `{command}`.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("suite", help="name in suites.yml")
    parser.add_argument("--suites", type=Path, default=HERE / "suites.yml")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument(
        "--elsewhere",
        nargs=2,
        action="append",
        default=[],
        metavar=("RUN", "SUITE/RUN"),
        help="a run that was done with the same settings in another suite",
    )
    parser.add_argument("--also", metavar="SUITE", help="a suite whose runs count where they have the same name")
    args = parser.parse_args()
    plt.rcParams["svg.hashsalt"] = args.suite  # the same file every time

    _, suite = read(args.suites, args.suite)
    all_runs = expand(args.suite, suite, args.out)
    elsewhere = dict(args.elsewhere)
    if unknown := elsewhere.keys() - {run.name for run in all_runs}:
        raise SystemExit(f"--elsewhere: {min(unknown)!r} is no run of {args.suite}")
    all_runs = [run._replace(folder=args.out / elsewhere[run.name]) if run.name in elsewhere else run for run in all_runs]
    if args.also:
        also = [run._replace(folder=args.out / args.also / run.name) for run in all_runs]
        all_runs = [there if there.is_done else run for run, there in zip(all_runs, also, strict=True)]
    runs = [run for run in all_runs if run.is_done]
    if not runs:
        raise SystemExit(f"no run of {args.suite} has ended in {args.out}")
    path = args.out / args.suite
    body = report(runs, suite["reference"], suite["milestone"], path)
    title = f"# {args.suite}: {len(runs)} of {len(all_runs)} runs\n"
    about = provenance(runs, shlex.join(["python", "benchmarks/learning/report.py", *sys.argv[1:]]))
    (path / "report.md").write_text("\n".join([title, body, about]))
    print(path / "report.md")


if __name__ == "__main__":
    main()
