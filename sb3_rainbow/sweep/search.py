"""One worker of a hyperparameter search: RL Zoo's ``-optimize`` on a study that several workers share."""

import time
from pathlib import Path
from typing import Any

from sb3_rainbow.sweep.attempt import finish, number_of, parameters, run_zoo, zoo_arguments
from sb3_rainbow.sweep.suite import Run


def load_study(run: Run) -> Any:
    """
    :param run: a worker
    :return: its study, Optuna's; None if no worker has begun
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage: Any = run.search["storage"]
    if storage.endswith(".log"):  # as RL Zoo does
        if not Path(storage).exists():
            return None
        storage = optuna.storages.JournalStorage(JournalFileBackend(storage))
    try:
        return optuna.load_study(storage=storage, study_name=run.search["study_name"])
    except KeyError:
        return None


def optimize(run: Run, attempt: Path) -> None:
    """
    Work on the study until it has all its trials, and write the manifest.

    :param run: a worker
    :param attempt: folder of the attempt
    """
    _give_up_trials(run)
    _sign_trials(run)
    arguments = zoo_arguments(run, attempt)
    # Workers that sample by the same seed would try the same values, and so would one that is started again
    arguments += ["--seed", str(run.seed + number_of(attempt)), "-optimize", "--no-optim-plots"]
    search = dict(run.search)
    arguments += ["--max-total-trials", str(search.pop("trials"))]
    for name, value in search.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    arguments += parameters(run.settings.get("hyperparams", {}))
    start = time.perf_counter()
    run_zoo(arguments)
    best = load_study(run).best_trial
    result = f"best trial {best.number}: {best.value:.1f}"
    finish(run, attempt, result, time.perf_counter() - start, arguments, best_params=best.params)


def _give_up_trials(run: Run) -> None:
    """A trial that this worker left when it was killed would count as running for ever."""
    from optuna.trial import TrialState

    study = load_study(run)
    for trial in study.get_trials(states=(TrialState.RUNNING,)) if study else ():
        if trial.user_attrs.get("worker") == run.name:
            study.tell(trial.number, state=TrialState.FAIL)


def _sign_trials(run: Run) -> None:
    """Every trial says which worker it is tried by."""
    from rl_zoo3.exp_manager import ExperimentManager

    objective = ExperimentManager.objective

    def signed(self: Any, trial: Any) -> float:
        trial.set_user_attr("worker", run.name)
        return objective(self, trial)

    ExperimentManager.objective = signed  # type: ignore[method-assign]
