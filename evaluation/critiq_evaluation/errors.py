"""What a command of the evaluation refuses."""


class EvaluationError(Exception):
    """Input that cannot be used; the message says what was wrong, with which value, and what to do."""
