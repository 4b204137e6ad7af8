"""The four kinds of calls, to a server that gives every message back. Messages are bytes as they are."""
import sys

import grpc


def keep(data):
    return data


credentials = grpc.ssl_channel_credentials(open(sys.argv[2], "rb").read())
with grpc.secure_channel(sys.argv[1], credentials) as channel:
    call = ("/chat.Chat/Talk", keep, keep)
    try:
        print("unary", channel.unary_unary(*call)(b"one", timeout=60).decode())
        stream = channel.unary_stream(*call)(b"one", timeout=60)
        print("server", [message.decode() for message in stream], stream.code().name)
        print("client", channel.stream_unary(*call)(iter([b"only"]), timeout=60).decode())

        # The next message is made from the answer to the one before.
        said = []

        def talk():
            for index in range(3):
                while len(said) < index:
                    pass
                yield f"message {index}".encode()

        for message in channel.stream_stream(*call)(talk(), timeout=60):
            said.append(message.decode())
        print("both", said)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
        sys.exit(1)
