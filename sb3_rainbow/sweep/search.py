"""One worker of a hyperparameter search: RL Zoo's ``-optimize`` on a study that several workers share."""

import functools
import math
import time
from pathlib import Path
from typing import Any

from sb3_rainbow.sweep.attempt import finish, number_of, parameters, run_zoo, zoo_arguments
from sb3_rainbow.sweep.suite import Run


def load_study(storage: Any, study_name: str) -> Any:
    """
    :param storage: file that ends in ``.log``, or address of a database
    :param study_name: its name
    :return: Optuna's study
    :raises KeyError: if no worker has begun
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if storage.endswith(".log"):  # as RL Zoo does
        if not Path(storage).exists():
            raise KeyError(storage)
        storage = optuna.storages.JournalStorage(JournalFileBackend(storage))
    return optuna.load_study(storage=storage, study_name=study_name)


def prepare(storage: str) -> None:
    """
    Make the tables of a database before several workers do at the same time.

    :param storage: file that ends in ``.log``, which needs none, or address of a database
    :raises Exception: the database's own, if it is not there
    """
    import optuna

    if not storage.endswith(".log"):
        optuna.storages.RDBStorage(storage).engine.dispose()


#: A study that has been loaded reads only what is new
_study = functools.lru_cache(load_study)


def finished(run: Run) -> tuple[int, float]:
    """
    :param run: a worker
    :return: how many trials of its study have finished, and the best value; nan if none has
    """
    from optuna.trial import TrialState

    try:
        study = _study(run.search["storage"], run.search["study_name"])
    except KeyError:
        return 0, math.nan
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
    return len(trials), max(values, default=math.nan)


def optimize(run: Run, attempt: Path) -> None:
    """
    Work on the study until it has all its trials, and write the manifest.

    :param run: a worker
    :param attempt: folder of the attempt
    """
    give_up_trials(run, all_workers=False)
    _sign_trials(run)
    arguments = zoo_arguments(run, attempt)
    # Workers that sample by the same seed would try the same values, and so would one that is started again, or goes on
    arguments += ["--seed", str(run.seed + number_of(attempt) + finished(run)[0]), "-optimize", "--no-optim-plots"]
    search = dict(run.search)
    arguments += ["--max-total-trials", str(search.pop("trials"))]
    for name, value in search.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    arguments += parameters(run.settings.get("hyperparams", {}))
    start = time.perf_counter()
    run_zoo(arguments)
    best = load_study(run.search["storage"], run.search["study_name"]).best_trial
    result = f"best trial {best.number}: {best.value:.1f}"
    finish(run, attempt, result, time.perf_counter() - start, arguments, best_params=best.params, best_value=best.value)


def give_up_trials(run: Run, all_workers: bool) -> None:
    """
    Let trials fail that were left by workers which were killed: they would count as running for ever.

    :param run: a worker, that does not work yet
    :param all_workers: trials of all workers of its sweep, of which none works yet; else of this one
    """
    from optuna.trial import TrialState

    try:
        study = load_study(run.search["storage"], run.search["study_name"])
    except KeyError:
        return
    sweep, _, _ = run.name.rpartition("-")
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker", "")
        if worker == run.name or (all_workers and worker.rpartition("-")[0] == sweep):
            study.tell(trial.number, state=TrialState.FAIL)


def _sign_trials(run: Run) -> None:
    """Every trial says which worker it is tried by."""
    from rl_zoo3.exp_manager import ExperimentManager

    objective = ExperimentManager.objective

    def signed(self: Any, trial: Any) -> float:
        trial.set_user_attr("worker", run.name)
        return objective(self, trial)

    ExperimentManager.objective = signed  # type: ignore[method-assign]
