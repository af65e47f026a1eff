"""Model: a runner's code between a batch and its answer, on a worker's side.

Guarantees      1. never raises: what the runner's code raises is an answer too;
                2. an argument that cannot be read is its callers' fault; an InvalidPayload that the
                   model raises is the model's, like anything else that it raises.
Why this shape  the two planes hand over and take back different buffers; what is between is the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .._native.rows import BufferPool, is_sole_reference
from ..errors import InvalidPayload
from ..payloads import Encoded, Fixed, Var
from ..signature import InvalidResult
from . import native
from .buffers import Slicer, contiguous, join
from .encoding import from_encoded, to_encoded
from .failures import model_failure
from .recipe import model_of, signature_of
from .wire import Buffer, Code, Failure, Rows, Type

__all__ = ["Batch", "Model", "NativeModel"]


class Batch(NamedTuple):
    """A batch to run. `buffers`: the wire's, or with the native plane the signature's, whole and
    with `padded_rows` rows. `origin`: the connection that it came on, and its answer goes to."""

    origin: Any
    id: int
    rows: int
    padded_rows: int
    key: bytes
    buffers: list[Any]

    @property
    def model_rows(self) -> int:
        return self.padded_rows if self.rows else 0


class _Unreadable(Exception):
    """The arguments of a batch cannot be read."""


class Model:
    """Makes a RESULT or an ERROR of a batch of the plain plane."""

    def __init__(self, runner: Any, *, allow_pickle: bool) -> None:
        self.run_batch = model_of(runner)
        self._hook = runner._hook().__name__
        self._signature = signature_of(runner)
        self._allow_pickle = allow_pickle

    def run(self, batch: Batch) -> Any:
        try:
            args, kwargs = self._arguments(batch)
            result = [self.run_batch(*args, **kwargs)]
            # Before the references to the result are counted: a model may return its argument.
            del args, kwargs
            return self._answer(batch, result)
        except BaseException as error:
            return self._failure(batch.id, error)

    async def run_async(self, batch: Batch) -> Any:
        try:
            args, kwargs = self._arguments(batch)
            result = [await self.run_batch(*args, **kwargs)]
            del args, kwargs
            return self._answer(batch, result)
        except BaseException as error:
            return self._failure(batch.id, error)

    def _arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return self._signature.decode(
                batch.key, self._encoded(batch), batch.model_rows, allow_pickle=self._allow_pickle
            )
        except InvalidPayload as error:
            raise _Unreadable(str(error)) from error

    def _encoded(self, batch: Batch) -> list[Any]:
        buffers = batch.buffers
        missing = batch.padded_rows - batch.rows
        if missing and batch.rows:
            last = Slicer(buffers).cut(batch.rows - 1, 1)
            buffers = join([buffers, *[last] * missing])
        return to_encoded([Buffer(b.row_bytes, [contiguous(b)], b.lengths) for b in buffers])

    def _answer(self, batch: Batch, result: list[Any]) -> Any:
        """The record of the result, the only element of a list that owns it."""
        encoded = self._encode(batch, result)
        buffers = from_encoded(encoded.buffers)
        if batch.model_rows != batch.rows:
            buffers = Slicer(buffers).cut(0, batch.rows)
        # The model may write into its result again for the next batch, before this one was sent.
        owned = [Buffer(b.row_bytes, [bytes(chunk) for chunk in b.chunks], b.lengths) for b in buffers]
        return Rows(Type.RESULT, batch.id, batch.rows, encoded.key, owned)

    def _encode(self, batch: Batch, result: list[Any]) -> Encoded:
        return self._signature.encode_result(result[0], batch.model_rows, allow_pickle=self._allow_pickle)

    def _failure(self, id_: int, error: BaseException) -> Failure:
        if isinstance(error, InvalidResult):
            return Failure(id_, Code.BAD_RESULT, str(error))
        if isinstance(error, _Unreadable):
            return Failure(id_, Code.INVALID_PAYLOAD, str(error))
        return model_failure(error, self._hook, id_)


class NativeModel(Model):
    """The same of the native plane: the address of a message, or an ERROR.

    `pool`: of large buffers, those of the batches that it is given too.
    """

    def __init__(self, runner: Any, pool: BufferPool, *, allow_pickle: bool) -> None:
        super().__init__(runner, allow_pickle=allow_pickle)
        self._pool = pool
        simple = getattr(self._signature, "simple", False)
        self._arrays = native.batches.PlainArrays(Fixed) if simple else None

    def _arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arrays = self._arrays
        if arrays is None:
            return super()._arguments(batch)
        array = arrays.argument(batch.key, batch.buffers, batch.model_rows)
        if array is not None:
            return (array,), {}
        args, kwargs = super()._arguments(batch)
        if len(args) == 1 and not kwargs:
            arrays.learn_argument(batch.key, args[0])
        return args, kwargs

    def _encoded(self, batch: Batch) -> list[Any]:
        # From here on they are the model's alone.
        buffers = batch.buffers.copy()
        batch.buffers.clear()
        return buffers

    def _answer(self, batch: Batch, result: list[Any]) -> Any:
        arrays = self._arrays
        if arrays is None:
            return self._encoded_answer(batch, result)[0]
        message = arrays.result(batch.id, batch.rows, batch.model_rows, result[0])
        if not message:
            message, key = self._encoded_answer(batch, result)
            arrays.learn_result(key, result[0])
        return message

    def _encoded_answer(self, batch: Batch, result: list[Any]) -> tuple[int, bytes]:
        """The message, and the key of the result in it."""
        # What nobody else can reach is sent from where it is: also the batch itself, if that is the result.
        owned = is_sole_reference(result) and self._pool.is_alone(result[0])
        encoded = self._encode(batch, result)
        try:
            message = native.batches.new_result(
                batch.id, batch.rows, encoded.key, encoded.buffers, Var, self._pool, owned
            )
        except ValueError as error:
            raise InvalidResult(f"_run_batch returned what cannot be sent: {error}") from None
        return message, encoded.key
