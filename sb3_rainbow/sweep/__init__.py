"""
Many trainings, side by side and past one machine: ``python -m sb3_rainbow.sweep suite.yml``.

A suite lists environments x algorithms x overrides x seeds; each of them is trained through RL Zoo in a process of its own, by
Ray or on this machine. Any of these processes, the machines and the sweep itself may die: what is started again goes on from
the last checkpoint and ends with the same numbers.
"""
