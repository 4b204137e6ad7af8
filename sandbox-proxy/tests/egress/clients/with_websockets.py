"""Opens a WebSocket, prints what comes first, and what comes back for a message."""
import ssl
import sys

from websockets.exceptions import InvalidHandshake, ProxyError
from websockets.sync.client import connect

try:
    with connect(sys.argv[1], ssl=ssl.create_default_context(), open_timeout=60) as socket:
        print(socket.recv(timeout=60))
        socket.send("hello")
        print(len(socket.recv(timeout=60)))
except (InvalidHandshake, ProxyError, OSError) as error:
    print(type(error).__name__, error)
    sys.exit(1)
