"""RL Zoo after an editable install. What the kind of install cannot change is tested with the wheel, once."""

import zoo_acceptance

KIND = "editable"
KEPT = (
    "test_starting_python_imports_no_torch",
    "test_the_startup_line_of_later_pythons_is_installed_too",
    "test_training_saves",
    "test_rainbow_is_among_the_choices",
    "test_the_hook_can_be_switched_off_and_our_own_entry_works_without_it",
    "test_without_the_startup_line_our_own_entry_trains",
    "test_uninstalling_leaves_nothing",  # the last
)
globals().update({name: getattr(zoo_acceptance, name) for name in ("install", "logs", *KEPT)})
