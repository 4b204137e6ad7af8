"""Fetches a URL with httpx over HTTP/2, many times at once."""
import asyncio
import sys

import httpx


async def main(url):
    async with httpx.AsyncClient(http2=True, timeout=60) as client:
        answers = await asyncio.gather(*(client.post(url, content=b"payload") for _ in range(20)))
        assert all(answer.status_code == 200 for answer in answers), answers
        print(answers[0].http_version, answers[0].text)


try:
    asyncio.run(main(sys.argv[1]))
except httpx.TransportError as error:
    print(type(error).__name__, error)
    sys.exit(1)
