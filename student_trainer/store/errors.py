"""What can be wrong with a store, for callers that tell the cases apart."""


class StoreError(ValueError):
    """The store cannot be used as asked; the message names the store and the mend."""


class StoreMismatchError(StoreError):
    """It is of another teacher, or was asked something else, than expected."""


class MissingTargetsError(StoreError):
    """It does not hold what was asked for."""


class CorruptStoreError(StoreError):
    """A file is cut, or a record is not what was written; the message names file and record."""
