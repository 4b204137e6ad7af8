"""Fetches each URL with requests, and tells status and body, or the kind of error."""
import sys

import requests

for url in sys.argv[1:]:
    try:
        answer = requests.post(url, data=b"payload", timeout=60)
        print(answer.status_code, answer.text)
    except requests.exceptions.RequestException as error:
        print(type(error).__name__, error)
        sys.exit(1)
