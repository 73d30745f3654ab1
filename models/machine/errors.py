"""The errors that a user can mend. Everything else that goes wrong is a fault of ours."""


class InputError(ValueError):
    """Something that the user gave breaks a rule; the message has the value, the rule and the mend.

    The command line shows the message as one line and ends with code 2. Any other error is a fault of this program.
    """


class MissingInputError(InputError, FileNotFoundError):
    """A file or directory that the user named, or that belongs to what the user named, is not there."""


class Cancelled(Exception):
    """Somebody asked for the end of a job before it was done."""


class MachineError(InputError, OSError):
    """The user's machine refuses something: no space, no permission, too little memory, no card."""
