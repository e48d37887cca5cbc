"""RL Zoo after an editable install. What the kind of install cannot change is tested with the wheel, once."""

from zoo_acceptance import *  # noqa: F403

KIND = "editable"

del (
    test_a_trained_agent_plays,  # noqa: F821
    test_a_config_that_does_not_exist_is_still_an_error,  # noqa: F821
    test_a_failing_hook_is_one_warning_with_a_way_out_and_harms_nobody,  # noqa: F821
    test_training_in_subprocesses_saves,  # noqa: F821
    test_one_argument_trains_on_ales_own_threads,  # noqa: F821
    test_the_papers_settings_run_by_name,  # noqa: F821
    test_other_settings_run_by_name,  # noqa: F821
    test_training_can_be_continued_with_its_replay_buffer,  # noqa: F821
    test_playing_needs_no_replay_memory,  # noqa: F821
    test_the_console_script_trains_and_plays,  # noqa: F821
    test_hyperparameters_are_optimised,  # noqa: F821
    test_a_video_is_recorded,  # noqa: F821
    test_other_algorithms_keep_their_own_config,  # noqa: F821
)
