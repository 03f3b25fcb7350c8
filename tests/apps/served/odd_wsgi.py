"""The paths of odd.py as a WSGI application."""

import threading
import time
from urllib.parse import parse_qs

from deployer.runtime import on_drain

draining = threading.Event()
on_drain(draining.set)


def app(environ, start_response):
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    path, source = environ["PATH_INFO"], environ["wsgi.input"]
    if path == "/drip":
        start_response("200 OK", [])
        return drip(query)
    if path == "/events":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events()
    status, body = "200 OK", query.get("n", "hello").encode()
    if path == "/slow":
        time.sleep(float(query["s"]))
        body = b"slow"
    elif path == "/held":
        held(query)
        body = b"held"
    elif path == "/upload":
        body = str(sum(map(len, iter(lambda: source.read(65536), b"")))).encode()
    elif path == "/big":
        body = b"x" * int(query["bytes"])
    elif path == "/refuse":
        status = "413 Too Large"
    elif path == "/status":
        start_response(f"{query['code']} No Body", [])
        return []
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]


def held(query):
    draining.wait()
    time.sleep(float(query.get("s", "0.1")))


def drip(query):
    while not draining.wait(0.1):
        yield b"."
    end = time.monotonic() + float(query["s"])
    while time.monotonic() < end:
        yield b"."
        time.sleep(0.1)
    yield b"end"


def events():
    try:
        number = 0
        while True:
            number += 1
            yield b"data: %d\n\n" % number
            time.sleep(0.05)
    finally:
        print("events: closed", flush=True)
