"""Search space of RL Zoo's ``-optimize`` for Rainbow (see ``rl_zoo3.hyperparams_opt``)."""

from typing import Any

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "big": [400, 300]}


def sample_rainbow_params(trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Suggest hyperparameters for one trial.

    :param trial: Optuna's trial
    :param n_actions: not used
    :param n_envs: not used
    :param additional_args: not used
    :return: keyword arguments for ``RainbowDQN``
    """
    train_freq = trial.suggest_int("train_freq", 1, 16)
    params = {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 9),
        "train_freq": train_freq,
        "subsample_steps": trial.suggest_int("subsample_steps", 1, min(train_freq, 8)),
        "target_update_interval": trial.suggest_int("target_update_interval", 10, 20000, log=True),
        "n_steps": trial.suggest_int("n_steps", 1, 10),
        "alpha": trial.suggest_float("alpha", 0.0, 1.0),
        "sigma0": trial.suggest_float("sigma0", 0.05, 1.0, log=True),
        "exploration_final_eps": trial.suggest_float("exploration_final_eps", 0.0, 0.1),
        "exploration_fraction": trial.suggest_float("exploration_fraction", 0.01, 0.5),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
    }
    converted = convert_rainbow_params(params)
    for name in ("gamma", "batch_size", "gradient_steps"):
        trial.set_user_attr(name, converted[name])
    return converted


def convert_rainbow_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Keyword arguments for what a trial sampled; also used for the parameters of a stored trial (``--trial-id``).

    :param sampled_params: values by the names under which they were suggested
    :return: keyword arguments for ``RainbowDQN``
    """
    hyperparams = dict(sampled_params)
    hyperparams["gamma"] = 1 - hyperparams.pop("one_minus_gamma")
    hyperparams["batch_size"] = 2 ** hyperparams.pop("batch_size_pow")
    # One update per `subsample_steps` environment steps
    hyperparams["gradient_steps"] = max(hyperparams["train_freq"] // hyperparams.pop("subsample_steps"), 1)
    hyperparams["policy_kwargs"] = {"net_arch": NET_ARCHS[hyperparams.pop("net_arch")]}
    return hyperparams
