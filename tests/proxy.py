"""A TCP proxy between the product and what it leans on: it is pointed elsewhere, cut, or swallows the answers."""

import contextlib
import socket
import threading

CHUNK = 65536


class Proxy:
    """Listens on a port of its own and passes on to `target`, a port on this machine. Closed with `close`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.mute = b""  # whoever sends this hears nothing from then on
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def switch(self, target: int) -> None:
        """Whoever connects from now on comes to another server. Connections that there are stay where they are."""
        self.target = target

    def cut(self) -> None:
        """Ends all connections that there are."""
        for pair in list(self._pairs):
            self._end(pair)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            client.close()  # as refused, only a moment later
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (client, server)
        self._pairs.add(pair)
        muted = threading.Event()
        threading.Thread(target=self._carry, args=(server, client, pair, muted, False), daemon=True).start()
        self._carry(client, server, pair, muted, True)

    def _carry(self, source, sink, pair, muted: threading.Event, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if asks and self.mute and self.mute in data:
                    muted.set()
                if asks or not muted.is_set():
                    sink.sendall(data)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
