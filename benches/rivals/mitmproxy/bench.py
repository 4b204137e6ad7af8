"""mitmproxy's part in `cargo xtask bench proxy`: puts the key into each request; bodies stream.

Options of the command line: confdir with the authority, ssl_verify_upstream_trusted_ca with the root to trust.
"""

import os

KEY = os.environ["BENCH_KEY"]


def server_connect(data):
    # Every name is on loopback; the server name that is asked for and verified stays.
    data.server.address = ("127.0.0.1", data.server.address[1])


def request(flow):
    flow.request.headers["x-api-key"] = KEY


def responseheaders(flow):
    flow.response.stream = True
