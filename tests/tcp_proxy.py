"""A TCP proxy that breaks connections, to see whether a client minds."""

import contextlib
import socket
import threading
from collections.abc import Sequence

_CHUNK_BYTES = 16 * 1024
_STOP_TIMEOUT_S = 10.0


class TcpProxy:
    """Forwards connections to an address; each may carry so many bytes to the client, then breaks.

    Args:
        target: HOST:PORT that it forwards to.
        budgets: bytes of the first, the second, ... connection; those after them are never broken.
    """

    def __init__(self, target: str, *, budgets: Sequence[int] = ()) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._budgets = list(budgets)
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.num_cut = 0
        """Connections that were broken."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def __enter__(self) -> "TcpProxy":
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits in accept is not woken by closing its socket.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(_STOP_TIMEOUT_S)
        self.cut_all()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)
            assert not thread.is_alive()
        for end in self._sockets:
            end.close()

    def cut_all(self) -> None:
        """Breaks every connection there is."""
        with self._lock:
            ends = list(self._sockets)
        for end in ends:
            _break(end)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets += [client, server]
                budget = self._budgets.pop(0) if self._budgets else None
            self._start(self._pump, client, server, None)
            self._start(self._pump, server, client, budget)

    def _pump(self, source: socket.socket, sink: socket.socket, budget: int | None) -> None:
        """Copies one direction until an end is closed or the budget is spent."""
        try:
            while data := source.recv(
                _CHUNK_BYTES if budget is None else min(budget, _CHUNK_BYTES)
            ):
                sink.sendall(data)
                if budget is not None:
                    budget -= len(data)
                    if not budget:
                        with self._lock:
                            self.num_cut += 1
                        break
        except OSError:
            # An end is gone; then the other one goes too.
            pass
        _break(source)
        _break(sink)


def _break(end: socket.socket) -> None:
    # It may be broken already.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
