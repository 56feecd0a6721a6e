"""What ends a command early: a sentence for the person who typed it, and the exit code."""


class CommandProblem(Exception):
    """The command could not do what it was asked to."""

    code = 1


class UsageProblem(CommandProblem):
    """An option or the configuration is wrong."""

    code = 2


class NotRunning(CommandProblem):
    """Nothing answers there."""

    code = 3
